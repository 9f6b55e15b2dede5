"""How many lanes run at once, and how many make a task."""

from collections.abc import Sequence

import numpy as np

from ..model.coordinates import state_size
from ..model.ufm import UFM
from .engine import CPU_BLOCKS, Device
from .lane import Plan

CPU_WIDTH = 32
ACCELERATOR_WIDTH = 4096

BYTES_A_CALL = 2**26
"""A call has so few blocks that its results on a device fit into this, but at least one."""

CPU_WIDTHS = ((512, CPU_WIDTH), (2**16, 8))
"""On a CPU, states of up to so many numbers run so many lanes in lockstep, larger ones a lane at a time. Against that,
blocks take 0.7 of the time for the paper's task, about the same from 400 to 1,500 numbers, 0.5 at 5,000
(`benchmarks/sweep.py --only width`)."""


def block_width(model: UFM, devices: Sequence[Device], lanes: int, factorises: bool = False) -> int:
    """How many of some lanes run in lockstep: a few on a CPU, many on an accelerator.

    Small states always fill their block, for one program. Large ones, methods that factorise a matrix for each lane,
    and accelerators take the power of two that leaves every device a block: there, few lanes are not paid for as many.
    """
    widest = ACCELERATOR_WIDTH
    if devices[0].platform == "cpu":
        widest = next((width for numbers, width in CPU_WIDTHS if state_size(model) <= numbers), 1)
        if widest == CPU_WIDTH and not factorises:
            return widest
    fair = -(-lanes // len(devices))
    return max(1, min(widest, 2 ** (fair - 1).bit_length()))


def blocks_a_call(bytes_a_lane: int, width: int) -> int:
    """How many blocks a CPU device takes in one call, by what is kept of a lane."""
    return max(1, min(CPU_BLOCKS, BYTES_A_CALL // (width * bytes_a_lane)))


LANES_A_TASK = 1024
NUMBERS_A_TASK = 2**18
"""On each CPU device a task has at most as many lanes, and their states as many numbers: what is lost with one was
minutes at most, and writing it takes a few hundredths of its time."""

BYTES_A_TASK = 2**28
"""What is kept of a task fits into this."""

COSTLY = ("steps_taken", "steps_accepted", "steps_rejected")
"""The variables whose sum is the number of steps that a lane computed."""


def expected_cost(lanes: dict[str, np.ndarray]) -> np.ndarray:
    """The order that puts lanes of like cost side by side: by the numbers of model and method, then from the largest
    eps down (it rests longest at its plateau, where steps are short), then by seed."""
    others = [values for name, values in lanes.items() if name not in ("eps", "seed")]
    return np.lexsort((lanes["seed"], -lanes["eps"], *(v if v.ndim == 1 else v.sum(axis=1) for v in others)))


def default_lanes(plan: Plan, devices: Sequence[Device], width: int | None) -> int:
    """How many lanes a task has: few where states are large, at least a block for every device."""
    largest = max((plan.grid.model.with_numbers(shapes) for shapes in plan.grid.shapes()), key=state_size)
    most = LANES_A_TASK if devices[0].platform == "cpu" else ACCELERATOR_WIDTH
    block = width or block_width(largest, devices, plan.grid.num_lanes, plan.grid.method.factorises)
    on_one = max(min(most, NUMBERS_A_TASK // state_size(largest)), block)
    return max(1, min(on_one * len(devices), BYTES_A_TASK // bytes_kept(plan)))


def bytes_kept(plan: Plan) -> int:
    """The bytes that are kept of a lane, at most."""
    return max(sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in out.values()) for out in plan.outcomes())

"""How many lanes run at once, and how many lanes a task has."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..initial import REDUCED_FROM
from ..model.columns import ClassMeanColumns
from ..model.coordinates import state_size
from ..model.ufm import UFM
from .engine import CPU_BLOCKS, Device
from .lane import Plan

CPU_WIDTH = 32
ACCELERATOR_WIDTH = 4096

BYTES_A_CALL = 2**26
"""Bytes that the results of one call may take on a device. A call always has at least one block."""

CPU_WIDTHS = ((192, CPU_WIDTH), (320, 16), (2048, 8))
"""`(largest state, lanes per block)` on a CPU; larger states run one lane at a time. The stages of a block should fit
into a core's second cache. Compared with running lanes one by one, blocks take half of the time for the paper's task,
two thirds for states of 300 to 1,000 numbers, about the same time at 1,500, and more time at 5,000
(`benchmarks/sweep.py --only width`)."""

FULL_FROM = 16
"""Blocks that may be as wide as this are always full, so that sweeps of any length share one program."""


def block_width(model: UFM, devices: Sequence[Device], lanes: int, factorises: bool = False, saves: int = 0) -> int:
    """How many lanes run in lockstep: a few on a CPU, many on an accelerator, as far as its memory holds them.

    Small states always use full blocks. Large states, methods that factorise a matrix for each lane, and accelerators
    use a power of two small enough that every device gets a block: there, a sweep of few lanes should not pay for a
    full block.

    Args:
        model: the model, with the sizes of these lanes.
        devices: where they run, all of one kind.
        lanes: how many there are.
        factorises: whether the method factorises a matrix for each lane.
        saves: how many points of a lane are observed.
    """
    widest = ACCELERATOR_WIDTH
    if devices[0].platform == "cpu":
        widest = next((width for numbers, width in CPU_WIDTHS if state_size(model) <= numbers), 1)
        if widest >= FULL_FROM and not factorises:
            return widest
    elif memory := memory_of(devices):
        fitting = int(MEMORY_SHARE * memory) // bytes_at_work(model, saves)
        widest = min(widest, 2 ** max(fitting.bit_length() - 1, 0))
    fair = -(-lanes // len(devices))
    return max(1, min(widest, 2 ** (fair - 1).bit_length()))


MEMORY_SHARE = 0.5
"""The share of an accelerator's memory that the lanes of a block may take. The rest is for results, and a margin for
`bytes_at_work`."""


OBSERVED = 64
"""The most numbers that a lane keeps of a saved point: the values of its metrics."""


def bytes_at_work(model: UFM, saves: int) -> int:
    """The bytes that a lane takes while it runs, estimated from above by at most a factor of about four.

    A run holds the stages of a step, for its start and its metrics the features of all samples, and `OBSERVED` numbers
    for each saved point. `benchmarks/gpu.py --only memory` measures it.
    """
    state, samples = state_size(model), model.num_features * model.num_samples
    if samples >= REDUCED_FROM and ClassMeanColumns(model.counts).admits(model.loss):
        samples = 0  # a start that is drawn reduced
    return 8 * (32 * state + 8 * samples + OBSERVED * saves)


def memory_of(devices: Sequence[Device]) -> int | None:
    """The bytes of memory of the smallest device, or None if one of them does not tell."""
    limits: list[Any] = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return None if None in limits else min(limits)


def blocks_a_call(bytes_a_lane: int, width: int) -> int:
    """How many blocks a CPU device takes in one call, given the bytes kept per lane."""
    return max(1, min(CPU_BLOCKS, BYTES_A_CALL // (width * bytes_a_lane)))


LANES_A_TASK = 4096
NUMBERS_A_TASK = 2**20
"""The most lanes a task has on each CPU device, and the most numbers in their states. A lost task costs at most a few
minutes, and writing a task takes a few percent of its time."""

BYTES_A_TASK = 2**28
"""Bytes that the kept results of a task may take."""

COSTLY = ("steps_taken", "steps_accepted", "steps_rejected")
"""The variables that add up to the number of steps a lane computed."""


def expected_cost(lanes: dict[str, np.ndarray]) -> np.ndarray:
    """An order that puts lanes of similar cost next to each other.

    Lanes are sorted by the numbers of model and method, then from the largest eps down (the largest eps stays longest
    at its plateau, where steps are short), then by seed.
    """
    others = [values for name, values in lanes.items() if name not in ("eps", "seed")]
    return np.lexsort((lanes["seed"], -lanes["eps"], *(v if v.ndim == 1 else v.sum(axis=1) for v in others)))


def default_lanes(plan: Plan, devices: Sequence[Device], width: int | None) -> int:
    """How many lanes a task has: fewer for large states, but at least a block for every device."""
    largest = max((plan.grid.model.with_numbers(shapes) for shapes in plan.grid.shapes()), key=state_size)
    most = LANES_A_TASK if devices[0].platform == "cpu" else ACCELERATOR_WIDTH
    block = width or block_width(largest, devices, plan.grid.num_lanes, plan.grid.method.factorises, plan.saves)
    on_one = max(min(most, NUMBERS_A_TASK // state_size(largest)), block)
    return max(1, min(on_one * len(devices), BYTES_A_TASK // bytes_kept(plan)))


def bytes_kept(plan: Plan) -> int:
    """The most bytes kept per lane."""
    return max(sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in out.values()) for out in plan.outcomes)

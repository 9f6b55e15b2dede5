"""How lanes run on devices: blocks of lanes in lockstep, one block after the other, on every device at once."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from .._checks import check_integer, shown
from .._errors import UsageError
from ..model import UFM

CPU_WIDTH = 16
ACCELERATOR_WIDTH = 4096

CPU_WIDTHS = ((512, CPU_WIDTH), (2**16, 8))
"""On a CPU, states of up to so many numbers run so many lanes in lockstep, larger ones a lane at a time. Against that,
blocks take 0.4 of the time for the paper's task, 0.8 to 1 from 600 numbers on, 0.5 at 5,000 (`benchmarks/sweep.py`)."""


Device = Any
"""A `jax.Device`, which type checkers take for a variable."""


class Engine:
    """A function of one lane over many lanes, on some devices.

    Args:
        function: from `shared` and a pytree of one lane's numbers to a pytree of arrays. One compilation serves all
            engines whose functions are equal.
        capacity: most lanes of one call. Fewer lanes use the same program, which skips the blocks they do not fill.
        width: lanes of a block. They run in lockstep, so lanes of like cost should follow each other.
        devices: where to run; default all local devices. Each takes every so-many-th block and stops by itself.
        shared: a pytree of arrays that all lanes have in common.

    Example:
        >>> import numpy as np
        >>> from flowcollapse.sweeps.engine import Engine
        >>> add = Engine(lambda shared, lane: shared + lane, capacity=8, width=4, shared=np.int32(10))
        >>> add.submit(np.arange(3)).result().tolist()
        [10, 11, 12]
    """

    def __init__(
        self,
        function: Callable[[Any, Any], PyTree],
        capacity: int,
        *,
        width: int,
        devices: Sequence[Device] | None = None,
        shared: PyTree = None,
    ):
        self.function, self.shared = function, shared
        self.devices = list(devices or jax.local_devices())
        self.width = width
        self.blocks = -(-capacity // (self.width * len(self.devices)))

    @property
    def capacity(self) -> int:
        """Most lanes of one call."""
        return len(self.devices) * self.blocks * self.width

    def submit(self, lanes: PyTree) -> "Submitted":
        """Start the computation and return at once.

        Args:
            lanes: arrays with the lanes in front, at most `capacity` of them.
        """
        count = len(jax.tree.leaves(lanes)[0])
        used = -(-count // self.width)
        devices = len(self.devices)
        # Block j goes to device j mod devices. The last one is filled up with copies of the last lane.
        blocks = np.minimum(np.arange(self.capacity), count - 1).reshape(-1, self.width)
        dealt = np.arange(len(blocks)).reshape(self.blocks, devices).T.ravel()
        index = blocks[dealt]
        mesh = Mesh(np.array(self.devices), ("lanes",))
        outcome = _run(self.function, mesh, self.shared, dealt < used, jax.tree.map(lambda x: x[index], lanes))
        place = np.argsort(dealt)[:used, None] * self.width + np.arange(self.width)
        return Submitted(outcome, place, count)

    def map(self, lanes: PyTree) -> PyTree:
        """The results of any number of lanes, in order, as NumPy arrays."""
        count = len(jax.tree.leaves(lanes)[0])
        parts = [
            self.submit(jax.tree.map(lambda x, i=first: x[i : i + self.capacity], lanes)).result()
            for first in range(0, count, self.capacity)
        ]
        return jax.tree.map(lambda *several: np.concatenate(several), *parts)


class Submitted(NamedTuple):
    """Lanes under way; `place` says where the lanes of each block stand in the flat outcome."""

    outcome: PyTree
    place: Int[np.ndarray, "blocks width"]
    count: int

    def result(self) -> PyTree:
        """The results as NumPy arrays, in the order of the lanes; waits for them."""
        place = self.place.ravel()[: self.count]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place], jax.device_get(self.outcome))

    def lockstep(self, steps: Int[np.ndarray, " lanes"]) -> tuple[int, int]:
        """The steps that the lanes took, and those that were paid for because lanes of a block wait for the last."""
        width = self.place.shape[1]
        paid = sum(width * int(steps[i : i + width].max()) for i in range(0, len(steps), width))
        return int(steps.sum()), paid


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(function, mesh: Mesh, shared: PyTree, used: Bool[Array, " blocks"], blocks: PyTree) -> PyTree:
    """The function of every lane of every used block; all devices at once, none waits for another."""

    def one_block(shared, lanes):
        return jax.vmap(function, (None, 0))(shared, lanes)

    def on_one_device(shared, used, blocks):
        shapes = jax.eval_shape(one_block, shared, jax.tree.map(lambda x: x[0], blocks))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.map(
            lambda block: jax.lax.cond(block[0], lambda lanes: one_block(shared, lanes), lambda _: nothing, block[1]),
            (used, blocks),
        )

    lanes, same = PartitionSpec("lanes"), PartitionSpec()
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=(same, lanes, lanes), out_specs=lanes, check_vma=False)(
        shared, used, blocks
    )


def block_width(model: UFM, devices: Sequence[Device], lanes: int) -> int:
    """How many of some lanes run in lockstep: a few on a CPU, many on an accelerator, and no more than leave every
    device a block."""
    widest = ACCELERATOR_WIDTH
    if devices[0].platform == "cpu":
        widest = next((width for numbers, width in CPU_WIDTHS if state_size(model) <= numbers), 1)
    return max(1, min(widest, -(-lanes // len(devices))))


def state_size(model: UFM) -> int:
    """Numbers of a state in class-mean columns and compressed rows."""
    C = model.num_classes
    columns = C + min(model.num_features, model.num_samples - C)
    return min(model.num_features, C + columns) * (C + columns) + C


def chosen_devices(devices: Any) -> list[Device]:
    """The devices asked for: all local ones, the first few, or a list.

    Raises:
        UsageError: for none, more than there are, or what is neither a number nor devices.
    """
    chosen = jax.local_devices()
    if isinstance(devices, jax.Device):
        return [devices]
    if isinstance(devices, Iterable) and not isinstance(devices, str) and not hasattr(devices, "dtype"):
        given = list(devices)
        if not given or not all(isinstance(device, jax.Device) for device in given) or len(set(given)) < len(given):
            raise UsageError(f"devices must be a number or a list of different jax devices, got {shown(devices)}.")
        return given
    if devices is not None:
        check_integer("devices", devices)
        count: Any = devices
        if count > len(chosen):
            raise UsageError(
                f"devices={devices}, but JAX sees {len(chosen)}: ask for at most that many, or, on a CPU, call "
                f"fc.use_cpu_cores({count}) before JAX is first used."
            )
        return chosen[:count]
    return chosen

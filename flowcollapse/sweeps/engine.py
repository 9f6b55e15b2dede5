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

CPU_BLOCKS = 8
"""Blocks that a CPU device takes in one call: a fixed number, so that all sweeps of some shapes share a program."""

Device = Any
"""A `jax.Device`, which type checkers take for a variable."""


class Engine:
    """A function of one lane over many lanes, on some devices.

    Args:
        function: from `shared` and a pytree of one lane's numbers to a pytree of arrays. One compilation serves all
            engines whose functions are equal, whatever the number of lanes.
        width: lanes of a block. They run in lockstep, so lanes of like cost should follow each other.
        devices: where to run; default all local devices. Each takes every so-many-th block and stops by itself.
        shared: a pytree of arrays that all lanes have in common.
        blocks: how many blocks a device takes in one call of the program, which skips those that are not filled.

    Example:
        >>> import numpy as np
        >>> from flowcollapse.sweeps.engine import Engine
        >>> add = Engine(lambda shared, lane: shared + lane, width=4, shared=np.int32(10))
        >>> add.submit(np.arange(3)).result().tolist()
        [10, 11, 12]
    """

    def __init__(
        self,
        function: Callable[[Any, Any], PyTree],
        *,
        width: int,
        devices: Sequence[Device] | None = None,
        shared: PyTree = None,
        blocks: int | None = None,
    ):
        self.function, self.shared, self.width = function, shared, width
        self.devices = list(devices or jax.local_devices())
        self.blocks = blocks or CPU_BLOCKS if self.devices[0].platform == "cpu" else 1

    def submit(self, lanes: PyTree) -> "Submitted":
        """Start the computation of lanes, given as arrays with the lanes in front, and return at once."""
        count, at_once = len(jax.tree.leaves(lanes)[0]), len(self.devices) * self.blocks * self.width
        parts = (jax.tree.map(lambda x, i=i: x[i : i + at_once], lanes) for i in range(0, count, at_once))
        return Submitted([self._call(part) for part in parts], self.width)

    def _call(self, lanes: PyTree) -> tuple[PyTree, Int[np.ndarray, " lanes"]]:
        """The flat outcome of one call of the program, and where the lanes stand in it."""
        count, devices = len(jax.tree.leaves(lanes)[0]), len(self.devices)
        used, blocks = -(-count // self.width), devices * self.blocks
        # Block j goes to device j mod devices. The last one is filled up with copies of the last lane.
        members = np.minimum(np.arange(blocks * self.width), count - 1).reshape(-1, self.width)
        dealt = np.arange(blocks).reshape(self.blocks, devices).T.ravel()
        index = members[dealt]
        mesh = Mesh(np.array(self.devices), ("lanes",))
        outcome = _run(self.function, mesh, self.shared, dealt < used, jax.tree.map(lambda x: x[index], lanes))
        place = np.argsort(dealt)[:used, None] * self.width + np.arange(self.width)
        return outcome, place.ravel()[:count]


class Submitted(NamedTuple):
    """Lanes under way: the calls that compute them, and how many run in lockstep."""

    calls: list[tuple[PyTree, Int[np.ndarray, " lanes"]]]
    width: int

    def result(self) -> PyTree:
        """The results as NumPy arrays, in the order of the lanes; waits for them."""
        parts = [
            jax.tree.map(lambda x, place=place: x.reshape(-1, *x.shape[2:])[place], jax.device_get(outcome))
            for outcome, place in self.calls
        ]
        return jax.tree.map(lambda *several: np.concatenate(several), *parts)

    def lockstep(self, steps: Int[np.ndarray, " lanes"]) -> tuple[int, int]:
        """The steps that the lanes took, and those that were paid for because lanes of a block wait for the last."""
        width = self.width
        paid = sum(width * int(steps[i : i + width].max()) for i in range(0, len(steps), width))
        return int(steps.sum()), paid


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(function, mesh: Mesh, shared: PyTree, used: Bool[Array, " blocks"], blocks: PyTree) -> PyTree:
    """The function of every lane of every used block; all devices at once, none waits for another."""

    one_block = jax.jit(jax.vmap(function, (None, 0)))  # as a program, so that its shapes and its use are traced once

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
            raise UsageError(
                f"devices must be a number or a list of different jax devices, got {shown(devices)}: "
                "choose from jax.devices()."
            )
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

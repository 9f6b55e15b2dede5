"""How lanes run on devices: each device runs blocks of lanes in lockstep, one block after another."""

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
from ..programs import thorough

CPU_BLOCKS = 8
"""Blocks that a CPU device takes in one call. The number is fixed so that sweeps of equal shapes share a program."""

Device = Any
"""A `jax.Device`; type checkers do not accept that name as a type."""


class Engine:
    """Applies a function of one lane to many lanes, on one or more devices.

    Args:
        function: maps `shared` and a pytree of one lane's numbers to a pytree of arrays. Engines with equal functions
            share one compilation, whatever the number of lanes.
        width: lanes in a block. They run in lockstep, so neighbouring lanes should have similar cost.
        devices: where to run; default all local devices. Blocks are dealt to the devices in turn, and each device stops
            independently of the others.
        shared: a pytree of arrays that all lanes have in common.
        blocks: how many blocks a device takes in one call of the program. The program skips empty blocks.

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
        """Start computing lanes and return immediately; the lanes are the leading axis of each array."""
        count, at_once = len(jax.tree.leaves(lanes)[0]), len(self.devices) * self.blocks * self.width
        parts = (jax.tree.map(lambda x, i=i: x[i : i + at_once], lanes) for i in range(0, count, at_once))
        return Submitted([self._call(part) for part in parts], self.width)

    def _call(self, lanes: PyTree) -> tuple[PyTree, Int[np.ndarray, " lanes"]]:
        """The flat outcome of one call of the program, and the position of each lane in it."""
        count, devices = len(jax.tree.leaves(lanes)[0]), len(self.devices)
        used, blocks = -(-count // self.width), devices * self.blocks
        # Block j goes to device j mod devices. Copies of the last lane fill the last block.
        members = np.minimum(np.arange(blocks * self.width), count - 1).reshape(-1, self.width)
        dealt = np.arange(blocks).reshape(self.blocks, devices).T.ravel()
        index = members[dealt]
        mesh = Mesh(np.array(self.devices), ("lanes",))
        run = _program(self.devices[0].platform)
        outcome = run(self.function, mesh, self.shared, dealt < used, jax.tree.map(lambda x: x[index], lanes))
        place = np.argsort(dealt)[:used, None] * self.width + np.arange(self.width)
        return outcome, place.ravel()[:count]


class Submitted(NamedTuple):
    """Lanes being computed: the calls that compute them, and how many run in lockstep."""

    calls: list[tuple[PyTree, Int[np.ndarray, " lanes"]]]
    width: int

    def result(self) -> PyTree:
        """Wait for the results and return them as NumPy arrays, in the order of the lanes."""
        parts = [
            jax.tree.map(lambda x, place=place: x.reshape(-1, *x.shape[2:])[place], jax.device_get(outcome))
            for outcome, place in self.calls
        ]
        return jax.tree.map(lambda *several: np.concatenate(several), *parts)

    def lockstep(self, steps: Int[np.ndarray, " lanes"]) -> tuple[int, int]:
        """The steps the lanes took, and the steps computed, because every lane of a block waits for the slowest."""
        width = self.width
        paid = sum(width * int(steps[i : i + width].max()) for i in range(0, len(steps), width))
        return int(steps.sum()), paid


@functools.cache
def _program(platform: str) -> Any:
    """The program of all engines on devices of a platform."""
    return jax.jit(_run, static_argnums=(0, 1), compiler_options=thorough() if platform == "cpu" else None)


def _run(function, mesh: Mesh, shared: PyTree, used: Bool[Array, " blocks"], blocks: PyTree) -> PyTree:
    """Apply the function to every lane of every used block, on all devices at once; no device waits for another."""

    one_block = jax.jit(jax.vmap(function, (None, 0)))  # jitted so that `eval_shape` and `map` share one trace

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
    """The requested devices: all local ones, the first few, or a list.

    Raises:
        UsageError: for no device, for more devices than there are, and for anything else than a number or devices.
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

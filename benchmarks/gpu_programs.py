"""Compiled programs of many lanes, and how to read them: kernels a step, memory a lane, a trace. Parts of `gpu.py`."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from fresh_process import Row
from sweep_run import METRICS, MODEL, SAVES

import flowcollapse as fc
from flowcollapse.sweeps.capacity import bytes_at_work

EPS = 0.1
STEPS = 500
METHODS: dict[str, Any] = {
    "flow": fc.Flow(rtol=1e-6),
    "flow, tsit5": fc.Flow("tsit5", rtol=1e-6),
    "sgd": fc.Descent("sgd", STEPS, learning_rate=0.05),
    "adam": fc.Descent("adam", STEPS, learning_rate=0.01),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where and how the parts measure: the device, whether they are small, the folder for files, and the seconds that
    the part `throughput` may take."""

    device: Any
    quick: bool
    folder: Path | None
    seconds: float

    @property
    def accelerator(self) -> bool:
        return self.device.platform != "cpu"


@functools.cache
def lanes_program(name: str, lanes: int, saves: int) -> tuple[Any, jax.Array]:
    """The compiled program of this many lanes of a method in lockstep, each to its end, and its argument."""
    method, names = METHODS[name], METRICS if saves else ()

    def one(key: jax.Array) -> Any:
        path = fc.simulate(MODEL, fc.initial.sphere(MODEL, EPS, key=key), method, saves or 2, metrics=names)
        return path.metrics, path.end, path.stats

    keys = jax.random.split(jax.random.key(0), lanes)
    return jax.jit(jax.vmap(one)).lower(keys).compile(), keys


# --- kernels ------------------------------------------------------------------------------------------------------

FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
"""Instructions of XLA that no device executes."""

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?\S+ = .*? ([a-z][a-z0-9-]*)\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
CALLED = re.compile(
    r"\b(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.-]+))"
)
TRIPS = re.compile(r"known_trip_count\D*(\d+)")


class Instruction:
    """One instruction of a compiled program: its name, the computations it runs, and how often if that is known."""

    def __init__(self, opcode: str, line: str):
        self.opcode = opcode
        self.called = [name.strip().lstrip("%") for found in CALLED.findall(line) for name in "".join(found).split(",")]
        trips = TRIPS.search(line)
        self.trips = int(trips[1]) if trips else None


class Kernels:
    """Counts the kernels that a compiled program launches, from its text in XLA's format.

    Each fusion, library call or other instruction that a device executes counts as one. A loop counts as often
    as it turns, or once if only its data tell how often, and a branch counts as its longest side.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, inside = "", ""
        for line in text.splitlines():
            if head := COMPUTATION.match(line):
                inside = head[2]
                self.computations[inside] = []
                self.entry = inside if head[1] else self.entry
            elif found := INSTRUCTION.match(line):
                self.computations[inside].append(Instruction(found[1], line))

    def of(self, name: str) -> int:
        """The kernels of one pass through a computation."""
        return sum(map(self._of_instruction, self.computations.get(name, [])))

    def _of_instruction(self, one: Instruction) -> int:
        if one.opcode in FREE or one.opcode.endswith("-done"):
            return 0
        if one.opcode == "while":
            return (one.trips or 1) * sum(map(self.of, one.called))
        if one.opcode == "conditional":
            return max(map(self.of, one.called), default=0)
        if one.opcode in ("call", "async-start"):
            return sum(map(self.of, one.called))
        return 1

    def of_one_step(self) -> int:
        """The kernels of one turn of the longest loop: of those that end by a test of their data, if there are any."""
        every = [one for instructions in self.computations.values() for one in instructions if one.opcode == "while"]
        loops = [one for one in every if one.trips is None] or every
        longest = max(loops, key=self._of_instruction)
        return self._of_instruction(longest) // (longest.trips or 1)


def kernels(setting: Setting) -> Iterator[Row]:
    """Kernels a step of each method, counted in the compiled program."""
    lanes = 16 if setting.quick else 4096
    for name in ("flow",) if setting.quick else METHODS:
        for saves in (0,) if setting.quick else (0, SAVES):
            text = lanes_program(name, lanes, saves)[0].as_text()
            found = Kernels(text)
            row: Row = {"method": name, "lanes": lanes, "saves": saves, "kernels_a_step": found.of_one_step()}
            yield row | {"kernels_once": found.of(found.entry) - found.of_one_step()}


# --- memory -------------------------------------------------------------------------------------------------------


def memory(setting: Setting) -> Iterator[Row]:
    """Bytes a lane as the compiler plans them, as the device counts them, and as `fc.sweep` expects them.

    The device only tells its peak since the process began, so its number is given where a run raised the peak.
    """
    before = peak_bytes(setting.device)
    for name in ("flow",) if setting.quick else ("flow", "sgd"):
        for saves in (0,) if setting.quick else (0, SAVES):
            for lanes in (16,) if setting.quick else (4096, 32768):
                program, keys = lanes_program(name, lanes, saves)
                planned = program.memory_analysis()
                row: Row = {"method": name, "saves": saves, "lanes": lanes}
                row |= {"expected_a_lane": bytes_at_work(MODEL, saves)}
                if planned is not None:
                    kinds = ("argument", "output", "temp")
                    row |= {f"{kind}_a_lane": getattr(planned, f"{kind}_size_in_bytes") / lanes for kind in kinds}
                jax.block_until_ready(program(keys))
                after = peak_bytes(setting.device)
                if after is None:
                    row["remark"] = "the device does not count its bytes"
                elif before is None or after > before:
                    row["peak_a_lane"] = after / lanes
                before = after
                yield row


def peak_bytes(device: Any) -> int | None:
    """The most bytes that were in use on a device so far, or None if it does not count them."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


# --- a trace ------------------------------------------------------------------------------------------------------


def profile(setting: Setting) -> Iterator[Row]:
    """A trace of one run of the flow in the folder `trace`, and the kernels in it that ran on the device."""
    if setting.folder is None:
        yield {"skipped": "a trace needs a folder: give --out"}
        return
    lanes = 16 if setting.quick else 4096
    program, keys = lanes_program("flow", lanes, 0)
    jax.block_until_ready(program(keys))
    folder = setting.folder / "trace"
    try:
        with jax.profiler.trace(str(folder)):
            *_, stats = jax.block_until_ready(program(keys))
    except RuntimeError as error:
        yield {"skipped": f"this version of JAX cannot trace here: {str(error).splitlines()[0][:200]}"}
        return
    steps = int(jnp.max(stats["accepted"] + stats["rejected"]))  # lanes wait for the slowest
    row: Row = {"method": "flow", "lanes": lanes, "steps": steps, "folder": folder.name}
    latest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime, default=None)
    if latest is None or not setting.accelerator:
        yield row | {"remark": "no kernels of an accelerator in it"}
        return
    seconds = times_of_kernels(latest)
    count, total = sum(len(times) for times in seconds.values()), sum(map(sum, seconds.values()))
    yield row | {"kernels": count, "kernels_a_step": count / steps, "busy_s": total}
    for name, times in sorted(seconds.items(), key=lambda item: -sum(item[1]))[:5]:
        yield {"kernel": name[:80], "launches": len(times), "share": sum(times) / total}


def times_of_kernels(path: Path) -> dict[str, list[float]]:
    """The seconds of each launch on a device in a trace, by the name of the kernel."""
    found: dict[str, list[float]] = {}
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            # A GPU has a line for each stream; a TPU has one for its operations. The other lines repeat them.
            if line.name.startswith("Stream") or line.name == "XLA Ops":
                for event in line.events:
                    found.setdefault(event.name, []).append(event.duration_ns / 1e9)
    return found


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {part.__name__: part for part in (kernels, memory, profile)}

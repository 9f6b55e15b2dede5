"""The numbers of a device against those of a CPU: every start, metric and method. A part of `gpu.py`.

A block of lanes in lockstep on the device is compared with each of its lanes alone on a CPU of the same process. On a
machine without an accelerator the block runs on the CPU too, so that two different programs are still compared.

Deviations are largest differences divided by the largest entry of the lane alone, for each array or curve, and the
largest over lanes counts. Bounds follow from the precision: single evaluations may differ by `EVALUATION` roundings and
descents by `DESCENT`. Flows take the tolerance `eps^(2/3)` and may differ by `FLOW` times it, because one device may
reject a step that the other just accepts. All bounds for float32 but that of descents are below the error of a product
in reduced precision, a two-thousandth, which is an accelerator's default.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from fresh_process import Row, cores
from gpu_programs import Setting

import flowcollapse as fc
from flowcollapse.cli.doctor import CHECKS
from flowcollapse.initial import STARTS
from flowcollapse.methods.solvers.registry import SOLVERS
from flowcollapse.metrics.registry import available
from flowcollapse.programs import QUICK

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 15}
SQUARED = fc.UFM(**SIZES)
DECAYED = fc.UFM(**SIZES, weight_decay=0.01)
CROSS_ENTROPY = fc.UFM(**SIZES, loss="cross-entropy", weight_decay=0.01)
LANES = 4
STEPS = 200
EPS = 0.1

EVALUATION, DESCENT, FLOW = 2.0**9, 2.0**13, 8.0
"""Bounds in units of the rounding error, and for flows of the tolerance."""

Named = dict[str, jax.Array]


class Item(NamedTuple):
    """A group of numbers: a function of one lane's input that returns them by name, all inputs, and their bound."""

    name: str
    function: Callable[[Any], Named]
    inputs: Any
    bound: float


def correctness(setting: Setting) -> Iterator[Row]:
    """The checks of `flowcollapse doctor` that concern a device, then a row for each item in each precision."""
    for name in ("precision", "compiler"):
        for fine, text in CHECKS[name]():
            yield {"item": f"doctor: {name}", "fine": fine, "remark": text}
    precisions = ("float32",) if setting.quick else ("float64", "float32")
    todo = [item for precision in precisions for item in items(np.dtype(precision), setting.quick)]
    # Compiling takes nearly all of the time, and releases Python's lock.
    with ThreadPoolExecutor(min(8, len(cores()))) as pool:
        yield from pool.map(lambda item: attempted(item, setting.device), todo)


def items(dtype: np.dtype, quick: bool) -> Iterator[Item]:
    """All that is compared in one precision; `quick` leaves out most of what takes long to compile."""
    eps = float(np.finfo(dtype).eps)
    if not quick:
        yield Item("start", functools.partial(starts, dtype=dtype), np.arange(LANES), EVALUATION * eps)
    for model in (SQUARED,) if quick else (SQUARED, CROSS_ENTROPY):
        inputs = (random_states(dtype, 1.0, seed=0), random_states(dtype, 1.0, seed=1))
        yield Item(f"metric, {model.loss.text}", functools.partial(metrics, model), inputs, EVALUATION * eps)
    rtol = eps ** (2 / 3)
    for name, (model, method) in methods(rtol).items():
        if quick and name != "descent: sgd":
            continue
        bound = DESCENT * eps if isinstance(method, fc.Descent) else FLOW * rtol
        yield Item(name, functools.partial(run, model, method), random_states(dtype, EPS, seed=2), bound)


def random_states(dtype: np.dtype, scale: float, seed: int) -> dict[str, np.ndarray]:
    """Normal states as inputs, one per lane, whose H, W and b have about this norm."""
    rng, (C, p, samples) = np.random.default_rng(seed), (SQUARED.num_classes, 15, SQUARED.num_samples)
    shapes = {"H": (p, samples), "W": (C, p), "b": (C,)}
    return {
        name: (scale / np.prod(shape) ** 0.5 * rng.normal(size=(LANES, *shape))).astype(dtype)
        for name, shape in shapes.items()
    }


def starts(seed: jax.Array, dtype: np.dtype) -> Named:
    """One start of each kind."""
    key = jax.random.key(seed)
    drawn = {name: draw(SQUARED, EPS, key=key, dtype=dtype) for name, draw in STARTS.items()}
    drawn["collapsed"] = fc.initial.collapsed(SQUARED, key=key, dtype=dtype)
    drawn["sphere, reduced"] = fc.initial.sphere(SQUARED, EPS, key=key, reduced=True, dtype=dtype)
    return {f"{name}: {part}": getattr(state, part) for name, state in drawn.items() for part in ("H", "W", "b")}


def metrics(model: fc.UFM, states: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Named:
    """Every metric of a state, against another one where a metric needs a start."""
    state, start = (fc.State(**arrays) for arrays in states)
    return fc.metrics.evaluate(model, state, available(model), start=start)


def methods(rtol: float) -> dict[str, tuple[fc.UFM, Any]]:
    """Every method, with its model."""
    found: dict[str, tuple[fc.UFM, Any]] = {f"flow: {name}": (SQUARED, fc.Flow(name, rtol=rtol)) for name in SOLVERS}
    return found | {
        "flow: implicit approach": (DECAYED, fc.Flow(rtol=rtol, approach="implicit")),
        "flow: logarithmic clock": (fc.UFM(**SIZES, loss="cross-entropy"), fc.Flow(rtol=rtol, clock="log", t1=100.0)),
        "modified flow": (SQUARED, fc.ModifiedFlow(0.05, rtol=rtol, t1=20.0)),
        "heavy-ball flow": (SQUARED, fc.HeavyBallFlow(0.05, 0.5, rtol=rtol, t1=20.0)),
        "descent: sgd": (SQUARED, fc.Descent("sgd", STEPS, learning_rate=0.05)),
        "descent: momentum": (SQUARED, fc.Descent("sgd", STEPS, learning_rate=0.05, momentum=0.9)),
        "descent: adam": (SQUARED, fc.Descent("adam", STEPS, learning_rate=0.01)),
    }


def run(model: fc.UFM, method: Any, arrays: Mapping[str, Any]) -> Named:
    """The end of a run and two curves of it."""
    path = fc.simulate(model, fc.State(**arrays), method, 5, metrics=("risk", "nc3"))
    return {"W": path.end.W, "X": path.end.X, "b": path.end.b, **path.metrics, "t_end": path.t_end}


def attempted(item: Item, device: Any) -> Row:
    """`compared`, or the reason why it failed, so that the other items are still compared."""
    try:
        return compared(item, device)
    except Exception as error:
        return {"item": item.name, "failed": f"{type(error).__name__}: {error}"[:300]}


def compared(item: Item, device: Any) -> Row:
    """The largest deviation in an item, and those of all its numbers."""
    cpu = jax.devices("cpu")[0]
    block = jax.device_get(jax.jit(jax.vmap(item.function))(jax.device_put(item.inputs, device)))
    alone = jax.jit(item.function, compiler_options=QUICK)
    lanes = [jax.tree.map(lambda x, i=i: x[i], item.inputs) for i in range(LANES)]
    single = [jax.device_get(alone(jax.device_put(lane, cpu))) for lane in lanes]
    found = {name: max(deviation(x[i], single[i][name]) for i in range(LANES)) for name, x in block.items()}
    worst = max(found, key=found.__getitem__)
    row: Row = {"item": item.name, "precision": block[worst].dtype.name, "deviation": found[worst], "of": worst}
    return row | {"bound": item.bound, "fine": found[worst] <= item.bound, "deviations": found}


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest entry. NaN equals NaN, and nothing else."""
    if np.any(np.isnan(found) != np.isnan(expected)):
        return float("inf")
    size = np.nanmax(np.abs(expected), initial=0.0)
    difference = np.nanmax(np.abs(found - expected), initial=0.0)
    return float(difference / size) if size else float(difference)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {"correctness": correctness}

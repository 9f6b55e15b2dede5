"""Wrong kinds of values at every argument of every public function, one argument at a time.

Run it as a program from an empty folder, because the shape checks of the suite would refuse such values before the
package sees them. `python wrong_kinds.py FILE` writes, for each function, the calls that gave neither a result nor a
`UsageError` with a cure. Programs are traced but not compiled, and return zeros. Sweeps end just before they compute,
when everything has been checked. A function is public if it is a public name of the package or has an example in its
docstring.
"""

import contextlib
import functools
import gc
import importlib
import io
import json
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from matplotlib.figure import Figure

PROGRAM = __name__ == "__main__"


DECIDING = {"_reach", "_step_times"}
"""Programs whose results decide about refusals; these are compiled."""

compiled = eqx.filter_jit


def is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def traced(program: Callable) -> Callable:
    """A substitute for a compiled program: it is traced, once per kind of arguments, and returns zeros or True."""
    deciding = compiled(program) if program.__name__ in DECIDING else None
    known: dict[Any, Any] = {}

    @functools.wraps(program)
    def run(*args, quick: bool = False, **options):
        if deciding is not None:
            return deciding(*args, **options)
        leaves, structure = jax.tree.flatten((args, options))
        kinds = (jax.typeof(x) if eqx.is_array(x) else (type(x), x) for x in leaves)
        key = structure, *kinds, jax.config.read("jax_enable_x64")
        if key not in known:
            known[key] = eqx.filter_eval_shape(program, *args, **options)
        return jax.tree.map(lambda x: jnp.full(x.shape, x.dtype == bool, x.dtype) if is_shape(x) else x, known[key])

    return run


if PROGRAM:  # before the rest of the package loads
    eqx.filter_jit = traced
    importlib.import_module("flowcollapse.programs").Program = traced  # pyright: ignore

from cures import has_cure  # noqa: E402
from wrong_datasets import (  # noqa: E402
    ACCUMULATOR,
    comparison_dataset,
    features_file,
    film_dataset,
    measured_curves,
    measurement_dataset,
    methods,
    picture_dataset,
    run_dataset,
    stability_dataset,
    sweep_dataset,
)
from wrong_values import (  # noqa: E402
    KEY,
    KINDS,
    LOGITS,
    MODEL,
    NARROW,
    NO_BIAS,
    ON_S,
    SEPARABLE,
    SIZES,
    START,
    STEPPED,
    aligned,
    nested,
    second_phase,
)

import flowcollapse as fc  # noqa: E402
from flowcollapse.sweeps.engine import Engine  # noqa: E402
from flowcollapse.theory import certificate  # noqa: E402

TIMES = [0.0, 1.0]

RESULTS = {"Fit", "Trajectory", "Verdict"}
"""Public classes that the package creates and users only read."""

INTERNAL = {f"flowcollapse.{name}" for name in ("cli", "theory.laws", "sweeps.engine", "comparison.table")}
"""Internal modules, although some of their functions have examples."""


def store() -> str:
    """The store of a sweep that ended before its first lane."""
    with contextlib.suppress(Reached):
        fc.sweep(MODEL, fc.Flow("tsit5"), eps=[0.1], seeds=1, ts=2, metrics="risk", store="a store", progress=False)
    return "a store"


# fmt: off
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "UFM": lambda: SIZES | {"weight_decay": 0.0, "use_bias": True, "loss": "squared", "reduction": "sum"},
    "State": lambda: {"H": START.H, "W": START.W, "b": START.b, "columns": None},
    "Flow": lambda: {
        "solver": "tsit5", "rtol": 1e-3, "atol": 1e-3, "t1": 1.0, "max_steps": 9, "coordinates": "auto", "mesh": None,
        "clock": "auto",
    },
    "Descent": lambda: {
        "optimizer": "sgd", "num_steps": 2, "t1": 1.0, "coordinates": "sample", "learning_rate": 0.1, "momentum": 0.5
    },
    "ModifiedFlow": lambda: {"learning_rate": 0.1, "momentum": 0.5, "nesterov": False, "solver": "tsit5", "t1": 1.0},
    "HeavyBallFlow": lambda: {"learning_rate": 0.1, "momentum": 0.5, "nesterov": False, "solver": "tsit5", "t1": 1.0},
    "compare": lambda: {
        "model": MODEL, "start": "sphere", "optimizers": {"sgd": fc.Descent("sgd", 20)}, "ts": [1.0], "eps": [0.1],
        "metrics": ["risk"], "flow": fc.Flow("tsit5"), "num_steps": 20, "keep_final": False, "devices": 1,
        "width": 1, "progress": False, "learning_rate": [0.1], "seeds": 1,
    },
    "enable_compilation_cache": lambda: {"folder": None},
    "enable_x64": lambda: {"enable": True},
    "use_cpu_cores": lambda: {"count": 1},
    "fit": lambda: {
        "curves": measured_curves(), "num_classes": 3, "samples_per_class": 3, "num_features": 4, "use_bias": True,
        "reduction": "sum", "penalised": False, "metrics": ["risk"], "decay": 0.0, "confidence": 0.9, "tolerance": 0.1,
    },
    "hessian_spectrum": lambda: {"model": MODEL, "state": START, "num": 2, "which": "largest", "iterations": 4},
    "open_sweep": lambda: {"path": store()},
    "measure": lambda: {
        "files": features_file(), "labels": None, "classifier": None, "ood": None, "by": "epoch", "arrays": None,
        "classes": None, "ignore_label": None, "metrics": ["nc1"], "two_passes": False, "progress": False,
    },
    "predict": lambda: {"model": MODEL, "start": START, "ts": TIMES, "metrics": ["risk"]},
    "report": lambda: {"results": sweep_dataset(), "file": "page.html"},
    "risk": lambda: {"model": MODEL, "state": START},
    "sharpness": lambda: {"model": MODEL, "state": START, "iterations": 4},
    "simulate": lambda: {
        "model": MODEL, "start": START, "method": fc.Descent("sgd", 2, learning_rate=0.1), "ts": 2,
        "save_states": False, "metrics": ["risk"],
    },
    "sweep": lambda: {
        "model": MODEL, "method": fc.Descent("sgd", 2, learning_rate=0.1), "eps": [0.1], "seeds": 1, "ts": 2,
        "metrics": ["risk"], "store": None, "devices": 1, "progress": False, "start": "sphere", "keep_final": False,
        "width": 1, "lanes_per_task": 1, "scheduler": None, "distributed": False, "learning_rate": [0.1],
    },
    "to_class_means": lambda: {"model": MODEL, "state": START},
    "velocity": lambda: {"model": MODEL, "state": START},
    "curvature.hessian.hessian_vector_product": lambda: {"model": MODEL, "state": START, "direction": START},
    "curvature.hessian.hessian_trace": lambda: {"model": MODEL, "state": START},
    "curvature.spectrum.spectral_density": lambda: {
        "model": MODEL, "state": START, "key": KEY, "probes": 1, "iterations": 4,
    },
    "gallery.registry.run": lambda: {"name": "margin", "progress": False},
    "gallery.registry.draw": lambda: {"dataset": picture_dataset()},
    "gallery.registry.table": lambda: {"dataset": picture_dataset()},
    "gallery.registry.write": lambda: {"dataset": picture_dataset(), "folder": "pictures"},
    "initial.sphere": lambda: {"model": MODEL, "eps": 0.1, "key": KEY, "reduced": False, "dtype": None},
    "initial.class_means": lambda: {"model": MODEL, "eps": 0.1, "key": KEY, "dtype": None},
    "initial.on_subspace": lambda: {"model": MODEL, "eps": 0.1, "key": KEY, "dtype": None},
    "initial.balanced": lambda: {"model": MODEL, "eps": 0.1, "key": KEY, "dtype": None},
    "initial.collapsed": lambda: {"model": MODEL, "key": KEY, "dtype": None},
    "metrics.evaluation.evaluate": lambda: {"model": MODEL, "state": START, "names": ["snc1"], "start": START},
    "metrics.evaluation.snc": lambda: {"model": MODEL, "state": START},
    "metrics.features.from_features": lambda: {
        "features": np.eye(3), "labels": [0, 0, 1], "W": np.ones((2, 3)), "b": np.zeros(2), "classes": None,
        "ignore_label": None, "ood": np.ones((1, 3)), "metrics": ["nc1"],
    },
    **ACCUMULATOR,
    "plot.comparison.comparison_paths": lambda: {
        "dataset": comparison_dataset().isel(eps=0), "name": "snc1", "ax": None
    },
    "plot.comparison.comparison_distance": lambda: {"dataset": comparison_dataset().isel(eps=0), "ax": None},
    "plot.comparison.comparison_ends": lambda: {
        "dataset": comparison_dataset(), "name": "snc1", "ax": None, "along": "eps"
    },
    "plot.comparison.comparison": lambda: {"dataset": comparison_dataset(), "name": "snc1"},
    "plot.measured.measurement": lambda: {"dataset": measurement_dataset(), "ax": None, "name": "nc1"},
    "plot.moving.animate": lambda: {"run": film_dataset(), "frames": 2, "fps": 10, "samples": 1},
    "plot.overview.sweep": lambda: {"dataset": sweep_dataset(), "name": "snc1"},
    "plot.paper.figure1": lambda: {"dataset": sweep_dataset(), "ax": None, "seed": 0},
    "plot.paper.figure2": lambda: {"dataset": sweep_dataset(), "ax": None, "seed": 0},
    "plot.paper.path": lambda: {"dataset": run_dataset(), "ax": None},
    "plot.stability.stability": lambda: {"dataset": stability_dataset(), "ax": None, "name": "snc1"},
    "plot.sweeps.bands": lambda: {"dataset": sweep_dataset(), "name": "snc1", "ax": None, "along": "eps"},
    "plot.sweeps.limit": lambda: {"dataset": sweep_dataset(), "name": "snc1", "ax": None, "against": "eps"},
    "plot.sweeps.heatmap": lambda: {
        "dataset": stability_dataset(), "name": "snc1", "ax": None, "x": "learning_rate", "y": "eps"
    },
    "plot.sweeps.verdicts": lambda: {"dataset": sweep_dataset(), "ax": None, "along": "eps"},
    "reproduce.run": lambda: {
        "eps": [0.1], "seeds": 1, "seed_shown": 0, "learning_rate": 0.1, "rtol": 1e-2, "solver": "tsit5", "t1": 1.0,
        "progress": False,
    },
    "model.problem.problem_of": lambda: {"model": MODEL, "state": START},
    "theory.certificate.verify": lambda: {"only": ["origin-modes"], "report": None},
    "theory.small_starts.curves.learning_curve": lambda: {
        "model": MODEL, "start": START, "ts": TIMES, "corrected": True,
    },
    "theory.small_starts.curves.descent_curve": lambda: {
        "model": MODEL, "start": START, "learning_rate": 0.1, "num_steps": 2,
    },
    "theory.small_starts.curves.mean_modes": lambda: {"model": MODEL, "start": START, "ts": TIMES},
    "theory.minima.minimiser": lambda: {"model": LOGITS},
    "theory.frames.transition": lambda: {"model": LOGITS},
    "theory.optimality.certify": lambda: {"model": MODEL, "state": START, "rtol": 1e-3},
    "theory.max_margin.margin": lambda: {"model": SEPARABLE},
    "theory.max_margin.seli": lambda: {"model": SEPARABLE},
    "theory.max_margin.powers": lambda: {"model": SEPARABLE},
    "theory.max_margin.memory": lambda: {"model": NARROW, "start": fc.initial.sphere(NARROW, 1.0, key=KEY)},
    "theory.max_margin.time_on_ray": lambda: {"model": SEPARABLE, "rho": 1.0, "rho0": 0.1},
    "theory.max_margin.logit_on_ray": lambda: {"model": SEPARABLE, "log_time": 1.0, "rho0": 0.1},
    "theory.imbalance.class_thresholds": lambda: {"model": NO_BIAS},
    "theory.imbalance.vanishing_threshold": lambda: {"model": MODEL},
    "theory.imbalance.free_bias": lambda: {"model": MODEL},
    "theory.imbalance.learning_times": lambda: {"model": STEPPED, "start": fc.initial.sphere(STEPPED, 0.1, key=KEY)},
    "theory.imbalance.gram": lambda: {"model": STEPPED, "start": aligned(), "ts": TIMES},
    "theory.exact.subspace_flow": lambda: {"model": MODEL, "start": ON_S, "ts": TIMES, "rtol": 1e-3},
    "theory.exact.subspace_descent": lambda: {
        "model": MODEL, "start": ON_S, "steps": [1], "learning_rate": 0.1, "rtol": 1e-3
    },
    "theory.exact.half_time": lambda: {"model": MODEL, "mu": 0.1},
    "theory.landscape.spectrum": lambda: {"model": MODEL, "rank": 1},
    "theory.landscape.critical_point": lambda: {"model": MODEL, "rank": 1, "key": KEY, "dtype": None},
    "theory.landscape.stability_threshold": lambda: {"model": MODEL},
    "theory.landscape.divergence_threshold": lambda: {"model": MODEL},
    "theory.landscape.settled_eigenvalue": lambda: {"model": MODEL, "learning_rate": 0.1},
    "theory.small_starts.limits.plateau": lambda: {"model": MODEL, "start": START},
    "theory.small_starts.limits.imbalanced_limit": lambda: {"model": MODEL},
    "theory.small_starts.limits.decay_limit": lambda: {"model": MODEL},
    "theory.small_starts.limits.plateau_time": lambda: {"model": MODEL, "start": START, "decay": 1.0},
    "theory.small_starts.limits.plateau_steps": lambda: {
        "model": MODEL, "start": START, "learning_rate": 0.1, "decay": 1.0,
    },
    "theory.small_starts.prediction.trajectory": lambda: {
        "model": MODEL, "start": START, "ts": TIMES, "metrics": ["risk"],
    },
    "theory.small_starts.prediction.states": lambda: {"model": MODEL, "start": START, "ts": TIMES},
    "theory.riccati.balanced_flow": lambda: {
        "model": NO_BIAS, "start": fc.initial.balanced(NO_BIAS, 0.1, key=KEY), "ts": TIMES, "rtol": 1e-3
    },
    "theory.riccati.second_phase": second_phase,
    "theory.small_starts.scaling.kappa": lambda: {"model": MODEL},
    "theory.small_starts.scaling.powers": lambda: {"model": MODEL},
    "theory.small_starts.scaling.rms": lambda: {"model": MODEL, "eps": 0.1},
    "theory.subspace.dimension": lambda: {"model": MODEL},
    "theory.subspace.project": lambda: {"model": MODEL, "state": START},
    "theory.subspace.distance": lambda: {"model": MODEL, "state": START},
    "theory.subspace.relative_distance": lambda: {"model": MODEL, "state": START},
    "theory.subspace.contains": lambda: {"model": MODEL, "state": START, "rtol": 1e-3},
    "theory.subspace.risk_parts": lambda: {"model": MODEL, "state": ON_S, "rtol": 1e-3},
}
# fmt: on
"""A valid call of each public function."""


def public_functions() -> dict[str, Callable]:
    """Every function and class that users call, by the name in `CALLS`."""
    found = {name: getattr(fc, name) for name in fc.__all__ if name not in RESULTS}
    found = {name: value for name, value in found.items() if callable(value) and not is_warning(value)}
    known = set(map(id, found.values()))
    for module in pkgutil.walk_packages(fc.__path__, "flowcollapse."):
        if "._" in module.name or any(module.name.startswith(name) for name in INTERNAL):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            own = isinstance(value, types.FunctionType) and value.__module__ == module.name and not name.startswith("_")
            if own and id(value) not in known and ">>>" in (value.__doc__ or ""):
                found[f"{module.name.removeprefix('flowcollapse.')}.{name}"] = value
    return found


def called() -> dict[str, Callable]:
    """Every function, class and method that `CALLS` has an example of."""
    return public_functions() | methods()


def is_warning(value: Any) -> bool:
    """Whether a class is a warning or an error, which users catch but never create."""
    return isinstance(value, type) and issubclass(value, BaseException)


def failures_of(function: Callable, valid: dict[str, Any], examples: int) -> Iterator[tuple[str, str, str]]:
    """`(argument, value, error)` for each error that is not a `UsageError`, or takes more than one line.

    The valid call must raise none.
    """
    error = attempt(function, valid, refusals=False)
    if error is not None:
        yield "a call that works", "", error
    for argument in valid:
        seen: dict[str, tuple[str, str]] = {}
        check = functools.partial(try_one, function, valid, argument, seen)
        for shown, make in KINDS.items():
            check(make(), shown)
        if examples > 0:
            throw_at(check, examples)
        yield from ((argument, shown, error) for shown, error in seen.values())


def try_one(
    function: Callable, valid: dict[str, Any], argument: str, seen: dict[str, tuple[str, str]], value: Any, shown: str
):
    """Keep the error of one call; for each type of error, keep the one with the shortest value."""
    error = attempt(function, valid | {argument: value})
    kind = error and error.partition(":")[0]
    if error and kind and (kind not in seen or len(shown) < len(seen[kind][0])):
        seen[kind] = shown, error


EVERY: Any = list(HealthCheck)  # slow calls are fine here


def throw_at(check: Callable[[Any, str], None], examples: int) -> None:
    """Try nested values that Hypothesis generates, the same in each run."""

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=EVERY)
    @given(nested)
    def throw(value):
        check(value, repr(value)[:80])

    throw()


def attempt(function: Callable, options: dict[str, Any], refusals: bool = True) -> str | None:
    """The fault of a call; None for a result or, if `refusals` are allowed, a `UsageError` of one line with a cure."""
    from matplotlib import pyplot

    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            function(**options)
    except Reached:
        return None
    except fc.UsageError as error:
        fine = refusals and "\n" not in str(error) and has_cure(str(error))
        return None if fine else f"a refusal: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        pyplot.close("all")
    return None


class Reached(Exception):
    """A sweep, a comparison or a certificate has checked its arguments and would now compute."""


def stop_before_computing() -> None:
    """Make sweeps and comparisons end before the first lane, and certificates before the first law.

    Pictures are not laid out.
    """

    def reached(*args, **options):
        raise Reached

    Engine.__init__ = reached
    certificate.measure = reached
    Figure.draw_without_rendering = lambda self: None


def main(file: str, *names: str, examples: int = 6) -> None:
    stop_before_computing()
    functions, calls = called(), {name: CALLS[name]() for name in names or CALLS}
    with Path(file).open("w") as lines:
        for name, valid in calls.items():
            failures = list(failures_of(functions[name], valid, examples))
            lines.write(json.dumps({"function": name, "failures": failures}) + "\n")
            lines.flush()
            fc.enable_x64()  # the call may have turned it off


if PROGRAM:
    import matplotlib as mpl

    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)  # traced programs are many objects that live long
    mpl.use("agg")
    main(*sys.argv[1:])

"""The program of a run, part by part: lines of StableHLO, and CPU seconds to trace and to compile.

    python benchmarks/programs.py

`quick` is how `fc.simulate` compiles one small run, `thorough` how `fc.sweep` compiles its lanes. The last rows are
plain diffrax: its Tsit5 for `y' = -y`, with the same number of saves.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp

import flowcollapse as fc
from flowcollapse.endings.choice import verdict
from flowcollapse.endings.plateau import plateau_time
from flowcollapse.endings.verdict import Ending
from flowcollapse.metrics.evaluation import observe_many
from flowcollapse.metrics.registry import checked_names
from flowcollapse.model.coordinates import enter
from flowcollapse.programs import QUICK
from flowcollapse.results.provenance import versions
from flowcollapse.simulation import as_arrays, without_arrays

MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
LANES = 32


def measured(name: str, function: Callable, *args: Any) -> dict[str, Any]:
    """The lines of a program, and the CPU seconds that it takes."""

    def program(*args):  # a new one each time, so that nothing is remembered
        return function(*args)

    began = time.process_time()
    lowered = jax.jit(program).lower(*args)
    traced = time.process_time()
    lowered.compile(compiler_options=QUICK)
    quick = time.process_time()
    lowered.compile()
    thorough = time.process_time()
    return {
        "part": name,
        "lines": lowered.as_text().count("\n"),
        "trace_s": traced - began,
        "quick_s": quick - traced,
        "thorough_s": thorough - quick,
    }


def plain_diffrax(y: jax.Array, ts: jax.Array) -> Any:
    """`y' = -y` in diffrax, as its manual has it."""
    control = dfx.PIDController(rtol=1e-8, atol=1e-8)
    term, solver = dfx.ODETerm(lambda t, y, args: -y), dfx.Tsit5()
    return dfx.diffeqsolve(term, solver, 0.0, ts[-1], 0.1, y, saveat=dfx.SaveAt(ts=ts), stepsize_controller=control).ys


def parts(saves: int) -> list[tuple[Any, ...]]:
    """Name, function and arguments of each part."""
    start = fc.initial.sphere(MODEL, eps=0.1, key=jax.random.key(0))
    model, explicit, tsit5, implicit = as_arrays(
        (MODEL, fc.Flow(approach="explicit"), fc.Flow("tsit5"), fc.Flow(approach="implicit")), start.W.dtype
    )
    _, problem, point = enter(model, start, "auto")
    bare, names = without_arrays(problem), checked_names(model, start.columns, None)
    ending = Ending(point, jnp.asarray(1.0), jnp.asarray(False), jnp.asarray(False))

    def copies(tree, count):
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)

    def end(flow):
        return lambda problem, point: flow.run(problem, point, saves, lambda _: ()).end

    def states(flow):
        return lambda problem, point: flow.run(problem, point, saves, None).observed

    def lanes(function):
        return jax.vmap(function, (None, 0))

    def metrics(problem, points, start):
        return observe_many(problem, points, names, start)

    return [
        ("into coordinates", lambda model, start: enter(model, start, "auto")[2], model, start),
        ("the field", lambda problem, point: problem.field(point), bare, point),
        ("plateau time", plateau_time, bare, point),
        (
            "verdict",
            lambda problem, point, ending: verdict(problem, point, ending, explicit.limit),
            bare,
            point,
            ending,
        ),
        (f"metrics at {saves} times", metrics, problem, copies(point, saves), point),
        ("the flow, nothing saved", end(explicit), bare, point),
        (f"the flow, {saves} saves", states(explicit), bare, point),
        (f"with an implicit approach, {saves} saves", states(implicit), bare, point),
        (f"Tsit5, {saves} saves", states(tsit5), bare, point),
        (f"{LANES} lanes, nothing saved", lanes(end(explicit)), bare, copies(point, LANES)),
        (f"{LANES} lanes, {saves} saves", lanes(states(explicit)), bare, copies(point, LANES)),
        (f"plain diffrax, {saves} saves", plain_diffrax, jnp.ones(3), jnp.linspace(0, 1, saves)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short programs only: does it run at all")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    fc.enable_x64()
    print(f"CPU seconds, jax {jax.__version__}")
    print(f"{'part':44s} {'lines':>6s} {'trace':>6s} {'quick':>6s} {'thorough':>8s}")
    rows = []
    for name, function, *args in parts(101)[: 4 if options.quick else None]:
        rows.append(row := measured(name, function, *args))
        print(f"{name:44s} {row['lines']:6d} {row['trace_s']:6.2f} {row['quick_s']:6.2f} {row['thorough_s']:8.2f}")
    if options.out:
        options.out.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""The cost of the default metrics of a run compared with the run itself, together and each metric separately.

    python benchmarks/metrics.py [--quick] [--only SIZE ...] [--rtol 1e-6] [--out metrics.json]

`bare` is the flow without metrics and saves, `saves` is the same run with 101 saved states, and `metrics` are the
default metrics of those states. For a large run, a few saved and measured states represent all 101. A size is C,N,p.
Pin the process to one core (`taskset -c 0`) and compare ratios.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import flowcollapse as fc
from flowcollapse.metrics.evaluation import observe_many
from flowcollapse.metrics.registry import checked_names
from flowcollapse.model.coordinates import enter
from flowcollapse.model.problem import Point, Problem
from flowcollapse.results.provenance import versions
from flowcollapse.simulation import NUM_SAVES

SIZES = ((3, 3, 15), (10, 100, 64), (100, 500, 512), (1000, 1, 512), (1000, 10, 512))
"""C, N, p."""

EPS = 1e-3

SAVED_NUMBERS = 2**24
"""The most numbers in all measured states together."""


def timed(run: Callable[[], Any], budget_s: float) -> tuple[float, Any]:
    """The shortest time of repeated calls of a compiled program, and its result."""
    best, result, began = float("inf"), None, time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < budget_s:
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return best, result


def program(problem: Problem, start: Point, names: tuple[str, ...]) -> tuple[Any, dict[str, float]]:
    """The metrics of points as a program, its lines of StableHLO, and the CPU seconds to trace and compile it."""

    def observed(points: Point, start: Point) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return observe_many(problem, points, names, start)

    W, X, b = (jax.ShapeDtypeStruct((NUM_SAVES, *x.shape), x.dtype) for x in start)
    began = time.process_time()
    lowered = jax.jit(observed).lower(Point(W, X, b), start)  # pyright: ignore[reportArgumentType]: shapes alone
    written = time.process_time()
    lines = len(lowered.as_text().splitlines())
    printed = time.process_time()
    lowered.compile()
    compiled = time.process_time()
    return observed, {"lines": lines, "trace_s": written - began, "compile_s": compiled - printed}


def measured(C: int, N: int, p: int, rtol: float, budget_s: float) -> dict[str, Any]:
    """The costs at one size, in seconds for all save times."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    start = fc.initial.sphere(model, EPS, key=jax.random.key(0), reduced=C * N * p > 2**20)
    names = checked_names(model, start.columns, None)
    _, problem, origin = enter(model, start, "auto")
    numbers, flow = sum(x.size for x in origin), fc.Flow(rtol=rtol)
    count = max(2, min(NUM_SAVES, SAVED_NUMBERS // numbers))

    def compiled(*args, **options):
        run = jax.jit(lambda start: fc.simulate(model, start, flow, *args, metrics=(), **options))
        return run.lower(start).compile()

    bare, saving = compiled(), compiled(count, save_states=True)

    def cost(names: tuple[str, ...]) -> tuple[float, dict[str, float]]:
        observe, about = program(problem, origin, names)
        run = jax.jit(observe).lower(points, origin).compile()
        return NUM_SAVES / count * timed(lambda: run(points, origin), budget_s)[0], about

    row: dict[str, Any] = {"C": C, "N": N, "p": p, "rtol": rtol, "numbers": numbers, "states": count}
    row["bare_s"], path = timed(lambda: bare(start), budget_s)
    row["evaluations"] = int(path.stats["evaluations"])
    row["saves_s"], path = timed(lambda: saving(start), budget_s)
    points = path.points
    row["metrics_s"], row["program"] = cost(names)
    row["alone_s"] = {name: cost((name,))[0] for name in names}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the paper's size, a few runs: does it run at all")
    parser.add_argument("--only", nargs="+", metavar="SIZE", help="sizes, such as 3,3,15")
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    fc.enable_x64()
    jax.config.update("jax_enable_compilation_cache", False)
    sizes = SIZES[:1] if options.quick else SIZES
    if options.only:
        sizes = [tuple(map(int, size.split(","))) for size in options.only]
    rows = []
    print("| C, N, p | evaluations | bare | saves | metrics | most expensive | lines, trace, compile |\n|" + "---|" * 7)
    for C, N, p in sizes:
        row = measured(C, N, p, options.rtol, 0.01 if options.quick else 2.0)
        rows.append(row)
        bare, about = row["bare_s"], row["program"]
        dearest = sorted(row["alone_s"].items(), key=lambda item: -item[1])[:4]
        cells = (
            f"{C}, {N}, {p}",
            f"{row['evaluations']}",
            f"{bare:.3g} s",
            f"{row['saves_s'] / bare:.2f}",
            f"{row['metrics_s'] / bare:.2f}",
            ", ".join(f"{name} {cost / bare:.2f}" for name, cost in dearest),
            f"{about['lines']}, {about['trace_s']:.2f} s, {about['compile_s']:.2f} s",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
    if options.out:
        about = {"versions": versions(), "device": jax.devices()[0].device_kind, "argv": sys.argv[1:]}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""What the default metrics of a run cost beside the run, and each metric by itself.

    python benchmarks/metrics.py [--quick] [--only SIZE ...] [--rtol 1e-6] [--out metrics.json]

`bare` is the flow without metrics and saves, `saves` adds the saved states, `metrics` the default metrics of those
states. Of large runs a few states stand for all save times. A size is C,N,p. Take one core (`taskset -c 0`) and read ratios.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import flowcollapse as fc
from flowcollapse.coordinates import enter
from flowcollapse.metrics import checked_names, observe_many
from flowcollapse.model import Point, Problem
from flowcollapse.provenance import versions
from flowcollapse.simulation import NUM_SAVES

SIZES = ((3, 3, 15), (10, 100, 64), (100, 500, 512), (1000, 1, 512), (1000, 10, 512), (1000, 100, 2048))
"""C, N, p."""

EPS = 1e-3

SAVED_NUMBERS = 2**24
"""The states that are measured hold at most this many numbers together."""

LONGEST_S = 3.0
"""A program is repeated for this long, and its fastest run counts."""


def seconds(run: Callable[[], Any]) -> float:
    """The shortest time of a call that has been compiled."""
    jax.block_until_ready(run())
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < LONGEST_S:
        start = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return best


def program(problem: Problem, start: Point, names: tuple[str, ...]) -> tuple[Any, dict[str, float]]:
    """The metrics of points as a program, the lines of it before XLA, and the seconds to write and to compile it."""

    def observed(points: Point, start: Point) -> dict[str, jax.Array]:
        with jax.default_matmul_precision("highest"):
            return observe_many(problem, points, names, start)

    def at(count: int) -> Point:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), start)

    began = time.perf_counter()
    lowered = jax.jit(observed).lower(at(NUM_SAVES), start)
    written = time.perf_counter()
    lines = len(lowered.as_text().splitlines())
    about_to = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
    return jax.jit(observed), {"lines": lines, "trace_s": written - began, "compile_s": compiled - about_to}


def measured(C: int, N: int, p: int, rtol: float) -> dict[str, Any]:
    """The costs at one size, per save time and in seconds."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    start = fc.initial.sphere(model, EPS, key=jax.random.key(0), reduced=C * N * p > 2**20)
    names = checked_names(model, start.columns, None)
    _, problem, origin = enter(model, start, "auto")
    size = sum(x.size for x in origin)
    flow = fc.Flow(rtol=rtol)
    bare = jax.jit(lambda start: fc.simulate(model, start, flow, metrics=()))
    row: dict[str, Any] = {
        "C": C,
        "N": N,
        "p": p,
        "rtol": rtol,
        "numbers": size,
        "bare_s": seconds(lambda: bare(start)),
    }
    row["evaluations"] = int(bare(start).stats["evaluations"])

    count = max(2, min(NUM_SAVES, SAVED_NUMBERS // size))
    saving = jax.jit(lambda start: fc.simulate(model, start, flow, count, metrics=(), save_states=True))
    row["saves_s"] = seconds(lambda: saving(start))
    points = saving(start).points
    scale = NUM_SAVES / count
    observe, row["program"] = program(problem, origin, names)
    row["metrics_s"] = scale * seconds(lambda: observe(points, origin))
    row["alone_s"] = {}
    for name in names:
        observe, _ = program(problem, origin, (name,))
        row["alone_s"][name] = scale * seconds(lambda observe=observe: observe(points, origin))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the paper's size, a few runs: does it run at all")
    parser.add_argument("--only", nargs="+", help="sizes, such as 3,3,15")
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    fc.enable_x64()
    sizes = [tuple(map(int, size.split(","))) for size in options.only or ()] or (SIZES[:1] if options.quick else SIZES)
    global LONGEST_S
    if options.quick:
        LONGEST_S = 0.01
    rows = []
    for size in sizes:
        row = measured(*size, options.rtol)
        rows.append(row)
        bare, about = row["bare_s"], row["program"]
        print(
            f"C, N, p = {row['C']}, {row['N']}, {row['p']}: bare {bare:.3g} s ({row['evaluations']} evaluations), "
            f"saves {row['saves_s'] / bare:.2f}, metrics {row['metrics_s'] / bare:.3f} of it; "
            f"{about['lines']} lines, written in {about['trace_s']:.2f} s, compiled in {about['compile_s']:.2f} s"
        )
        print("   " + ", ".join(f"{name} {cost / bare:.2%}" for name, cost in row["alone_s"].items()), flush=True)


if __name__ == "__main__":
    main()

"""Descent in batches: steps per second and core, ours against hand-written optax and torch; the cost of recording.

    python benchmarks/descent.py [--quick] [--lanes 1024] [--steps 2000] [--out descent.json]

Starts of norm 0.1, one per seed; C = N = 3, p = 15; gradient descent and Adam; float64, all in one process and on one
core. Ours is `fc.sweep`, once with five metrics at 200 points and once without. Compilation is timed separately: for
ours it is the time of the first call minus that of the fastest. Speed is steps per CPU second of the whole process. The
error is the largest relative distance, over lanes, between the end states of a program and those of the first program:
none is exact, but all take the same steps.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peer_batch import METRICS, PeerUnavailable, fastest, require

import flowcollapse as fc
from flowcollapse.results.provenance import versions

MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
TARGET = np.repeat(np.eye(3), 3, axis=1)
EPS = 0.1
SAVES = 200
BLOCK = 16
RATES = {"sgd": 0.05, "adam": 0.01}
AIM = 0.1
"""The fraction of extra time that recording at 200 points may take."""

Arrays = tuple[np.ndarray, ...]


class Run(NamedTuple):
    """The result of one program, `(H, W, b)` at the end with the lanes as leading axis, and its seconds."""

    end: Arrays
    compile_s: float
    wall_s: float
    cpu_s: float


def ours(optimizer: str, lanes: int, steps: int, repeats: int, record: bool, **options: Any) -> Run:
    """`fc.sweep`; `options` are passed on."""
    method = fc.Descent(optimizer, steps, learning_rate=RATES[optimizer])
    kept: dict[str, Any] = {"ts": SAVES, "metrics": METRICS} if record else {"ts": 1, "metrics": ()}

    def run() -> Any:
        return fc.sweep(MODEL, method, eps=[EPS], seeds=lanes, keep_final=True, progress=False, **kept, **options)

    begin = time.perf_counter()
    run()
    first_s = time.perf_counter() - begin
    grid, wall_s, cpu_s = fastest(run, repeats)
    end = tuple(grid[name].values.reshape(lanes, *grid[name].shape[2:]) for name in ("H", "W", "b"))
    return Run(end, first_s - wall_s, wall_s, cpu_s)


def starts(lanes: int) -> tuple[jax.Array, ...]:
    """The starts of the sweep."""
    states = jax.vmap(lambda seed: fc.initial.sphere(MODEL, EPS, key=jax.random.key(seed)))(jnp.arange(lanes))
    return states.H, states.W, states.b


def by_hand(optimizer: str, lanes: int, steps: int, repeats: int, block: int | None) -> Run:
    """optax in a `lax.scan` under `vmap`, with gradients from `jax.grad`, for all lanes at once or in blocks."""
    descent = {"sgd": optax.sgd, "adam": optax.adam}[optimizer](RATES[optimizer])

    def risk(point):
        H, W, b = point
        return 0.5 * jnp.sum((W @ H + b[:, None] - TARGET) ** 2)

    def one(start):
        def step(carry, _):
            point, state = carry
            updates, state = descent.update(jax.grad(risk)(point), state, point)
            return (optax.apply_updates(point, updates), state), None

        return jax.lax.scan(step, (start, descent.init(start)), None, steps)[0][0]

    start = starts(lanes)
    run = jax.jit(jax.vmap(one) if block is None else lambda all_lanes: jax.lax.map(one, all_lanes, batch_size=block))
    begin = time.perf_counter()
    compiled = run.lower(start).compile()
    compile_s = time.perf_counter() - begin
    end, wall_s, cpu_s = fastest(lambda: jax.block_until_ready(compiled(start)), repeats)
    return Run(tuple(map(np.asarray, end)), compile_s, wall_s, cpu_s)


def with_torch(optimizer: str, lanes: int, steps: int) -> Run:
    """torch.optim on all lanes at once, with gradients from its autograd; both optimizers act entry by entry."""
    torch = require("torch")
    torch.set_num_threads(1)
    target = torch.tensor(TARGET)
    start = [np.asarray(x) for x in starts(lanes)]

    def run() -> Arrays:
        H, W, b = point = [torch.tensor(x, requires_grad=True) for x in start]
        descent = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](point, lr=RATES[optimizer])
        for _ in range(steps):
            descent.zero_grad()
            (0.5 * ((W @ H + b[..., None] - target) ** 2).sum()).backward()
            descent.step()
        return tuple(x.detach().numpy() for x in point)

    end, wall_s, cpu_s = fastest(run, 1)
    return Run(end, 0.0, wall_s, cpu_s)


def difference(end: Arrays, other: Arrays) -> float:
    """The largest relative distance over lanes."""

    def size(parts: Arrays) -> np.ndarray:
        return np.sqrt(sum(np.sum(part.reshape(len(part), -1) ** 2, axis=1) for part in parts))

    return float(np.max(size(tuple(x - y for x, y in zip(end, other, strict=True))) / size(other)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 lanes and 250 steps: does it run at all")
    parser.add_argument("--lanes", type=int, default=1024, help="lanes (1024)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each (2000)")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before JAX starts: one core for all, because waiting threads cost CPU time
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    fc.enable_x64()
    lanes, steps, repeats = (32, 250, 1) if options.quick else (options.lanes, options.steps, 3)

    rows: list[dict[str, Any]] = []
    aims: dict[str, float] = {}
    print(f"{lanes} lanes, {steps} steps, thousands of lane-steps per second and core, jax {jax.__version__}")
    for optimizer in RATES:
        ways: dict[str, Callable[[], Run]] = {
            "optax scan by hand, vmap": lambda o=optimizer: by_hand(o, lanes, steps, repeats, None),
            f"optax scan by hand, blocks of {BLOCK}": lambda o=optimizer: by_hand(o, lanes, steps, repeats, BLOCK),
            "flowcollapse": lambda o=optimizer: ours(o, lanes, steps, repeats, record=False),
            f"flowcollapse, {SAVES} points": lambda o=optimizer: ours(o, lanes, steps, repeats, record=True),
            "torch.optim, all lanes at once": lambda o=optimizer: with_torch(o, lanes, steps),
        }
        runs: dict[str, Run] = {}
        for name, way in ways.items():
            try:
                run = runs[name] = way()
            except PeerUnavailable as why:
                print(f"{optimizer:5s} {name:34s} skipped: {why}")
                continue
            error = difference(run.end, next(iter(runs.values())).end)
            row = {"optimizer": optimizer, "name": name, "lane_steps_per_core_second": lanes * steps / run.cpu_s}
            row |= {"compile_s": run.compile_s, "wall_s": run.wall_s, "cpu_s": run.cpu_s, "difference": error}
            rows.append(row)
            speed = f"{optimizer:5s} {name:34s} {row['lane_steps_per_core_second'] / 1e3:8.0f}k/s"
            print(f"{speed}  compile {run.compile_s:5.1f} s  difference {error:.0e}", flush=True)
        aims[optimizer] = runs[f"flowcollapse, {SAVES} points"].cpu_s / runs["flowcollapse"].cpu_s - 1
    for optimizer, cost in aims.items():
        verdict = "met" if cost < AIM else "missed"
        print(f"{optimizer:5s} aim: recording at {SAVES} points costs under {AIM:.0%}: {verdict}, {cost:+.1%}")
    if options.out:
        about = {"versions": versions(), "device": jax.devices()[0].device_kind, "argv": sys.argv[1:]}
        sizes = {"lanes": lanes, "steps": steps, "recording_costs": aims}
        options.out.write_text(json.dumps({"about": about | sizes, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

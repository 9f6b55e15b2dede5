"""Steps and errors of the default solver against the tolerance, also over many geometries, and the cost of a step.

    python benchmarks/solver_steps.py
    python benchmarks/solver_steps.py --quick

Steps include rejected ones. Errors are the largest over 21 times, most of them inside steps, against scipy's DOP853 at
rtol 1e-13 on the samples; they are relative to the norms of W, H and b, in units of rtol. The script uses only public
names, so it also measures another version of the package if that one is first in `PYTHONPATH`.
"""

import argparse
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

import flowcollapse as fc

RTOLS = (1e-6, 1e-8, 1e-10, 1e-12)
REFERENCE_RTOL = 1e-13
LANES = 16


class Case(NamedTuple):
    """A model, the sizes of its starts, and the end time."""

    name: str
    model: dict[str, Any]
    sizes: tuple[float, ...]
    t1: float = 10.0


PAPER = {"num_classes": 3, "samples_per_class": 3, "num_features": 15}
SMALL = {"num_classes": 3, "samples_per_class": 4, "num_features": 6}
LONE = {"num_classes": 2, "samples_per_class": 1, "num_features": 7, "weight_decay": 0.01}
UNEQUAL = {"num_classes": 3, "samples_per_class": (5, 1, 3), "num_features": 5}
CASES = (
    Case("the paper's task", PAPER, (1.0, 0.1, 0.01, 0.001)),
    Case("decay (0.2, 0.3, 0.1)", SMALL | {"weight_decay": (0.2, 0.3, 0.1)}, (0.3, 1.0)),
    Case("counts (5, 1, 3), decay (0.05, 0.02, 0.1)", UNEQUAL | {"weight_decay": (0.05, 0.02, 0.1)}, (0.5,)),
    Case("C = 3, N = 4, p = 6", SMALL, (2.0,)),
    Case("C = 2, N = 1, p = 7, decay 0.01", LONE, (3.0,)),
)


def reference(model: fc.UFM, start: fc.State, ts: Float[np.ndarray, " time"]) -> list[np.ndarray]:
    """W, H and b at the times `ts`, by scipy on the samples."""
    targets = np.repeat(np.eye(model.num_classes), model.counts, axis=1)
    lam_W, lam_H, lam_b = (float(x) for x in np.broadcast_to(np.asarray(model.weight_decay), 3))
    parts = [np.asarray(x) for x in (start.W, start.H, start.b)]
    cuts = np.cumsum([x.size for x in parts])[:-1]

    def unpack(y):
        return [flat.reshape(-1, *x.shape) for flat, x in zip(np.split(y, cuts, axis=-1), parts, strict=True)]

    def velocity(t, y):
        W, H, b = (x[0] for x in unpack(y))
        G = W @ H + b[:, None] - targets
        parts = (-G @ H.T - lam_W * W, -W.T @ G - lam_H * H, -G.sum(axis=1) - lam_b * b)
        return np.concatenate([x.ravel() for x in parts])

    y0 = np.concatenate([x.ravel() for x in parts])
    atol = REFERENCE_RTOL * 1e-3 * float(np.abs(y0).max())
    solution = solve_ivp(velocity, (0.0, ts[-1]), y0, "DOP853", t_eval=ts, rtol=REFERENCE_RTOL, atol=atol)
    return unpack(solution.y.T)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error over all times, relative to the largest norm so far."""
    sizes, errors = (np.linalg.norm(x.reshape(len(x), -1), axis=1) for x in (exact, found - exact))
    return float(np.max(errors / np.maximum.accumulate(np.maximum(sizes, 1e-300)), where=sizes > 0, initial=0.0))


def rows_of(case: Case, rtols) -> None:
    """Print a row for each size of the start."""
    model = fc.UFM(**case.model)
    ts = np.linspace(0.0, case.t1, 21)
    # Compiled without optimisation: most of the time is compilation, and steps and errors do not depend on it.
    run = jax.jit(
        lambda start, rtol: fc.simulate(model, start, fc.Flow(rtol=rtol), ts, metrics=(), save_states=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    for size in case.sizes:
        start = fc.initial.sphere(model, size, key=jax.random.key(7))
        exact = reference(model, start, ts)
        steps, errors = [], []
        for rtol in rtols:
            path = run(start, rtol)
            steps.append(int(path.stats["accepted"] + path.stats["rejected"]))
            found = (np.asarray(x) for x in (path.states.W, path.states.H, path.states.b))
            errors.append([error(x, y) / rtol for x, y in zip(found, exact, strict=True)])
        cells = [str(n) for n in steps] + [", ".join(f"{x:.2g}" for x in row) for row in errors]
        print(f"| {case.name}, eps = {size:g} | {' | '.join(cells)} |", flush=True)


GEOMETRIES = ((2, 1, 7), (3, 3, 15), (3, 4, 2), (5, 2, 3), (2, 3, 4), (4, 1, 3))
"""Classes, samples per class and features."""

DECAYS = ((0.0, 0.0, 0.0), (0.01, 0.01, 0.01), (0.2, 0.3, 0.1))


def geometries() -> None:
    """Print all steps and the largest errors of W and b over 18 runs of each geometry, at 31 times up to 10."""
    ts = np.linspace(0.0, 10.0, 31)
    print("| C, N, p |" + "".join(f" steps, errors at {rtol:g} |" for rtol in RTOLS[:2]) + "\n|---|---|---|")
    for sizes in GEOMETRIES:
        names = dict(zip(("num_classes", "samples_per_class", "num_features"), sizes, strict=True))

        @jax.jit
        @jax.vmap
        def run(decay, start, rtol, names=names):
            method = fc.Flow(rtol=rtol, approach="explicit")
            path = fc.simulate(fc.UFM(**names, weight_decay=decay), start, method, ts, metrics=(), save_states=True)
            return path.stats["accepted"] + path.stats["rejected"], path.states.W, path.states.b

        cases = [(decay, eps, seed) for decay in DECAYS for eps in (0.1, 1.0, 3.0) for seed in (0, 1)]
        starts = [fc.initial.sphere(fc.UFM(**names), eps, key=jax.random.key(seed)) for _, eps, seed in cases]
        decays = tuple(jnp.asarray(column) for column in zip(*(decay for decay, *_ in cases), strict=True))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        exact = [
            reference(fc.UFM(**names, weight_decay=decay), start, ts)
            for (decay, *_), start in zip(cases, starts, strict=True)
        ]
        cells = []
        for rtol in RTOLS[:2]:
            steps, W, b = (np.asarray(x) for x in run(decays, stacked, jnp.full(len(cases), rtol)))
            worst = [
                max(error(x, parts[part]) for x, parts in zip(found, exact, strict=True)) / rtol
                for found, part in ((W, 0), (b, 2))
            ]
            cells.append(f"{steps.sum()}: {worst[0]:.2g}, {worst[1]:.2g}")
        print(f"| {', '.join(map(str, sizes))} | {' | '.join(cells)} |", flush=True)


def costs() -> None:
    """Print lines of StableHLO, compile time and CPU time of a step on the paper's task, in a block of lanes."""
    model = fc.UFM(**PAPER)
    keys = jax.random.split(jax.random.key(0), LANES)
    starts = jax.vmap(lambda key: fc.initial.sphere(model, 0.1, key=key))(keys)
    for name, ts in (("nothing saved", 2), ("41 saves", 41)):
        metrics = () if ts == 2 else ("snc1",)

        def run(start, ts=ts, metrics=metrics):
            path = fc.simulate(model, start, fc.Flow(rtol=1e-6), ts, metrics=metrics)
            return path.final.W, path.stats["accepted"] + path.stats["rejected"]

        before = time.process_time()
        lowered = jax.jit(jax.vmap(run)).lower(starts)
        traced = time.process_time()
        program = lowered.compile()
        compiled = time.process_time()
        _, steps = jax.block_until_ready(program(starts))
        seconds = []
        for _ in range(40):
            began = time.process_time()
            jax.block_until_ready(program(starts))
            seconds.append(time.process_time() - began)
        lane_step = min(seconds) / (LANES * int(jnp.max(steps)))
        lines = lowered.as_text().count("\n")
        print(
            f"| {name} | {lines:,} lines | traced in {traced - before:.1f} s, compiled in {compiled - traced:.1f} s "
            f"| {1e6 * lane_step:.1f} us per step and lane, {1e3 * min(seconds) / LANES:.3f} ms per run |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one case at two tolerances")
    parser.add_argument("--only", choices=("steps", "geometries", "costs"), help="one of the tables")
    options = parser.parse_args()
    fc.enable_x64()
    rtols = RTOLS[:2] if options.quick else RTOLS
    if options.only in (None, "steps"):
        heads = [f"steps at {rtol:g}" for rtol in rtols] + [f"errors at {rtol:g}" for rtol in rtols]
        print(f"| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
        for case in CASES[:1] if options.quick else CASES:
            rows_of(case._replace(sizes=case.sizes[:1]) if options.quick else case, rtols)
    if options.only in (None, "geometries") and not options.quick:
        geometries()
    if options.only in (None, "costs") and not options.quick:
        costs()


if __name__ == "__main__":
    main()

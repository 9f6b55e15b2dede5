"""Integrates one large problem with our flow, or with explicit solvers on the full state. Used by the workers.

Every run starts from the same point, which is drawn in class-mean columns. Solvers on the full state get the
corresponding features `H`.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from fresh_process import cores, machine
from peer_batch import Batch, fastest, numpy_field, pack, require, unpack

import flowcollapse as fc
from flowcollapse.endings.plateau import plateau_time
from flowcollapse.model.problem import problem_of
from flowcollapse.results.provenance import versions

EPS = 1e-3
REFERENCE_RTOLS = (3e-13, 1e-12, 3e-12, 1e-11)
"""The reference uses the tightest of these that finishes: below some tolerance, rounding makes steps shrink forever."""

OURS = "exponential"
MOST_STEPS = {OURS: 4_000, "kvaerno5": 3_000}
"""Limits on the steps. Ours takes a few hundred. Dense implicit steps take milliseconds even for the smallest states.
Explicit solvers have no limit."""

Run = Callable[[float], fc.Trajectory]


class End(NamedTuple):
    """Where a run ended; `X` holds the class-mean columns, or the features if the solver ran on them."""

    W: np.ndarray
    X: np.ndarray
    b: np.ndarray


class Cost(NamedTuple):
    """Wall and CPU seconds (of the whole process) of the fastest run; compilation is counted separately."""

    compile_s: float
    wall_s: float
    cpu_s: float
    runs: int


def problem(C: int, N: int, p: int, seed: int = 0) -> tuple[fc.UFM, fc.State]:
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    draw = jax.jit(lambda key: fc.initial.sphere(model, EPS, key=key, reduced=True))
    return model, draw(jax.random.key(seed))


def end_time(model: fc.UFM, start: fc.State) -> float:
    return float(jax.jit(lambda state: plateau_time(*problem_of(model, state)))(start))


def compiled(model: fc.UFM, start: fc.State, solver: Any) -> tuple[Run, float]:
    """`fc.simulate` from the start as one compiled program of rtol, and the seconds it took to trace and compile."""
    most = MOST_STEPS.get(solver, 10_000_000) if isinstance(solver, str) else 10_000_000

    def simulate(state, rtol):
        return fc.simulate(model, state, fc.Flow(solver, rtol=rtol, max_steps=most), metrics=())

    begin = time.perf_counter()
    program = jax.jit(simulate).lower(start, jnp.asarray(1e-6)).compile()
    compile_s = time.perf_counter() - begin
    return lambda rtol: jax.block_until_ready(program(start, jnp.asarray(rtol))), compile_s


def reference(ours: Run) -> tuple[fc.Trajectory, float]:
    """The truth that errors are measured against, and its rtol."""
    for rtol in REFERENCE_RTOLS:
        path = ours(rtol)
        if int(path.code) == fc.Verdict.plateau:
            return path, rtol
    raise RuntimeError(f"no reference: none of the runs at rtol {REFERENCE_RTOLS} reached the plateau")


def best(run: Callable[[], Any], budget_s: float, compile_s: float = 0.0, most: int = 20) -> tuple[Any, Cost]:
    """The result of one run, and the cost of the fastest of as many runs as the budget allows."""
    result, wall_s, cpu_s = fastest(run, repeats=1)
    runs = 1
    while runs < most and wall_s * (runs + 1) <= budget_s:
        _, wall, cpu = fastest(run, repeats=1)
        wall_s, cpu_s, runs = min(wall, wall_s), min(cpu, cpu_s), runs + 1
    return result, Cost(compile_s, wall_s, cpu_s, runs)


def end_of(path: fc.Trajectory, features: bool = False) -> End:
    final = path.final
    return End(np.asarray(final.W), np.asarray(final.H if features else final.X), np.asarray(final.b))


def counts_of(path: fc.Trajectory) -> dict[str, Any]:
    stats = {name: int(value) for name, value in path.stats.items()}
    steps = stats["accepted"] + stats["rejected"]
    return {**stats, "steps": steps, "verdict": fc.Verdict(int(path.code)).name, "coordinates": path.coordinates}


def errors(end: End, truth: End) -> dict[str, float]:
    """`state`: `||z - z*|| / ||z*||`. `snc3`: relative error of `||b - 1/C||`. Both at the end of the run."""

    def size(parts) -> float:
        return float(np.sqrt(sum(np.sum(part**2) for part in parts)))

    snc3, true_snc3 = (np.linalg.norm(point.b - 1 / len(point.b)) for point in (end, truth))
    return {
        "state_error": size(a - b for a, b in zip(end, truth, strict=True)) / size(truth),
        "snc3_error": float(abs(snc3 / true_snc3 - 1)),
    }


def full_tsit5(model: fc.UFM, start: fc.State, rtol: float, budget_s: float) -> tuple[End, Cost, dict[str, Any]]:
    """diffrax's Tsit5 on the full state `(H, W, b)`, jitted, with diffrax's own step control."""
    t1, C = end_time(model, start), model.num_classes
    target = jnp.repeat(jnp.eye(C), model.num_samples // C, axis=1)

    def field(t, state, target):
        H, W, b = state
        residual = W @ H + b[:, None] - target
        return -W.T @ residual, -residual @ H.T, -residual.sum(1)

    def solve(y0, target, rtol):
        return dfx.diffeqsolve(
            dfx.ODETerm(field),
            dfx.Tsit5(),
            t0=0.0,
            t1=t1,
            dt0=None,
            y0=y0,
            args=target,
            saveat=dfx.SaveAt(t1=True),
            stepsize_controller=dfx.PIDController(rtol=rtol, atol=rtol * EPS),
            max_steps=10_000_000,
        )

    inputs = ((start.H, start.W, start.b), target, jnp.asarray(rtol))
    begin = time.perf_counter()
    program = jax.jit(solve).lower(*inputs).compile()
    compile_s = time.perf_counter() - begin
    solution, cost = best(lambda: jax.block_until_ready(program(*inputs)), budget_s, compile_s)
    H, W, b = (np.asarray(leaf[0]) for leaf in solution.ys)
    steps = int(solution.stats["num_steps"])
    return End(W, H, b), cost, {"steps": steps, "evaluations": 6 * steps + 2, "coordinates": "full"}


def full_scipy(
    method: str, model: fc.UFM, start: fc.State, rtol: float, budget_s: float
) -> tuple[End, Cost, dict[str, Any]]:
    """A scipy solver on the flat full state, with a field that makes as few NumPy calls as possible.

    It runs with one BLAS thread or with all, whichever was faster over the first fiftieth of the time span.
    """
    integrate, limits = require("scipy.integrate"), require("threadpoolctl").threadpool_limits
    t1 = end_time(model, start)
    H, W, b = (np.asarray(x)[None] for x in (start.H, start.W, start.b))
    batch = Batch(model.counts[0], H, W, b, np.array([[0.0, t1]]), rtol)
    field, y0 = numpy_field(batch), pack(batch)[0]

    def run(until: float = t1):
        return integrate.solve_ivp(
            field, (0.0, until), y0, method=method, t_eval=[until], rtol=rtol, atol=float(batch.atol[0])
        )

    def trial(threads: int) -> float:
        with limits(limits=threads, user_api="blas"):
            return fastest(lambda: run(t1 / 50), repeats=2)[1]

    threads = min({1, len(cores())}, key=trial)
    with limits(limits=threads, user_api="blas"):
        solution, cost = best(run, budget_s)
    if not solution.success:
        raise RuntimeError(f"scipy {method}: {solution.message}")
    H, W, b = unpack(batch, solution.y[:, -1])
    counts = {"evaluations": int(solution.nfev), "coordinates": "full", "blas_threads": threads}
    return End(W, H, b), cost, counts


def about() -> dict[str, Any]:
    """Versions, device and machine."""
    device = jax.devices()[0]
    scipy = require("scipy").__version__
    return {"versions": versions() | {"scipy": scipy}, "device": f"{device.platform}: {device.device_kind}"} | machine()

"""Other ways to integrate one batch of gradient flows, behind one interface: `PEERS[name](batch) -> Timing`.

Each peer follows the flow `(H, W, b)' = -grad R`, `R = 1/2 ||W H + b 1^T - Y||_F^2`, from every start of the batch to
the start's end time. It reports the end states, the curves of the paper's five quantities at the save times, and its
cost (`peer_batch.py`); `accuracy.py` measures its errors.

A peer that cannot run here (package or compiler missing) raises `PeerUnavailable` with the reason. Libraries are
imported where they are used.
"""

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peer_batch import (
    METRICS,
    Batch,
    PeerUnavailable,
    Timing,
    fastest,
    flow_metrics,
    no_curves,
    numpy_field,
    one_blas_thread,
    pack,
    require,
    target_of,
    unpack,
)

LEARNING_RATE = 0.05
"""Upper bound on the step size of `numpy_descent`; descent is stable below 2/(CN + sqrt N), 0.186 at C = N = 3."""
REPEATS = 3
"""How often compiled peers run; the fastest run counts. The loops over lanes run once."""


# --- jax ----------------------------------------------------------------------------------------------------------


def vmap_diffeqsolve(batch: Batch) -> Timing:
    """diffrax as in its documentation: one solve, vmapped over the lanes and jitted."""
    return _vmap_diffeqsolve(batch, save=True)


def vmap_diffeqsolve_end_only(batch: Batch) -> Timing:
    """The same without save times: the curves are NaN."""
    return _vmap_diffeqsolve(batch, save=False)


def _vmap_diffeqsolve(batch: Batch, *, save: bool) -> Timing:
    jax, diffrax = require("jax"), require("diffrax")
    if not jax.config.jax_enable_x64:
        raise PeerUnavailable("JAX runs in 32 bits: set jax_enable_x64 first")
    jnp = jax.numpy
    samples = batch.samples_per_class
    target = jnp.repeat(jnp.eye(batch.W0.shape[1]), samples, axis=1)

    def field(t: Any, state: Any, args: Any) -> Any:
        H, W, b = state
        residual = W @ H + b[:, None] - target
        return -W.T @ residual, -residual @ H.T, -residual.sum(1)

    def solve(H0: Any, W0: Any, b0: Any, ts: Any, atol: Any) -> Any:
        observe = diffrax.SubSaveAt(ts=ts, fn=lambda t, y, args: flow_metrics(jnp, y[0], y[1], y[2], samples))
        end = diffrax.SubSaveAt(t1=True)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=0.0,
            t1=ts[-1],
            dt0=None,
            y0=(H0, W0, b0),
            saveat=diffrax.SaveAt(subs=[observe, end] if save else [end]),
            stepsize_controller=diffrax.PIDController(rtol=batch.rtol, atol=atol),
            max_steps=100_000,
        )
        *curves, final = solution.ys
        return curves, jax.tree.map(lambda leaf: leaf[0], final), solution.stats["num_steps"]

    inputs = jax.block_until_ready([jnp.asarray(x) for x in (batch.H0, batch.W0, batch.b0, batch.ts, batch.atol)])
    begin = time.perf_counter()
    compiled = jax.jit(jax.vmap(solve)).lower(*inputs).compile()
    compile_s = time.perf_counter() - begin
    jax.block_until_ready(compiled(*inputs))  # the first run also pays for memory
    (curves, final, steps), wall_s, cpu_s = fastest(lambda: jax.block_until_ready(compiled(*inputs)), REPEATS)
    H, W, b = (np.asarray(leaf) for leaf in final)
    curves = np.asarray(curves[0]) if save else no_curves(batch)
    name = "vmap_diffeqsolve" if save else "vmap_diffeqsolve_end_only"
    remark = "Tsit5, rms norm of diffrax, all lanes in lockstep; 6 evaluations per step of the lane, 2 to start"
    evaluations = 6 * np.asarray(steps) + 2
    return Timing(name, H, W, b, curves, compile_s, wall_s, cpu_s, evaluations, remark)


# --- PyTorch, all lanes at once ---------------------------------------------------------------------------------


def torchode_tsit5(batch: Batch) -> Timing:
    """torchode's Tsit5 in float64, compiled as in its documentation: all lanes at once, each with its own step size."""
    return _torchode(batch, save=True)


def torchode_tsit5_end_only(batch: Batch) -> Timing:
    """The same without save times: the curves are NaN."""
    return _torchode(batch, save=False)


def _torchode(batch: Batch, *, save: bool) -> Timing:
    torch, torchode = require("torch"), require("torchode")
    p, columns = batch.H0.shape[1:]
    num_classes = batch.W0.shape[1]
    sizes = [p * columns, num_classes * p, num_classes]
    target = torch.from_numpy(target_of(batch))

    def field(t: Any, y: Any) -> Any:
        h, w, b = y.split(sizes, dim=1)
        H, W = h.reshape(-1, p, columns), w.reshape(-1, num_classes, p)
        residual = target - b[:, :, None] - W @ H
        return torch.cat([(W.mT @ residual).flatten(1), (residual @ H.mT).flatten(1), residual.sum(2)], dim=1)

    term = torchode.ODETerm(field)
    # One absolute tolerance per lane. As a NumPy array, it also sets the precision of the tolerances.
    control = torchode.IntegralController(atol=batch.atol[:, None], rtol=batch.rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Tsit5(term=term), control)
    y0, ts = torch.from_numpy(pack(batch)), torch.from_numpy(batch.ts)
    problem = torchode.InitialValueProblem(y0, ts[:, 0], ts[:, -1], ts if save else None)
    solve = torch.compile(solver.solve)
    with torch.inference_mode():
        begin = time.perf_counter()
        solve(problem)
        first_s = time.perf_counter() - begin
        solution, wall_s, cpu_s = fastest(lambda: solve(problem), REPEATS)
        states = solution.ys.numpy()
    if int(solution.status.max()) != 0:
        raise RuntimeError(f"torchode: status {int(solution.status.max())}")
    H, W, b = unpack(batch, states[:, -1])
    curves = flow_metrics(np, *unpack(batch, states), batch.samples_per_class) if save else no_curves(batch)
    evaluations = 6 * solution.stats["n_steps"].numpy() + 2
    name = "torchode_tsit5" if save else "torchode_tsit5_end_only"
    remark = "Tsit5, elementwise rms norm, all lanes at once; 6 evaluations per step of the lane, 2 to start"
    return Timing(name, H, W, b, curves, first_s - wall_s, wall_s, cpu_s, evaluations, remark)


# --- loops over lanes ---------------------------------------------------------------------------------------------


def scipy_dop853(batch: Batch) -> Timing:
    """scipy's DOP853, one lane after the other."""
    return _scipy_loop(batch, "DOP853")


def scipy_dop853_end_only(batch: Batch) -> Timing:
    """The same without save times: the curves are NaN."""
    return _scipy_loop(batch, "DOP853", save=False)


def scipy_rk45(batch: Batch) -> Timing:
    """scipy's RK45 (Dormand-Prince), one lane after the other."""
    return _scipy_loop(batch, "RK45")


def scipy_lsoda(batch: Batch) -> Timing:
    """scipy's LSODA (multistep, switches between stiff and nonstiff methods), one lane after the other."""
    return _scipy_loop(batch, "LSODA")


def scipy_lsoda_end_only(batch: Batch) -> Timing:
    """The same without save times: the curves are NaN."""
    return _scipy_loop(batch, "LSODA", save=False)


def _scipy_loop(batch: Batch, method: str, *, save: bool = True) -> Timing:
    integrate = require("scipy.integrate")
    field = numpy_field(batch)

    def run() -> tuple[list[Any], np.ndarray]:
        solutions, curves = [], no_curves(batch)
        for lane, (y0, ts, atol) in enumerate(zip(pack(batch), batch.ts, batch.atol, strict=True)):
            when = ts if save else ts[-1:]
            solution = integrate.solve_ivp(
                field, (0.0, ts[-1]), y0, method=method, t_eval=when, rtol=batch.rtol, atol=atol
            )
            if not solution.success:
                raise RuntimeError(f"scipy {method}: {solution.message}")
            solutions.append(solution)
            if save:
                curves[lane] = flow_metrics(np, *unpack(batch, solution.y.T), batch.samples_per_class)
        return solutions, curves

    with one_blas_thread():
        (solutions, curves), wall_s, cpu_s = fastest(run, repeats=1)
    H, W, b = unpack(batch, np.stack([solution.y[:, -1] for solution in solutions]))
    evaluations = np.array([solution.nfev for solution in solutions])
    remark = f"{method}, elementwise rms norm, one lane at a time, one BLAS thread"
    name = f"scipy_{method.lower()}" + ("" if save else "_end_only")
    return Timing(name, H, W, b, curves, 0.0, wall_s, cpu_s, evaluations, remark)


def torchdiffeq_dopri5(batch: Batch) -> Timing:
    """torchdiffeq's dopri5 in float64, one lane after the other, one thread."""
    torch, torchdiffeq = require("torch"), require("torchdiffeq")
    p, columns = batch.H0.shape[1:]
    num_classes = batch.W0.shape[1]
    sizes = [p * columns, num_classes * p, num_classes]
    target = torch.from_numpy(target_of(batch))
    calls = 0

    def field(t: Any, y: Any) -> Any:
        nonlocal calls
        calls += 1
        h, w, b = y.split(sizes)
        H, W = h.view(p, columns), w.view(num_classes, p)
        residual = target - b[:, None] - W @ H
        return torch.cat([(W.T @ residual).view(-1), (residual @ H.T).view(-1), residual.sum(1)])

    def run() -> tuple[list[Any], list[Any], list[int]]:
        finals, curves, counts = [], [], [0]
        for y0, ts, atol in zip(pack(batch), batch.ts, batch.atol, strict=True):
            path = torchdiffeq.odeint(
                field, torch.from_numpy(y0), torch.from_numpy(ts), rtol=batch.rtol, atol=atol, method="dopri5"
            ).numpy()
            finals.append(path[-1])
            counts.append(calls)
            curves.append(flow_metrics(np, *unpack(batch, path), batch.samples_per_class))
        return finals, curves, counts

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            (finals, curves, counts), wall_s, cpu_s = fastest(run, repeats=1)
    finally:
        torch.set_num_threads(threads)
    H, W, b = unpack(batch, np.stack(finals))
    remark = "dopri5, rms norm, one lane at a time, one thread"
    return Timing("torchdiffeq_dopri5", H, W, b, np.stack(curves), 0.0, wall_s, cpu_s, np.diff(counts), remark)


# --- gradient descent ---------------------------------------------------------------------------------------------


def numpy_descent(batch: Batch) -> Timing:
    """Gradient descent with a fixed step size, all lanes at once, with enough steps to reach the end times.

    Every lane takes the same number of steps, of size `t1 / steps <= LEARNING_RATE`; a curve shows the nearest step.
    """
    steps = int(np.ceil(batch.ts[:, -1].max() / LEARNING_RATE))
    rate = batch.ts[:, -1] / steps
    when = np.rint(batch.ts / rate[:, None]).astype(int)
    order = np.argsort(when, axis=None, kind="stable")
    cuts = np.searchsorted(when.ravel()[order], np.arange(steps + 2))
    lane_of, time_of = np.unravel_index(order, when.shape)
    target = target_of(batch)

    def run() -> Any:
        H, W, b = batch.H0.copy(), batch.W0.copy(), batch.b0.copy()
        curves = np.empty((*batch.ts.shape, len(METRICS)))
        for step in range(steps + 1):
            due = slice(cuts[step], cuts[step + 1])
            if due.start < due.stop:
                at = lane_of[due]
                curves[at, time_of[due]] = flow_metrics(np, H[at], W[at], b[at], batch.samples_per_class)
            if step < steps:
                push = (target - W @ H - b[:, :, None]) * rate[:, None, None]
                H, W = H + np.swapaxes(W, 1, 2) @ push, W + push @ np.swapaxes(H, 1, 2)
                b += push.sum(2)
        return H, W, b, curves

    with one_blas_thread():
        (H, W, b, curves), wall_s, cpu_s = fastest(run, repeats=1)
    remark = f"{steps} steps of size {rate.min():.3g} to {rate.max():.3g}, all lanes at once"
    return Timing("numpy_descent", H, W, b, curves, 0.0, wall_s, cpu_s, np.full(batch.lanes, steps), remark)


# --- the limit ----------------------------------------------------------------------------------------------------


def c_tsit5(batch: Batch) -> Timing:
    """Tsit5 written in C for these sizes (`tsit5.c`), with one thread."""
    return _c_tsit5(batch, save=True)


def c_tsit5_end_only(batch: Batch) -> Timing:
    """The same without save times: the curves are NaN."""
    return _c_tsit5(batch, save=False)


def _c_tsit5(batch: Batch, *, save: bool) -> Timing:
    begin = time.perf_counter()
    solve = _compile_c(batch)
    compile_s = time.perf_counter() - begin
    inputs = [np.ascontiguousarray(x, np.float64) for x in (batch.H0, batch.W0, batch.b0, batch.ts)]
    H, W, b = (np.empty_like(x) for x in inputs[:3])
    curves = no_curves(batch)
    accepted, rejected = np.zeros(batch.lanes, np.intc), np.zeros(batch.lanes, np.intc)

    def pointer(x: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(x.ctypes.data)

    def run() -> int:
        return solve(
            ctypes.c_int(batch.lanes),
            ctypes.c_int(batch.ts.shape[1]),
            ctypes.c_double(batch.rtol),
            *map(pointer, inputs),
            *map(pointer, (H, W, b)),
            pointer(curves) if save else None,
            *map(pointer, (accepted, rejected)),
        )

    failures, wall_s, cpu_s = fastest(run, REPEATS)
    if failures:
        raise RuntimeError(f"tsit5.c: {failures} of {batch.lanes} lanes ran out of steps")
    name = "c_tsit5" if save else "c_tsit5_end_only"
    remark = "Tsit5, largest of the 2-norms of W, class means, deviations and b" + ("" if save else "; nothing saved")
    evaluations = 6 * (accepted + rejected) + 2
    return Timing(name, H, W, b, curves, compile_s, wall_s, cpu_s, evaluations, remark)


def _compile_c(batch: Batch) -> Any:
    compiler = shutil.which("gcc")
    if compiler is None:
        raise PeerUnavailable("no C compiler: gcc is not on the PATH")
    sizes = {"CLASSES": batch.W0.shape[1], "SAMPLES": batch.samples_per_class, "FEATURES": batch.W0.shape[2]}
    with tempfile.TemporaryDirectory() as folder:
        compiled, library = Path(folder, "tsit5.o"), Path(folder, "tsit5.so")
        flags = ["-std=c11", "-O3", "-march=native", "-ffast-math", "-fPIC", *(f"-D{k}={v}" for k, v in sizes.items())]
        # Linked separately without -ffast-math, with which gcc adds start-up code that flushes denormals process-wide.
        for command in (
            [compiler, *flags, "-c", str(Path(__file__).with_name("tsit5.c")), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(library), "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
                raise PeerUnavailable(f"gcc failed: {reason}")
        return ctypes.CDLL(str(library)).solve


PEERS: dict[str, Callable[[Batch], Timing]] = {
    peer.__name__: peer
    for peer in (
        vmap_diffeqsolve,
        torchode_tsit5,
        scipy_dop853,
        scipy_rk45,
        scipy_lsoda,
        torchdiffeq_dopri5,
        numpy_descent,
        c_tsit5,
        c_tsit5_end_only,
    )
}

END_ONLY: dict[str, Callable[[Batch], Timing]] = {
    peer.__name__.removesuffix("_end_only"): peer
    for peer in (
        vmap_diffeqsolve_end_only,
        torchode_tsit5_end_only,
        scipy_dop853_end_only,
        scipy_lsoda_end_only,
        c_tsit5_end_only,
    )
}
"""The same peers without save times."""

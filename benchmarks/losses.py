"""Cross-entropy in batches of lanes: trajectories per second and core, with the error of the margin beside.

    python benchmarks/losses.py [--quick] [--out losses.json]

1,024 lanes (256 seeds at eps = 1, 1e-1, 1e-2, 1e-3; C = N = 3, p = 5, no bias), float64, rtol 1e-6, on one core, in
two tasks: with weight decay 0.05 to t = 400, where it is at rest, and without decay to t = e^50 in the clock
`l = ln(1 + t)`. The peers integrate the same equation in the same clock, with the residual in the log domain, because
none finishes without. Compilation is timed apart. Errors are the largest relative errors of the margin over 32 lanes,
against scipy's DOP853 at 1e-12. Slow peers run fewer lanes. Gradient descent runs until its margin is as exact.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all, because waiting threads cost CPU time

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from peer_batch import PeerUnavailable, fastest, require
from scipy.integrate import solve_ivp

import flowcollapse as fc
from flowcollapse.results.provenance import versions
from flowcollapse.sweeps.capacity import CPU_WIDTH as BLOCK

C, N, P = 3, 3, 5
EPS = (1.0, 1e-1, 1e-2, 1e-3)
RTOL = 1e-6
LABELS = np.repeat(np.arange(C), N)
SLOW = {"scipy LSODA": 8, "scipy DOP853": 8}
"""By what factor a slow peer runs fewer lanes."""


class Task(NamedTuple):
    """Cross-entropy with a weight decay, up to a time of the clock."""

    name: str
    decay: float
    clock: str
    end: float

    @property
    def model(self) -> fc.UFM:
        return fc.UFM(
            num_classes=C, samples_per_class=N, num_features=P, weight_decay=self.decay, use_bias=False,
            loss="cross-entropy",
        )  # fmt: skip


TASKS = (Task("with decay 0.05 to t = 400", 0.05, "time", 400.0), Task("without decay to t = e^50", 0.0, "log", 50.0))


class Found(NamedTuple):
    """The margins at the end, one per lane, and what they cost. Times are CPU seconds."""

    margins: np.ndarray
    seconds: float
    compile_s: float = 0.0


Starts = tuple[np.ndarray, np.ndarray]
"""H (lanes x p x CN) and W (lanes x C x p)."""


def starts(task: Task, seeds: int) -> Starts:
    def one(eps, seed):
        return fc.initial.sphere(task.model, eps, key=jax.random.key(seed))

    drawn = jax.jit(jax.vmap(one))(jnp.repeat(jnp.array(EPS), seeds), jnp.tile(jnp.arange(seeds), len(EPS)))
    return np.asarray(drawn.H), np.asarray(drawn.W)


def margins_of(xp: Any, H, W):
    """The smallest margin of a state; H and W may have leading axes."""
    Z = W @ H
    own = xp.sum(xp.where(np.arange(C)[:, None] == LABELS, Z, 0.0), axis=-2)
    others = xp.max(xp.where(np.arange(C)[:, None] == LABELS, -np.inf, Z), axis=-2)
    return xp.min(own - others, axis=-1)


def residual(xp: Any, logsumexp: Callable, Z, log_scale):
    """`e^log_scale (p - y)`, from `ln p_j` off the class and `ln(1 - p_y) = logsumexp_{j != y} ln p_j` on it."""
    log_p = Z - logsumexp(Z, axis=0, keepdims=True)
    own = np.arange(C)[:, None] == LABELS
    log_miss = logsumexp(xp.where(own, -np.inf, log_p), axis=0, keepdims=True)
    return xp.where(own, -xp.exp(log_scale + log_miss), xp.exp(log_scale + log_p))


def field(xp: Any, logsumexp: Callable, task: Task, t, H, W):
    G = residual(xp, logsumexp, W @ H, t if task.clock == "log" else 0.0)
    return -(W.T @ G) - task.decay * H, -(G @ H.T) - task.decay * W


def timed_program(run: Callable, lanes: Any) -> Found:
    begin = time.process_time()
    compiled = jax.jit(run).lower(lanes).compile()
    compile_s = time.process_time() - begin
    margins, _, cpu_s = fastest(lambda: jax.block_until_ready(compiled(lanes)), 3)
    return Found(np.asarray(margins), cpu_s, compile_s)


def ours(task: Task, start: Starts) -> Found:
    """`fc.simulate` in blocks of lanes in lockstep."""
    flow = fc.Flow(rtol=RTOL, t1=task.end, clock=task.clock, approach="explicit")

    def one(lane):
        final = fc.simulate(task.model, fc.State(H=lane[0], W=lane[1]), flow, [task.end], metrics=()).final
        return margins_of(jnp, final.H, final.W)

    return timed_program(lambda lanes: jax.lax.map(one, lanes, batch_size=BLOCK), tuple(map(jnp.asarray, start)))


def diffrax_vmap(task: Task, start: Starts) -> Found:
    """`jax.vmap(diffeqsolve)` with diffrax's Tsit5 over all lanes."""

    def one(lane):
        term = dfx.ODETerm(lambda t, y, _: field(jnp, jax.scipy.special.logsumexp, task, t, *y))
        control = dfx.PIDController(rtol=RTOL, atol=RTOL * jnp.linalg.norm(lane[1]))
        solution = dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, task.end, 1e-3, lane, stepsize_controller=control, max_steps=65536
        )
        assert solution.ys is not None
        return margins_of(jnp, *(y[-1] for y in solution.ys))

    return timed_program(lambda lanes: jax.vmap(one)(lanes), tuple(map(jnp.asarray, start)))


def with_scipy(method: str, rtol: float = RTOL) -> Callable[[Task, Starts], Found]:
    """scipy's `solve_ivp`, one lane after the other."""

    def logsumexp(x, axis, keepdims):  # scipy's takes three times as long on arrays of this size
        largest = np.max(x, axis, keepdims=keepdims)
        return largest + np.log(np.sum(np.exp(x - largest), axis, keepdims=keepdims))

    def run(task: Task, start: Starts) -> Found:
        def slope(t, y):
            parts = field(np, logsumexp, task, t, y[: P * C * N].reshape(P, C * N), y[P * C * N :].reshape(C, P))
            return np.concatenate([part.ravel() for part in parts])

        margins, begin = [], time.process_time()
        for H, W in zip(*start, strict=True):
            y0 = np.append(H.ravel(), W.ravel())
            end = solve_ivp(
                slope, (0, task.end), y0, method, t_eval=[task.end], rtol=rtol, atol=rtol * np.linalg.norm(W)
            )
            margins.append(
                margins_of(np, end.y[: P * C * N, -1].reshape(P, C * N), end.y[P * C * N :, -1].reshape(C, P))
            )
        return Found(np.array(margins), time.process_time() - begin)

    return run


def torch_descent(task: Task, start: Starts, truth: np.ndarray, accuracy: float) -> Found:
    """torch.optim.SGD on all lanes at once, until every margin is within `accuracy` of its limit."""
    torch = require("torch")
    torch.set_num_threads(1)
    if task.decay == 0:
        raise PeerUnavailable("steps of descent would need a time e^50")
    targets = torch.tensor(LABELS).expand(len(start[0]), -1)
    begin = time.process_time()
    H, W = point = [torch.tensor(x, requires_grad=True) for x in start]
    descent = torch.optim.SGD(point, lr=0.2, weight_decay=task.decay)
    for step in range(200_000):
        descent.zero_grad()
        torch.nn.functional.cross_entropy(W @ H, targets, reduction="sum").backward()
        descent.step()
        if step % 100 == 99:
            found = margins_of(np, H.detach().numpy(), W.detach().numpy())
            if np.max(np.abs(found / truth - 1)) < accuracy:
                break
    return Found(margins_of(np, H.detach().numpy(), W.detach().numpy()), time.process_time() - begin)


def rows(task: Task, quick: bool) -> Iterator[dict[str, Any]]:
    seeds = 1 if quick else 256
    start = starts(task, seeds)
    checked = np.arange(0, len(start[0]), max(1, seeds // 8))
    exact = with_scipy("DOP853", 1e-12)(task, tuple(x[checked] for x in start)).margins  # pyright: ignore[reportArgumentType]
    known: dict[str, float] = {}
    peers: dict[str, Callable[[Task, Starts], Found]] = {
        "flowcollapse": ours,
        "diffrax vmap (Tsit5)": diffrax_vmap,
        "scipy LSODA": with_scipy("LSODA"),
        "scipy DOP853": with_scipy("DOP853"),
        "torch.optim.SGD": lambda task, lanes: torch_descent(task, lanes, np.full(len(lanes[0]), exact.mean()), 1e-5),
    }
    for name, peer in peers.items():
        few = np.union1d(np.arange(0, len(start[0]), 1 if quick else SLOW.get(name, 1)), checked)
        try:
            found = peer(task, (start[0][few], start[1][few]))
        except PeerUnavailable as why:
            print(f"  {name:22s} skipped: {why}", flush=True)
            continue
        error = np.max(np.abs(found.margins[np.searchsorted(few, checked)] / exact - 1))
        known[name] = len(few) / found.seconds
        ratio = known["flowcollapse"] / known[name]
        print(
            f"  {name:22s} {known[name]:9.0f}/s  margin {error:.0e}  compile {found.compile_s:5.1f} s  "
            f"ours is {ratio:.1f} times as fast",
            flush=True,
        )
        yield {"task": task.name, "name": name, "per_core_second": known[name], "margin_error": float(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 lanes: does it run at all")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    fc.enable_x64()
    found = []
    for task in TASKS:
        print(f"{task.name}, trajectories per second and core, jax {jax.__version__}")
        found += list(rows(task, options.quick))
    if options.out:
        options.out.write_text(json.dumps({"versions": versions(), "rows": found}, indent=1))


if __name__ == "__main__":
    main()

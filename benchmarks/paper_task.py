"""The paper's task, repeated many times: trajectories per second and core, with errors, for ours and for the peers.

    python benchmarks/paper_task.py [--quick] [--out paper_task.json]

1,024 trajectories (256 seeds at eps = 1, 1e-1, 1e-2, 1e-3; C = N = 3, p = 15), each to the plateau time of its start;
float64, rtol 1e-6, 41 save times with five metrics, everything in one process and on one core. Compilation is timed
separately. Times are CPU seconds of the whole process. Errors are the largest over 32 lanes, against scipy's DOP853 at
1e-13, restarted at every save time. Slow peers run fewer lanes.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for all, because waiting threads cost CPU time

import jax
import jax.numpy as jnp
import numpy as np
from accuracy import errors, reference
from peer_batch import METRICS, Batch, PeerUnavailable, Timing, fastest
from peers import PEERS

import flowcollapse as fc
from flowcollapse.programs import thorough
from flowcollapse.results.provenance import versions
from flowcollapse.simulation import simulate_lane
from flowcollapse.sweeps.capacity import CPU_WIDTH as BLOCK

EPS = (1.0, 1e-1, 1e-2, 1e-3)
MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
SAVES = 41
SLOW = {"torchdiffeq_dopri5": 8, "scipy_dop853": 2, "scipy_rk45": 2, "scipy_lsoda": 4}
"""By what factor a slow peer runs fewer lanes."""


def starts(seeds: int) -> fc.State:
    """One start per seed and eps, with the lanes of one eps next to each other."""

    def one(eps, seed):
        return fc.initial.sphere(MODEL, eps, key=jax.random.key(seed))

    eps = jnp.repeat(jnp.array(EPS), seeds)
    return jax.jit(jax.vmap(one))(eps, jnp.tile(jnp.arange(seeds), len(EPS)))


def batch_of(start: fc.State, rtol: float) -> Batch:
    """The same starts for the peers, each with its own plateau time."""
    find_end = jax.vmap(lambda s: fc.simulate(MODEL, s, fc.Flow(rtol=0.1), metrics=()).t_end)
    ends = np.asarray(jax.jit(find_end)(start))
    times = ends[:, None] * np.linspace(0, 1, SAVES)
    H, W, b = (np.asarray(x) for x in (start.H, start.W, start.b))
    return Batch(MODEL.counts[0], H, W, b, times, rtol)


def ours(batch: Batch, solver: str, *, save: bool = True) -> Timing:
    """The lanes of `fc.sweep`, with these starts and times: blocks in lockstep, one after another."""

    def one(lane):
        H, W, b, ts = lane
        method = fc.Flow(solver, rtol=batch.rtol, t1=ts[-1], approach="explicit")
        path = simulate_lane(MODEL, fc.State(H=H, W=W, b=b), method, ts, METRICS if save else ())
        curves = jnp.stack([path.metrics[name] for name in METRICS], axis=-1) if save else jnp.nan
        return path.final.H, path.final.W, path.final.b, curves, path.stats["evaluations"]

    lanes = tuple(jnp.asarray(x) for x in (batch.H0, batch.W0, batch.b0, batch.ts))
    # Blocks and compiler options are those of `fc.sweep`.
    run = jax.jit(lambda all_lanes: jax.lax.map(one, all_lanes, batch_size=BLOCK), compiler_options=thorough())
    begin = time.perf_counter()
    compiled = run.lower(lanes).compile()
    compile_s = time.perf_counter() - begin
    (H, W, b, curves, evaluations), wall_s, cpu_s = fastest(lambda: jax.block_until_ready(compiled(lanes)), 5)
    curves = np.broadcast_to(np.asarray(curves).reshape(len(H), -1, 1) if not save else curves, (*batch.ts.shape, 5))
    return Timing(
        name=f"flowcollapse {solver}" + ("" if save else ", no saves"),
        H=np.asarray(H),
        W=np.asarray(W),
        b=np.asarray(b),
        curves=np.asarray(curves),
        compile_s=compile_s,
        wall_s=wall_s,
        cpu_s=cpu_s,
        evaluations=np.asarray(evaluations),
        remark=f"rtol {batch.rtol:g}, blocks of {BLOCK}",
    )


def row(timing: Timing, truth: Timing, lanes: np.ndarray) -> dict[str, Any]:
    known = errors(timing, truth, lanes)
    return {
        "name": timing.name,
        "trajectories_per_core_second": timing.trajectories_per_cpu_second(),
        "lanes": len(timing.W),
        "compile_s": timing.compile_s,
        "evaluations": None if timing.evaluations is None else float(np.mean(timing.evaluations)),
        "state_error": known["state"],
        "curve_error": known["curve"],
        "end_snc3_error": known["end_snc3"],
        "remark": timing.remark,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 trajectories and fewer peers: does it run at all")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    options = parser.parse_args()
    fc.enable_x64()

    seeds = 4 if options.quick else 256
    start = starts(seeds)
    batch = batch_of(start, 1e-6)
    checked = np.arange(0, batch.lanes, max(1, seeds // 8))
    truth = reference(batch.take(checked))
    rows = []

    def report(timing: Timing, lanes: np.ndarray = checked, against: Timing = truth) -> None:
        rows.append(row(timing, against, lanes))
        r = rows[-1]
        speed = f"{r['name']:32s} {r['trajectories_per_core_second']:9.0f}/s  compile {r['compile_s']:5.1f} s"
        accuracy = f"state {r['state_error']:.0e}  curve {r['curve_error']:.0e}  snc3 {r['end_snc3_error']:.0e}"
        print(f"{speed}  {accuracy}  {r['remark']}", flush=True)

    print(f"trajectories per second and core, jax {jax.__version__}")
    for rtol in (1e-6,) if options.quick else (1e-6, 1e-5):
        report(ours(Batch(batch.samples_per_class, batch.H0, batch.W0, batch.b0, batch.ts, rtol), "exponential"))
    report(ours(batch, "tsit5"))
    if not options.quick:
        report(ours(batch, "exponential", save=False))
    for name, peer in PEERS.items():
        every = 1 if options.quick else SLOW.get(name, 1)
        lanes = np.union1d(np.arange(0, batch.lanes, every), checked)
        try:
            timing = peer(batch.take(lanes))
        except PeerUnavailable as why:
            print(f"{name:32s} skipped: {why}")
            continue
        report(timing, np.searchsorted(lanes, checked))
    if options.out:
        device = jax.devices()[0]
        about = {"versions": versions(), "device": device.device_kind, "argv": sys.argv[1:], "block": BLOCK}
        options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

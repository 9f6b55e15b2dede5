"""Worker of `sweep.py`: one part in a separate process, on the cores that its parent process has chosen.

    python benchmarks/sweep_run.py '{"part": "width", "sizes": [[3, 3, 15]], "widths": [1, 16], "lanes": 256}'

Further keys: `devices` (the number of CPU devices, default 1), `budget_s` (how long to repeat a run; the fastest
counts), and the keys that the parts below read.
"""

import dataclasses
import functools
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy import errors, reference
from fresh_process import Row, cores, emit, spec_of_this_worker
from large_runs import best
from peer_batch import METRICS, Batch, PeerUnavailable, Timing, flow_metrics
from peers import END_ONLY, PEERS

import flowcollapse as fc
from flowcollapse.endings.plateau import plateau_time
from flowcollapse.model.coordinates import state_size
from flowcollapse.model.problem import problem_of
from flowcollapse.sweeps.capacity import block_width
from flowcollapse.sweeps.grid import make_grid, tasks
from flowcollapse.sweeps.lane import Plan
from flowcollapse.sweeps.local import Local

MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
METHOD = fc.Flow(rtol=1e-6)
EPS = np.logspace(0, -4, 16).tolist()
MIDDLE = len(EPS) // 2
SAVES = 41
OURS = "flowcollapse"


def axes(lanes: int) -> tuple[list[float], int]:
    """The scales and the number of seeds for this many lanes; few lanes use the middle scale."""
    return (EPS, lanes // len(EPS)) if lanes >= len(EPS) else (EPS[MIDDLE : MIDDLE + 1], lanes)


def sweep(lanes: int, saves: int, **options: Any) -> Any:
    """`fc.sweep` of this many lanes to the plateau; it keeps the end states, and curves if there are save times."""
    eps, seeds = axes(lanes)
    kept: dict[str, Any] = {"ts": saves, "metrics": METRICS} if saves else {"ts": 1, "metrics": ()}
    return fc.sweep(MODEL, METHOD, eps=eps, seeds=seeds, keep_final=True, progress=False, **kept, **options)


def costs(run: Callable[[], Any], budget_s: float) -> tuple[Any, Row]:
    """The result of a run, the seconds of the fastest call, and the extra seconds of the first call."""
    begin = time.perf_counter()
    run()
    first_s = time.perf_counter() - begin
    result, cost = best(run, budget_s)
    return result, {"compile_s": first_s - cost.wall_s, "wall_s": cost.wall_s, "cpu_s": cost.cpu_s}


def speed(lanes: int, row: Row) -> Row:
    return {"lanes": lanes, "per_s": lanes / row["wall_s"], "per_core_s": lanes / row["cpu_s"]} | row


# --- throughput ---------------------------------------------------------------------------------------------------


def throughput(spec: Row) -> Iterator[Row]:
    """Every method, at every number of lanes that it is expected to finish in time."""
    few = batch_of(len(EPS))
    known = np.arange(0, len(EPS), len(EPS) // spec["checked"])
    truth = reference(few.take(known))
    for saves in (0, SAVES):
        for method in spec["methods"]:
            before: Row | None = None
            for lanes in spec["lanes"]:
                row: Row = {"method": method, "lanes": lanes, "saves": saves, "cores": len(cores())}
                expected = before["wall_s"] * lanes / before["lanes"] if before else 0.0
                if expected > spec["longest_s"]:
                    yield row | {"skipped": f"would take about {expected:.0f} s"}
                    break
                try:
                    timing, more = timing_of(method, lanes, saves, spec["budget_s"])
                except PeerUnavailable as why:
                    yield row | {"skipped": str(why)}
                    break
                except Exception as problem_met:  # one failing peer must not stop the others
                    lines = str(problem_met).splitlines() or [""]
                    yield row | {"failed": f"{type(problem_met).__name__}: {lines[0][:200]}"}
                    break
                before = row | more | accuracy_of(timing, truth, known)
                yield before
                gc.collect()


@functools.cache
def batch_of(lanes: int) -> Batch:
    """The starts of a sweep for the peers, each with save times up to its end in the sweep."""

    def one(eps, seed):
        start = fc.initial.sphere(MODEL, eps, key=jax.random.key(seed))
        return start.H, start.W, start.b, plateau_time(*problem_of(MODEL, start))

    eps, seeds = axes(lanes)
    starts = jax.jit(jax.vmap(one))(jnp.repeat(jnp.array(eps), seeds), jnp.tile(jnp.arange(seeds), len(eps)))
    H, W, b, ends = (np.asarray(x) for x in starts)
    return Batch(MODEL.counts[0], H, W, b, ends[:, None] * np.linspace(0, 1, SAVES), METHOD.rtol)


def timing_of(method: str, lanes: int, saves: int, budget_s: float, **options: Any) -> tuple[Timing, Row]:
    """The results of one method, and their cost. `options` are those of `fc.sweep`."""
    if method == OURS:
        grid, cost = costs(lambda: sweep(lanes, saves, **options), budget_s)
        H, W, b = (grid[name].values.reshape(lanes, *grid[name].shape[2:]) for name in ("H", "W", "b"))
        curves = np.stack([grid[name].values.reshape(lanes, -1) for name in METRICS], -1) if saves else None
        evaluations = grid["steps_evaluations"].values.ravel()
        more = {"efficiency": grid.attrs["lane_efficiency"], "remark": "fc.sweep"}
    else:
        peer = (PEERS if saves else END_ONLY)[method](batch_of(lanes))
        H, W, b, curves, evaluations = peer.H, peer.W, peer.b, peer.curves if saves else None, peer.evaluations
        cost = {"compile_s": peer.compile_s, "wall_s": peer.wall_s, "cpu_s": peer.cpu_s}
        more = {"remark": peer.remark}
    if curves is None:  # only the end is known
        curves = np.full((lanes, SAVES, len(METRICS)), np.nan)
        curves[:, -1] = flow_metrics(np, H, W, b, MODEL.counts[0])
    if evaluations is not None:
        more["evaluations"] = float(np.mean(evaluations))
    return Timing(method, H, W, b, curves, **cost, evaluations=evaluations, remark=more["remark"]), (
        speed(lanes, cost) | more
    )


def accuracy_of(timing: Timing, truth: Timing, known: np.ndarray) -> Row:
    """The largest errors over the lanes of seed 0 with a reference, one lane at each of several scales."""
    seeds = len(timing.W) // len(EPS)
    if seeds == 0:
        only = np.flatnonzero(known == MIDDLE)
        arrays = {name: getattr(truth, name)[only] for name in ("H", "W", "b", "curves")}
        truth, lanes = dataclasses.replace(truth, **arrays), np.zeros(1, int)
    else:
        lanes = known * seeds
    found = errors(timing, truth, lanes)
    shown = {"state_error": found["state"], "curve_error": found["curve"], "snc3_error": found["end_snc3"]}
    return {name: value for name, value in shown.items() if np.isfinite(value)}


# --- the other parts ----------------------------------------------------------------------------------------------


def width(spec: Row) -> Iterator[Row]:
    """The time per step and lane in blocks of every width, at every size, on one device."""
    for C, N, p in spec["sizes"]:
        model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
        eps = EPS[:: len(EPS) // 4]
        grid = make_grid(model, METHOD, eps, spec["lanes"] // len(eps), {})
        plan = Plan(grid, 1, (), True)
        [task] = tasks(grid, grid.shape)
        for lanes in spec["widths"]:
            local = Local(plan, task.num_lanes, jax.local_devices(), lanes)
            result, cost = costs(lambda local=local, task=task: local.submit((task,))(), spec["budget_s"])
            row = {"C": C, "N": N, "p": p, "size": state_size(model), "width": lanes, "lanes": task.num_lanes}
            row |= {"chosen": block_width(model, jax.local_devices(), 1024), "efficiency": result.taken / result.paid}
            yield row | cost | {"step_us": 1e6 * cost["cpu_s"] / result.taken}


def devices(spec: Row) -> Iterator[Row]:
    """A sweep on all devices of this process."""
    for saves in spec["saves"]:
        grid, cost = costs(lambda saves=saves: sweep(spec["lanes"], saves), spec["budget_s"])
        where = {"devices": len(jax.local_devices()), "cores": len(cores()), "saves": saves}
        yield where | speed(spec["lanes"], cost) | {"efficiency": grid.attrs["lane_efficiency"]}


def storing(spec: Row) -> Iterator[Row]:
    """The same sweep without save times, with save times, and into a store, in turns; the smallest time counts."""
    for lanes in spec["lanes"]:
        seconds: dict[str, list[tuple[float, float]]] = {"end states": [], "in memory": [], "into a store": []}
        megabytes = 0.0
        for turn in range(spec["rounds"] + 1):
            for kept, times in seconds.items():
                with tempfile.TemporaryDirectory() as folder:
                    store = Path(folder, "sweep.zarr")
                    wall, cpu = time.perf_counter(), time.process_time()
                    sweep(lanes, 0 if kept == "end states" else SAVES, store=store if kept == "into a store" else None)
                    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
                    megabytes = sum(file.stat().st_size for file in store.rglob("*") if file.is_file()) / 2**20
                if turn > 0:  # the first turn compiles
                    times.append((wall_s, cpu_s))
        for kept, times in seconds.items():
            least = {"wall_s": min(wall for wall, _ in times), "cpu_s": min(cpu for _, cpu in times)}
            row = {"kept": kept, "cores": len(cores()), "devices": len(jax.local_devices()), "rounds": len(times)}
            yield row | speed(lanes, least) | ({"written_mb": megabytes} if kept == "into a store" else {})


PARTS = {part.__name__: part for part in (throughput, width, devices, storing)}


def main() -> None:
    spec = spec_of_this_worker()
    jax.config.update("jax_platforms", "cpu")  # also on a machine with an accelerator
    fc.use_cpu_cores(spec.get("devices", 1))
    fc.enable_x64()
    device = jax.devices()[0]
    where = {"device": f"{device.platform}: {device.device_kind}"}
    for row in PARTS[spec["part"]](spec):
        emit(row | {"about": where})


if __name__ == "__main__":
    main()

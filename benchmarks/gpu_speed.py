"""Speed on an accelerator: lanes a second, steps of descent a second, and large problems. Parts of `gpu.py`."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import descent as descents
import jax
import numpy as np
from accuracy import reference
from fresh_process import Row
from gpu_programs import Setting
from large_runs import best, compiled, counts_of, problem
from peer_batch import PeerUnavailable
from sweep_run import EPS, OURS, SAVES, accuracy_of, batch_of, timing_of

from flowcollapse.model.coordinates import enter
from flowcollapse.sweeps.capacity import block_width

PEER = "vmap_diffeqsolve"
LANES = tuple(16 * 16**k for k in range(6))
"""Numbers of lanes, up to more than any card has memory for."""

NO_MEMORY = (MemoryError, jax.errors.JaxRuntimeError)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- lanes a second -----------------------------------------------------------------------------------------------


def throughput(setting: Setting) -> Iterator[Row]:
    """`fc.sweep` and diffrax against the number of lanes in one block, until memory or time is used up."""
    known = np.arange(0, len(EPS), len(EPS) // (2 if setting.quick else 8))
    truth = reference(batch_of(len(EPS)).take(known))
    all_saves = (0,) if setting.quick else (0, SAVES)
    for saves in all_saves:
        for method in (OURS, PEER):
            yield from series(setting, method, saves, truth, known, setting.seconds / len(all_saves) / 2)


def series(setting: Setting, method: str, saves: int, truth: Any, known: np.ndarray, within_s: float) -> Iterator[Row]:
    """One method at growing numbers of lanes; it ends when the next would not end in time."""
    began, before = time.perf_counter(), None
    for lanes in LANES[:1] if setting.quick else LANES:
        row: Row = {"method": method, "saves": saves, "lanes": lanes}
        left = within_s - (time.perf_counter() - began)
        if before and (expected := before["compile_s"] + 4 * before["wall_s"] * lanes / before["lanes"]) > left:
            yield row | {"skipped": f"would take up to {expected:.0f} s, and {left:.0f} s are left: raise --seconds"}
            return
        one_block = {"width": lanes, "lanes_per_task": lanes, "devices": [setting.device]} if method == OURS else {}
        try:
            timing, more = timing_of(method, lanes, saves, 0.0 if setting.quick else 2.0, **one_block)
        except PeerUnavailable as why:
            yield row | {"skipped": str(why)}
            return
        except NO_MEMORY as error:
            yield row | {"skipped": first_line(error)}
            return
        before = row | more | accuracy_of(timing, truth, known)
        del before["per_core_s"], before["cpu_s"]  # the work is not that of a processor
        yield before


# --- descent ------------------------------------------------------------------------------------------------------


def descent(setting: Setting) -> Iterator[Row]:
    """Steps of all lanes a second: ours bare and with saves, and a scan over optax by hand."""
    sizes, steps = ((16,), 50) if setting.quick else ((1024, 65536), 1000)
    repeats = 1 if setting.quick else 3
    for optimizer in ("sgd",) if setting.quick else descents.RATES:
        for lanes in sizes:
            block: dict[str, Any] = {"width": lanes, "lanes_per_task": lanes, "devices": [setting.device]}
            run = functools.partial(descents.ours, optimizer, lanes, steps, repeats, **block)
            ways: dict[str, Callable[[], descents.Run]] = {
                "optax scan by hand": lambda o=optimizer, n=lanes: descents.by_hand(o, n, steps, repeats, None),
                "flowcollapse": lambda run=run: run(record=False),
                f"flowcollapse, {descents.SAVES} points": lambda run=run: run(record=True),
            }
            first = None
            for name, way in list(ways.items())[: 2 if setting.quick else None]:
                row: Row = {"optimizer": optimizer, "method": name, "lanes": lanes, "steps": steps}
                try:
                    found = way()
                except NO_MEMORY as error:
                    yield row | {"skipped": first_line(error)}
                    continue
                first = first or found.end
                row |= {"lane_steps_per_s": lanes * steps / found.wall_s, "wall_s": found.wall_s}
                yield row | {"compile_s": found.compile_s, "difference": descents.difference(found.end, first)}


# --- large problems -----------------------------------------------------------------------------------------------

PROBLEMS = {"CIFAR-10": (10, 5000, 512), "ImageNet": (1000, 1281, 2048)}
"""C, N, p; ImageNet has 1,281,167 training images of 1,000 classes."""

SMALL_PROBLEM = {"small": (10, 50, 64)}


def large(setting: Setting) -> Iterator[Row]:
    """A run to the plateau in class-mean columns, and its products a second as a share of the device's."""
    peak = product_flops(512 if setting.quick else 8192)
    yield {"problem": "one product", "n": 512 if setting.quick else 8192, "tflops": peak / 1e12}
    for name, (C, N, p) in (SMALL_PROBLEM if setting.quick else PROBLEMS).items():
        model, start = problem(C, N, p)
        _, _, point = enter(model, start, "auto")
        row: Row = {"problem": name, "C": C, "N": N, "p": p, "width_chosen": block_width(model, [setting.device], 4096)}
        try:
            run, compile_s = compiled(model, start, "exponential")
            path, cost = best(lambda run=run: run(1e-6), 0.0 if setting.quick else 5.0, compile_s)
        except NO_MEMORY as error:
            yield row | {"skipped": first_line(error)}
            continue
        counts = counts_of(path)
        flops = counts["evaluations"] * 6 * C * point.X.size / cost.wall_s
        row |= {key: counts[key] for key in ("evaluations", "steps", "verdict")}
        row |= {"wall_s": cost.wall_s, "compile_s": cost.compile_s}
        yield row | {"tflops": flops / 1e12, "share_of_peak": flops / peak}


def product_flops(n: int) -> float:
    """Operations a second of one product of square matrices in float64, the fastest of several."""
    A = jax.random.normal(jax.random.key(0), (n, n))
    with jax.default_matmul_precision("highest"):
        product = jax.jit(lambda A: A @ A).lower(A).compile()
    jax.block_until_ready(product(A))
    _, cost = best(lambda: jax.block_until_ready(product(A)), 1.0)
    return 2 * n**3 / cost.wall_s


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {part.__name__: part for part in (throughput, descent, large)}

"""Time and memory to measure many features in one pass, against the matrix products that it cannot do without.

    python benchmarks/features.py [--quick] [--only NAME ...] [--out features.json]

A million features with 512 numbers of 1,000 classes come in batches of 4,096, as float32; making a batch is not timed.
Each competitor runs in its own process, so that its peak memory is known: `products` only multiplies each batch,
already centred and in float64, with itself, which is the floor; `ours` is `fc.metrics.Accumulator`; `numpy` and `torch`
are two passes as they are usually written, one for class means and one for the scatter about them. Times are CPU
seconds. The errors compare NC1 with that of the two passes in NumPy. Pin the process to one core (`taskset -c 0`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES, FEATURES, CLASSES, BATCH = 10**6, 512, 1000, 4096

COMPETITORS = ("products", "ours", "numpy", "torch")


class Data:
    """Batches that are the same in each pass."""

    def __init__(self, samples: int, p: int, C: int, batch: int):
        self.samples, self.p, self.C, self.batch = samples, p, C, batch
        rng = np.random.default_rng(0)
        self.centres = 2 * rng.standard_normal((C, p), np.float32)
        self.noise = rng.standard_normal((2 * batch, p), np.float32)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(1)
        for start in range(0, self.samples, self.batch):
            size = min(self.batch, self.samples - start)
            labels = rng.integers(0, self.C, size)
            shift = int(rng.integers(0, self.batch))
            yield self.noise[shift : shift + size] + self.centres[labels], labels


class Clock:
    """CPU seconds of the parts between `start` and `stop`."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self):
        self.began = time.process_time()

    def __exit__(self, *_):
        self.seconds += time.process_time() - self.began


def products(data: Data, clock: Clock) -> None:
    scatter = np.zeros((data.p, data.p))
    for features, _ in data:
        block = features.astype(np.float64)
        with clock:
            scatter += block.T @ block


def ours(data: Data, clock: Clock) -> float:
    import flowcollapse as fc

    fc.enable_x64()
    accumulator = fc.metrics.Accumulator(data.C)
    for features, labels in data:
        with clock:
            accumulator.update(features, labels)
    return float(accumulator.result(metrics="nc1")["nc1"])


def numpy(data: Data, clock: Clock) -> float:
    counts, sums = np.zeros(data.C), np.zeros((data.C, data.p))
    for features, labels in data:
        with clock:
            counts += np.bincount(labels, minlength=data.C)
            np.add.at(sums, labels, features)
    means, scatter = sums / counts[:, None], np.zeros((data.p, data.p))
    for features, labels in data:
        with clock:
            deviations = features - means[labels]
            scatter += deviations.T @ deviations
    return nc1(means, scatter / counts.sum())


def torch(data: Data, clock: Clock) -> float:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    counts = torch.zeros(data.C, dtype=torch.float64)
    sums = torch.zeros(data.C, data.p, dtype=torch.float64)
    for features, labels in data:
        with clock:
            where = torch.from_numpy(labels)
            counts += torch.bincount(where, minlength=data.C)
            sums.index_add_(0, where, torch.from_numpy(features).double())
    means, scatter = sums / counts[:, None], torch.zeros(data.p, data.p, dtype=torch.float64)
    for features, labels in data:
        with clock:
            deviations = torch.from_numpy(features).double() - means[torch.from_numpy(labels)]
            scatter += deviations.T @ deviations
    return nc1(means.numpy(), (scatter / counts.sum()).numpy())


def nc1(means: np.ndarray, scatter: np.ndarray) -> float:
    """`tr(S_W S_B^+) / C` from the covariances."""
    M = means - means.mean(axis=0)
    return float(np.trace(scatter @ np.linalg.pinv(M.T @ M / len(M))) / len(M))


def run(name: str, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    """One competitor in this process."""
    data, clock = Data(*sizes), Clock()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = globals()[name](data, clock)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"name": name, "seconds": clock.seconds, "nc1": value, "peak": peak * unit, "data": before * unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small batches: does it run at all")
    parser.add_argument("--only", nargs="+", choices=COMPETITORS, default=COMPETITORS)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (2000, 16, 10, 256) if options.quick else (SAMPLES, FEATURES, CLASSES, BATCH)
    if options.alone:
        print(json.dumps(run(options.alone, sizes)))
        return
    rows = []
    for name in options.only:
        words = [sys.executable, __file__, "--alone", name, *["--quick"] * options.quick]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        if found.returncode:
            print(f"{name}: not run, {found.stderr.strip().splitlines()[-1]}")
            continue
        rows.append(json.loads(found.stdout.splitlines()[-1]))
    floor = next((row["seconds"] for row in rows if row["name"] == "products"), float("nan"))
    exact = next((row["nc1"] for row in rows if row["name"] == "numpy"), None)
    print("| | CPU s | times the products | peak memory | error of NC1 |\n|---|---|---|---|---|")
    for row in rows:
        error = "" if exact is None or row["nc1"] is None else f"{abs(row['nc1'] / exact - 1):.0e}"
        print(
            f"| {row['name']} | {row['seconds']:.1f} | {row['seconds'] / floor:.2f} | {row['peak'] / 1e6:.0f} MB | "
            f"{error} |"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Sweeps of the paper's task: throughput, block widths, devices, and the cost of storing and starting.

    python benchmarks/sweep.py [--quick] [--only PART ...] [--out DIR]    # all of it: 30 minutes

C = N = 3, p = 15, float64, rtol 1e-6, starts of 16 sizes from eps = 1 to 1e-4, each to its own plateau time. Every run
keeps the end states; "saves" are 41 times with five metrics. Parts, each in separate processes:

- `throughput`: `fc.sweep` of 1 to 16,384 lanes, compared with the same lanes in one batch of diffrax, in torchode, in
  loops of scipy's solvers and in C: trajectories per second of wall time and of CPU time, and errors. All run on one
  core, and the first three also on all cores;
- `width`: the time per step and lane in blocks of 1 to 64 lanes, for states of several sizes;
- `devices`: the same sweep on 1, 2 and 4 CPU devices, each pinned to a core as long as there are enough;
- `storing`: a sweep into a store, the same sweep in memory, and one without save times, in turns;
- `start`: fresh processes: imports, `--help`, and the first result of a sweep of 16 lanes, including compilation.

All parts run on CPUs; `gpu.py` measures accelerators.

The fastest of several runs counts; "compile" is the extra time of the first call. CPU seconds cover all threads, and
"lanes/core s" is lanes per CPU second.
`--out` gets `sweep.json` (a new measurement of a part replaces the old one) and `sweep.png`.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fresh_process import Row, cores, environment, machine, rows_of
from scaling import width as width_of
from sweep_targets import (
    OURS,
    about_devices,
    about_start,
    about_storing,
    about_throughput,
    about_width,
)

SIZES = ((3, 3, 15), (3, 4, 15), (4, 3, 16), (4, 4, 18), (5, 6, 20), (6, 8, 24), (8, 10, 32), (10, 100, 64))
ONE_BATCH = ("vmap_diffeqsolve", "torchode_tsit5")
METHODS = (OURS, *ONE_BATCH, "scipy_dop853", "scipy_lsoda", "c_tsit5")
LONGEST_S = 30.0
SAVES = (0, 41)
HOURS_S = 4 * 3600.0
Options = argparse.Namespace
Columns = list[tuple[str, str, str]]


def throughput(options: Options) -> Iterator[Row]:
    spec: Row = {"part": "throughput", "longest_s": LONGEST_S}
    spec |= (
        {"lanes": (16,), "checked": 2, "budget_s": 0.0}
        if options.quick
        else {"lanes": (1, 64, 1024, 16384), "checked": 16, "budget_s": 5.0}
    )
    yield from on_cores(1, spec | {"methods": METHODS})
    if len(cores()) > 1 and not options.quick:
        # Ours uses one device per core. A peer's single batch has one device, whose operations all threads share.
        for methods, devices in (((OURS,), len(cores())), (ONE_BATCH, 1)):
            yield from on_cores(None, spec | {"methods": methods, "devices": devices, "lanes": (1024, 16384)})


def width(options: Options) -> Iterator[Row]:
    spec: Row = {"part": "width", "sizes": SIZES, "widths": (1, 4, 8, 16, 32, 64), "lanes": 256, "budget_s": 2.0}
    if options.quick:
        spec |= {"sizes": SIZES[:1], "widths": (1, 32), "lanes": 16, "budget_s": 0.0}
    yield from on_cores(1, spec)


def devices(options: Options) -> Iterator[Row]:
    """Measure in two rounds, so that other load on the machine does not spoil only one number of devices."""
    spec: Row = {"part": "devices", "saves": SAVES, "lanes": 8192, "budget_s": 5.0}
    if options.quick:
        spec |= {"saves": SAVES[1:], "lanes": 16, "budget_s": 0.0}
    for _ in range(1 if options.quick else 2):
        for count in (1, 2) if options.quick else (1, 2, 4):
            yield from on_cores(count, spec | {"devices": count})


def storing(options: Options) -> Iterator[Row]:
    spec: Row = {"part": "storing", "lanes": (1024, 65536), "rounds": 3}
    if options.quick:
        spec |= {"lanes": (16,), "rounds": 1}
    for count in (1,) if options.quick else sorted({1, len(cores())}):
        yield from on_cores(count, spec | {"devices": count})


FIRST_RESULT = """
import flowcollapse as fc
fc.enable_x64()
model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
eps = [10 ** (-4 * k / 15) for k in range(16)]
fc.sweep(model, fc.Flow(rtol=1e-6), eps=eps, seeds=1, progress=False{})
"""
STARTS = {
    "python": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import jax, diffrax": ("-c", "import jax, diffrax"),
    "import flowcollapse": ("-c", "import flowcollapse"),
    "import flowcollapse, fc.sweep": ("-c", "import flowcollapse as fc; fc.sweep"),
    "flowcollapse --help": ("-m", "flowcollapse.cli", "--help"),
    "first result, no metrics": ("-c", FIRST_RESULT.format(", metrics=(), ts=1, keep_final=True")),
    "first result, all metrics": ("-c", FIRST_RESULT.format("")),
}


def start(options: Options) -> Iterator[Row]:
    """Time processes from start to end, in turns, on all cores."""
    seconds: dict[str, list[tuple[float, float]]] = {what: [] for what in STARTS}
    if options.quick:
        del seconds["first result, all metrics"]
    for _ in range(1 if options.quick else 5):
        for what, times in seconds.items():
            wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, *STARTS[what]],
                env=environment() | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            wall_s, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                yield {"what": what, "failed": (done.stderr.splitlines() or ["no message"])[-1]}
                return
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times.append((wall_s, cpu_s))
    for what, times in seconds.items():
        wall_s, cpu_s = (min(column) for column in zip(*times, strict=True))
        yield {"what": what, "wall_s": wall_s, "cpu_s": cpu_s, "rounds": len(times)}


def on_cores(count: int | None, spec: Row) -> Iterator[Row]:
    """The rows of a worker that may use `count` cores; all cores by default or if there are fewer."""
    with pinned(count):
        yield from rows_of("sweep_run.py", spec, HOURS_S)


@contextmanager
def pinned(count: int | None) -> Iterator[None]:
    """Let processes started in the body use `count` cores."""
    before = cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, before)


# --- tables and files ---------------------------------------------------------------------------------------------

COLUMNS = {
    "method": ("method", "17s"),
    "what": ("what", "30s"),
    "kept": ("kept", "13s"),
    "C": ("C", "4d"),
    "N": ("N", "5d"),
    "p": ("p", "4d"),
    "size": ("size", "6d"),
    "width": ("width", "6d"),
    "chosen": ("chosen", "7d"),
    "step_us": ("us/step", "9.2f"),
    "devices": ("devices", "8d"),
    "cores": ("cores", "6d"),
    "saves": ("saves", "6d"),
    "lanes": ("lanes", "8d"),
    "per_s": ("lanes/s", "9.0f"),
    "per_core_s": ("lanes/core s", "13.0f"),
    "wall_s": ("wall s", "9.4f"),
    "cpu_s": ("cpu s", "9.4f"),
    "compile_s": ("compile", "8.1f"),
    "evaluations": ("evals", "7.0f"),
    "state_error": ("state", "8.0e"),
    "curve_error": ("curve", "8.0e"),
    "snc3_error": ("snc3", "8.0e"),
    "efficiency": ("effic.", "7.2f"),
    "written_mb": ("MB", "8.1f"),
}
"""Titles and formats, in the order of the tables. Each part names the columns of its table."""

PARTS: dict[str, tuple[Callable[[Options], Iterator[Row]], Callable[[list[Row], Row], list[Row]], str]] = {
    "throughput": (
        throughput,
        about_throughput,
        "method cores saves lanes per_s per_core_s compile_s evaluations state_error curve_error snc3_error efficiency",
    ),
    "width": (width, about_width, "C N p size width chosen step_us wall_s cpu_s compile_s efficiency"),
    "devices": (devices, about_devices, "devices cores saves lanes per_s per_core_s wall_s cpu_s compile_s"),
    "storing": (storing, about_storing, "kept cores lanes per_s per_core_s wall_s cpu_s written_mb"),
    "start": (start, about_start, "what wall_s cpu_s"),
}


def line_of(row: Row, columns: Columns) -> str:
    # The row of a failed worker holds its specification, including lists.
    known = {key: value for key, value in row.items() if isinstance(value, int | float | str)}
    cells = (format(known[key], form) if key in known else " " * width_of(form) for key, _, form in columns)
    remark = "; ".join(f"{key}: {row[key]}" for key in ("skipped", "failed") if key in row)
    return " ".join(cells).rstrip() + (f"  {remark}" if remark else "")


def measure(name: str, options: Options) -> Row:
    """Measure one part, printing its rows as they arrive."""
    run, conclude, names = PARTS[name]
    columns = [(key, *COLUMNS[key]) for key in COLUMNS if key in names.split()]
    titles = (format(title, f"{'<' if form[-1] == 's' else '>'}{width_of(form)}s") for _, title, form in columns)
    print(f"\n{name}\n{' '.join(titles)}", flush=True)
    about: Row = {"versions": installed(), **machine(), "argv": sys.argv, "quick": options.quick}
    begin, rows = time.perf_counter(), []
    for row in run(options):
        about |= row.pop("about", {})
        rows.append(row)
        print(line_of(row, columns), flush=True)
    seconds = time.perf_counter() - begin
    return {"about": about, "seconds": seconds, "rows": rows, "conclusions": conclude(rows, about)}


def installed() -> dict[str, str]:
    """Versions of Python and of the measured packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("flowcollapse", "jax", "jaxlib", "diffrax", "numpy", "zarr", "scipy", "torch", "torchode"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def print_conclusions(parts: dict[str, Row]) -> None:
    """Print the findings, then the aims and whether they are met."""
    found = [(name, line) for name, part in parts.items() for line in part["conclusions"]]
    texts = [f"- {name}: {line['what']}: {line['value']:.4g}" for name, line in found]
    print("", *(text for text, (_, line) in zip(texts, found, strict=True) if "aim" not in line), "", "aims", sep="\n")
    for text, (name, line) in zip(texts, found, strict=True):
        if "aim" in line:
            verdict = "too small to tell" if parts[name]["about"]["quick"] else "met" if line["met"] else "MISSED"
            print(f"{text}  ({line['aim']}: {verdict})")


def write(folder: Path, parts: dict[str, Row]) -> None:
    """Add the parts to the JSON file, which keeps its other parts, and draw all of them."""
    import sweep_figure

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    known = (json.loads(path.read_text()) if path.exists() else {}) | parts
    path.write_text(json.dumps(known, indent=1) + "\n")
    sweep_figure.draw(known, folder / "sweep.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small sweeps: does it run at all")
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", help="only these parts")
    parser.add_argument("--out", type=Path, help="folder for sweep.json and sweep.png")
    options = parser.parse_args()
    if options.quick:  # programs run so briefly that optimising them does not pay
        os.environ |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "TORCHDYNAMO_DISABLE": "1"}
    parts: dict[str, Row] = {}
    for name in options.only or PARTS:
        parts[name] = measure(name, options)
        if options.out:
            write(options.out, {name: parts[name]})
    print_conclusions(parts)
    failures = sum("failed" in row for part in parts.values() for row in part["rows"])
    if failures:
        sys.exit(f"{failures} measurements failed; the rows above say why")


if __name__ == "__main__":
    main()

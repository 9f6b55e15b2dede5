"""Large problems: their cost, its ratio to the minimum, and error against time.

    python benchmarks/scaling.py [--quick] [--imagenet] [--only PART ...] [--out DIR]

Parts, each measured in separate processes, in float64, at eps = 1e-3, from the start to the plateau time:

- `samples`: time, evaluations and peak memory against N = 10^2 ... 10^6 samples per class at C = 10, p = 64, compared
  with Tsit5 in the same class-mean coordinates, and with explicit solvers on the full state as long as a run takes less
  than two minutes;
- `cifar`: C = 100, N = 500, p = 512, with the time of the matrix products that every method needs;
- `precision`: error against time for many solvers at three sizes;
- `imagenet` (only with `--imagenet`): C = 1000, N = 1300, p = 2048.

Times are those of the fastest run of one compiled program; compilation is timed separately. CPU seconds cover all
threads. `--out` gets `scaling.json` (a new measurement of a part replaces the old one) and the figures.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fresh_process import Row, machine, rows_of
from scaling_targets import about_cifar, about_imagenet, about_precision, about_samples

NUMBERS_OF_SAMPLES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
QUICK_NUMBERS = {"ours": (10_000,), "tsit5_full": (10,)}
LONGEST_S = 120.0
METHODS = {"ours": 0.0, "tsit5_class_mean": 0.5, "tsit5_full": 1.5, "scipy_dop853": 1.5}
"""How the time of each method grows with N: explicit steps as `C sqrt N`, the full state as `C N p`."""

CIFAR = (100, 500, 512)
IMAGENET = (1000, 1300, 2048)
PRECISION_SIZES = ((3, 3, 15), (10, 100, 64), (100, 500, 512))
PRECISION_RTOLS = tuple(10.0**-k for k in range(4, 13))
Options = argparse.Namespace


def samples(options: Options) -> Iterator[Row]:
    """Every method from small to large N, as long as the next run is expected to fit into the time and the memory."""
    C, p, rtols, longest = (3, 8, (1e-6,), 10.0) if options.quick else (10, 64, (1e-6, 1e-8), LONGEST_S)
    numbers = QUICK_NUMBERS if options.quick else dict.fromkeys(METHODS, NUMBERS_OF_SAMPLES)
    memory_mb = machine()["memory_gb"] * 2**10
    for method, of_method in numbers.items():
        power = METHODS[method]
        for rtol in rtols:
            before: Row | None = None
            for N in of_method:
                spec = {"method": method, "C": C, "N": N, "p": p, "rtol": rtol, "check": not options.quick}
                if before is not None:
                    seconds = before["wall_s"] * (N / before["N"]) ** power
                    size = before["net_mb"] * (N / before["N"] if power > 1 else 1)
                    reason = f"would take about {seconds:,.0f} s and {size / 2**10:,.1f} GB"
                    if seconds > longest or size > memory_mb / 2:
                        yield {**spec, "skipped": reason}
                        break
                row = yield from _only_row(spec, 10 * LONGEST_S)
                if "wall_s" not in row:
                    break
                before = row


def cifar(options: Options) -> Iterator[Row]:
    C, N, p = (10, 20, 40) if options.quick else CIFAR
    for rtol in (1e-6,) if options.quick else (1e-6, 1e-8):
        spec = {"method": "ours", "C": C, "N": N, "p": p, "rtol": rtol, "floor": True, "check": not options.quick}
        yield from _only_row(spec | {"budget_s": 6.0}, 600)


def imagenet(options: Options) -> Iterator[Row]:
    C, N, p = options.imagenet_size
    spec = {"method": "ours", "C": C, "N": N, "p": p, "rtol": 1e-6, "floor": True, "budget_s": 0.0}
    yield from _only_row(spec, 3600)


def precision(options: Options) -> Iterator[Row]:
    sizes, rtols = (PRECISION_SIZES[:1], (1e-4, 1e-8)) if options.quick else (PRECISION_SIZES, PRECISION_RTOLS)
    for C, N, p in sizes:
        spec: Row = {"C": C, "N": N, "p": p, "rtols": rtols, "limit_s": 60.0}
        if options.quick:
            spec |= {"methods": ("exponential", "DOP853"), "budget_s": 0.2}
        yield from rows_of("work_precision.py", spec, 3600)


def _only_row(spec: Row, timeout_s: float):
    """Yield the single row of a worker, and return it too."""
    row: Row = {}
    for row in rows_of("scaling_run.py", spec, timeout_s):
        yield row
    return row


# --- tables and files ---------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("method", "method", "18s"),
    ("C", "C", "5d"),
    ("N", "N", "8d"),
    ("p", "p", "5d"),
    ("rtol", "rtol", "7.0e"),
    ("wall_s", "wall s", "9.4f"),
    ("cpu_s", "cpu s", "9.4f"),
    ("compile_s", "compile", "8.1f"),
    ("evaluations", "evals", "8d"),
    ("steps", "steps", "6d"),
    ("state_error", "state", "8.0e"),
    ("snc3_error", "snc3", "8.0e"),
    ("net_mb", "net MB", "8.0f"),
    ("imports_mb", "imports", "8.0f"),
)


def width(form: str) -> int:
    return int(form.split(".")[0].rstrip("sd"))


def line_of(row: Row) -> str:
    cells = (format(row[key], form) if row.get(key) is not None else " " * width(form) for key, _, form in COLUMNS)
    remark = "; ".join(f"{key}: {row[key]}" for key in ("skipped", "failed") if key in row)
    if row.get("verdict", "plateau") != "plateau":
        remark = "; ".join(filter(None, (remark, f"ended early: {row['verdict']}")))
    if "reference_against" in row:
        gaps = (row["reference_state_error"], row["reference_snc3_error"])
        remark = "state {:.0e} and SNC3 {:.0e} from {}".format(*gaps, row["reference_against"])
    if "floor_jax_cpu_s" in row:
        remark = (
            f"q x n = {row['q']} x {row['n']}, {row['operations_per_rhs'] / 1e6:.1f} M operations and "
            f"{row['bytes_per_rhs'] / 2**20:.1f} MB a right-hand side, {1e3 * row['rhs_wall_s']:.2f} ms "
            f"({row['rhs_gflops']:.0f} GFLOP/s), SNC1 {row['snc1']:.0e}, peak {row['peak_mb']:.0f} MB"
        )
    return " ".join(cells).rstrip() + (f"  {remark}" if remark else "")


PARTS: dict[str, tuple[Callable[[Options], Iterator[Row]], Callable[[list[Row]], list[Row]]]] = {
    "samples": (samples, about_samples),
    "cifar": (cifar, about_cifar),
    "precision": (precision, about_precision),
    "imagenet": (imagenet, about_imagenet),
}


def measure(name: str, options: Options) -> Row:
    """Measure one part, printing its rows as they arrive."""
    run, conclude = PARTS[name]
    print(
        f"\n{name}\n"
        + " ".join(format(title, f"{'<' if form[-1] == 's' else '>'}{width(form)}s") for _, title, form in COLUMNS)
    )
    begin, rows, about = time.perf_counter(), [], {}
    for row in run(options):
        about = row.pop("about", about)
        rows.append(row)
        print(line_of(row), flush=True)
    conclusions = conclude(rows)
    for line in conclusions:
        bound = (
            ""
            if line["limit"] == float("inf")
            else f"  (at most {line['limit']:g}: {'met' if line['met'] else 'MISSED'})"
        )
        print(f"- {line['target']}: {line['value']:.4g}{bound}")
        for run_ in line.get("runs", ()):
            print(f"    {run_}")
    about = about | {
        "command": sys.argv,
        "environment": {k: v for k, v in os.environ.items() if k in ("XLA_FLAGS", "OMP_NUM_THREADS")},
    }
    return {"about": about, "seconds": time.perf_counter() - begin, "rows": rows, "conclusions": conclusions}


def write(folder: Path, name: str, part: Row) -> None:
    """Add the part to the JSON file, which keeps its other parts, and draw its figure."""
    import scaling_figures

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scaling.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(known | {name: part}, indent=1).replace("Infinity", "null")
    path.write_text(text + "\n")
    if name == "samples":
        scaling_figures.against_samples(part["rows"], folder / "samples.png")
    if name == "precision":
        scaling_figures.error_against_time(part["rows"], folder / "precision.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few peers: does it run at all")
    parser.add_argument("--imagenet", action="store_true", help="also C=1000, N=1300, p=2048: minutes")
    parser.add_argument("--imagenet-size", type=int, nargs=3, default=IMAGENET, metavar=("C", "N", "p"))
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", help="only these parts")
    parser.add_argument("--out", type=Path, help="folder for scaling.json and the figures")
    options = parser.parse_args()
    names = options.only or [name for name in PARTS if name != "imagenet" or options.imagenet]
    failures = 0
    for name in names:
        part = measure(name, options)
        failures += sum("failed" in row for row in part["rows"])
        if options.out:
            write(options.out, name, part)
    if failures:
        sys.exit(f"{failures} measurements failed; the rows above say why")


if __name__ == "__main__":
    main()

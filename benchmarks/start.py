"""Time to the first result of every call and command in a fresh process, with an empty and with a filled cache.

    python benchmarks/start.py [--quick] [--out start.json] [--only simulate "sweep command" ...]

C = N = 3, p = 15. The table gives wall and CPU seconds (all threads; for a process including its start and end), and
the number of programs that XLA compiled. `cold` starts with an empty folder of compiled programs; `warm` is the same
process again. The peers solve the same problem to the same end: plain diffrax (Tsit5, with JAX's own cache settings),
and scipy's DOP853.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fresh_process import MARK, Row, environment, machine

CALLS = ("simulate", "descent", "sweep", "growing", "predict", "grad", "diffrax", "scipy")
"""The cases of `start_run.py`."""

COMMANDS = {
    "info command": "info",
    "simulate command": "simulate --out run.nc",
    "plot command": "plot run.nc --out run.png",
    "sweep command": "sweep --eps 0.1 --seeds 16 --out sweep.nc",
    "compare command": "compare --eps 0.1 --seeds 4 --out compare.nc",
    "verify command": "verify",
    "reproduce command": "reproduce --out figures",
}

QUICK = ("simulate", "scipy", "info command")

JAX_OWN = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def process(command: list[str], folder: Path, variables: dict[str, str]) -> tuple[str, Row]:
    """The output of a process, and its cost."""
    begin = time.perf_counter()
    env = environment() | variables
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, cwd=folder, env=env)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        out.seek(0), err.seek(0)
        printed, told = out.read(), err.read().strip().splitlines()
    row: Row = {"step": "process", "wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime}
    if child.returncode:
        row["failed"] = f"exit code {child.returncode}: {told[-1] if told else ''}"
    return printed, row


def rows_of(case: str, folder: Path) -> Iterator[Row]:
    """A case with an empty cache, and again with the programs that the first process left there."""
    with tempfile.TemporaryDirectory() as kept:
        variables = {"XDG_CACHE_HOME": kept, "MPLCONFIGDIR": str(folder / "matplotlib")}
        if case == "diffrax":
            variables |= {"JAX_COMPILATION_CACHE_DIR": kept} | JAX_OWN
        worker = [str(Path(__file__).with_name("start_run.py")), json.dumps({"case": case})]
        command = ["-m", "flowcollapse", *COMMANDS[case].split()] if case in COMMANDS else worker
        for cache in ("cold", "warm"):
            printed, total = process(command, folder, variables)
            steps = (json.loads(line.removeprefix(MARK)) for line in printed.splitlines() if line.startswith(MARK))
            yield from ({"case": case, "cache": cache} | row for row in (*steps, total))


def table(rows: list[Row]) -> str:
    """One line per step, with the cold process beside the warm one."""
    lines = [
        "| case | step | cold: wall s | CPU s | compiled | warm: wall s | CPU s | compiled |",
        f"|{'---|' * 8}",
    ]
    sides = {cache: [row for row in rows if row["cache"] == cache] for cache in ("cold", "warm")}
    for cold, warm in zip(sides["cold"], sides["warm"], strict=True):
        cells = [cell for row in (cold, warm) for cell in _cells(row)]
        lines.append(f"| {cold['case']} | {cold['step']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    if "failed" in row:
        return [row["failed"], "", ""]
    compiled = f"{row['compiled']} of {row['programs']}" if row.get("programs") else ""
    return [f"{row['wall_s']:.2f}", f"{row['cpu_s']:.2f}", compiled]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--only", nargs="+", choices=[*CALLS, *COMMANDS], help="only these cases")
    parser.add_argument("--out", type=Path, help="file for the rows, JSON")
    options = parser.parse_args()
    cases = options.only or (QUICK if options.quick else [*CALLS, *COMMANDS])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            rows += rows_of(case, Path(folder))
            print(f"{case}: {rows[-1].get('failed', 'done')}", file=sys.stderr, flush=True)
    print(table(rows))
    if options.out is not None:
        from flowcollapse.results.provenance import versions

        about = {"machine": machine(), "versions": versions(), "rows": rows}
        options.out.write_text(json.dumps(about, indent=1) + "\n")
        print(f"Wrote {options.out}")
    if any("failed" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()

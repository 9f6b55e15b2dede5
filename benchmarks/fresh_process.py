"""Runs each measurement in a separate process, so that memory and threads of one do not affect the next.

A worker is a script that reads one JSON object from its command line and prints one JSON object per line. This module
imports neither jax nor NumPy, to keep the parent process small.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
MARK = "row: "


def rows_of(script: str, spec: Row, timeout_s: float) -> Iterator[Row]:
    """The rows that the worker measures, as they arrive. If it failed or had to be stopped, the last row says so."""
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(spec)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as worker:
        stop = threading.Timer(timeout_s, worker.kill)
        stop.start()
        last = ""
        try:
            for line in worker.stdout or ():
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
                elif line.strip():
                    last = line.strip()
        finally:
            stop.cancel()
            if worker.poll() is None and sys.exc_info()[0] is not None:
                worker.kill()
    if worker.returncode:
        reason = f"stopped after {timeout_s:.0f} s" if worker.returncode == -9 else last
        yield {**spec, "failed": f"exit code {worker.returncode}: {reason}"}


def environment() -> dict[str, str]:
    """The environment of this process, with this source tree first on the Python path."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def spec_of_this_worker() -> Row:
    return json.loads(sys.argv[1])


def emit(row: Row) -> None:
    """Hand one row to the process that started this worker."""
    print(MARK + json.dumps(row), flush=True)


def peak_mb() -> float:
    """The largest resident memory of this process so far, in 2^20 bytes.

    On Linux, `ru_maxrss` starts at the size of the parent process, while `VmHWM` starts at zero.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def machine() -> Row:
    """The processor, the number of its cores and the memory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": name, "cores": len(cores()), "memory_gb": round(memory, 1), "system": platform.platform()}


def cores() -> set[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))

"""One command for an accelerator: are the numbers right, how fast is it, and where do time and memory go.

    python benchmarks/gpu.py --out gpu                          # all parts, under six minutes on a card
    python benchmarks/gpu.py --only correctness kernels         # some of them
    python benchmarks/gpu.py --device cpu --quick               # small, on a CPU: does it run at all

Each part stands alone:

- `correctness`: every start, metric and method in float64 and float32, a block of lanes on the device against each lane
  alone on the CPU of the same machine; the exit code is 1 if one deviates by more than its bound;
- `throughput`: lanes a second from 16 lanes to as many as memory holds: `fc.sweep` in one block, and one batch of
  diffrax; end states alone and 41 save times; errors against scipy at 1e-13;
- `kernels`: kernels launched for each step, counted in the compiled program;
- `descent`: steps a second of SGD and Adam, ours and a scan over optax by hand;
- `large`: one run of the size of CIFAR-10 and of ImageNet, and its share of the device's fastest matrix product;
- `memory`: bytes a lane, as the compiler plans them and as the device counts them;
- `profile`: a trace for XProf or Perfetto in the folder of `--out`, with the kernels that take longest.

C = N = 3, p = 15, float64 and rtol 1e-6 where nothing else is said. Compilation is timed separately, all results are
waited for, and the fastest of several runs counts. `--out` gets `gpu.json`; a new measurement of a part replaces the
old one.
"""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_correctness
import gpu_programs
import gpu_speed
import jax
from fresh_process import Row, machine

import flowcollapse as fc
from flowcollapse.results.provenance import versions

PARTS = gpu_correctness.PARTS | gpu_speed.PARTS | gpu_programs.PARTS
SECONDS = 120.0


def chosen_device(kind: str | None) -> Any:
    """The first device of a kind, by default of JAX's choice. A CPU is always there too, for comparisons.

    Raises:
        SystemExit: with exit code 2 if there is none.
    """
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif (given := os.environ.get("JAX_PLATFORMS")) and "cpu" not in given.split(","):
        jax.config.update("jax_platforms", f"{given},cpu")
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        device, why = None, str(error).splitlines()[0]
    else:
        why = f"JAX's first device is a {device.platform}"
    if device is None or kind not in (None, device.platform):
        print(f"no {kind or 'device'} to measure: {why}", file=sys.stderr)
        sys.exit(2)
    return device


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def measure(name: str, setting: gpu_programs.Setting) -> Row:
    """Measure one part, printing its rows as they arrive. A fault ends the part and becomes its last row."""
    print(f"\n{name}", flush=True)
    begin, rows = time.perf_counter(), []

    def note(row: Row) -> None:
        rows.append(row)
        known = {key: value for key, value in row.items() if not isinstance(value, dict)}
        print("  " + ", ".join(f"{key} {shown(value)}" for key, value in known.items()), flush=True)

    try:
        for row in PARTS[name](setting):
            note(row)
    except Exception as error:  # one part must not take the others with it
        traceback.print_exc()
        note({"failed": f"{type(error).__name__}: {gpu_speed.first_line(error)}"})
    seconds = time.perf_counter() - begin
    print(f"  {seconds:.0f} s", flush=True)
    return {"seconds": seconds, "rows": rows}


def write(folder: Path, about: Row, name: str, part: Row) -> None:
    """Put a part into the JSON file, which keeps the other parts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: {"about": about} | part}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small measurements: does it run at all")
    parser.add_argument("--only", choices=tuple(PARTS), nargs="+", metavar="PART", help="only these parts")
    parser.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: the accelerator, if there is one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for the part throughput (120)")
    parser.add_argument("--out", type=Path, help="folder for gpu.json and the trace")
    options = parser.parse_args()
    device = chosen_device(options.device)
    fc.enable_x64()
    setting = gpu_programs.Setting(device, options.quick, options.out, options.seconds)
    where = f"{device.platform}: {device.device_kind}"
    about = {"versions": versions(), "device": where, **machine(), "argv": sys.argv[1:], "quick": options.quick}
    print(f"{where}, jax {jax.__version__}")
    parts: dict[str, Row] = {}
    for name in options.only or PARTS:
        parts[name] = measure(name, setting)
        if options.out:
            write(options.out, about, name, parts[name])
    rows = [row for part in parts.values() for row in part["rows"]]
    wrong, failed = (sum(map(test, rows)) for test in (lambda r: not r.get("fine", True), lambda r: "failed" in r))
    if wrong or failed:
        sys.exit(f"{wrong} numbers deviate too much, {failed} parts failed: the rows above say which")


if __name__ == "__main__":
    main()

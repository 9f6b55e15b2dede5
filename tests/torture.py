"""Kill a sweep repeatedly, resume it, and compare the result with an undisturbed run, bit by bit.

    python tests/torture.py [--kills 50] [--seed 0] [--tasks 400] [--grow]

With `--grow` both stores start with half of the seeds at one scale, and the sweeps add the other seeds and scale. The
last bits of a lane depend on its place in a block, which growing changes, so the undisturbed run grows too.

Half of the kills (SIGKILL) come at a random moment after the sweep has begun to write. The other half come within a
hundredth of a second after a new file appears, while the files of a task are being written.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

import flowcollapse as fc

LANES = 8

SWEEP = f"""
import sys
import flowcollapse as fc
fc.enable_x64()
fc.use_cpu_cores(1)
model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
method = fc.Descent("sgd", num_steps=400, learning_rate=0.02)
eps, seeds = [float(x) for x in sys.argv[2].split(",")], int(sys.argv[3])
data = fc.sweep(model, method, eps=eps, seeds=seeds, ts=21, width={LANES}, lanes_per_task={LANES}, store=sys.argv[1],
                progress=False)
print(data.attrs["lanes_computed"])
"""


def whole(tasks: int) -> tuple[str, str]:
    """The scales of the starts, and the number of seeds."""
    return "1.0,0.1", str(tasks * LANES // 2)


def part(tasks: int) -> tuple[str, str]:
    """The grid of the store before it grows; its odd number of seeds leaves a chunk partly filled."""
    return "0.1", str(tasks * LANES // 4 - 3)


def command(store: Path, grid: tuple[str, str]) -> list[str]:
    return [sys.executable, "-c", SWEEP, str(store), *grid]


def files(store: Path) -> int:
    """The number of chunk files, complete or not."""
    return sum(len(names) for _, _, names in os.walk(store))


def killed(store: Path, grid: tuple[str, str], moment: random.Random) -> bool:
    """Start the sweep, kill it, and say whether it was killed before it could end."""
    process = subprocess.Popen(command(store, grid), stdout=subprocess.DEVNULL)
    before = files(store)
    while process.poll() is None and files(store) == before:
        time.sleep(0.002)
    time.sleep(moment.choice((moment.uniform(0, 0.01), moment.uniform(0, 0.3))))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--tasks", type=int, default=400, help="of the sweep, with 8 lanes each")
    parser.add_argument("--grow", action="store_true", help="kill a sweep that adds to a store")
    options = parser.parse_args()
    moment, grid = random.Random(options.seed), whole(options.tasks)
    with tempfile.TemporaryDirectory() as folder:
        # Programs are compiled once and loaded by all later processes.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        undisturbed, disturbed = Path(folder, "undisturbed.zarr"), Path(folder, "disturbed.zarr")
        for store in (undisturbed, disturbed) if options.grow else ():
            subprocess.run(command(store, part(options.tasks)), check=True, stdout=subprocess.DEVNULL)
        subprocess.run(command(undisturbed, grid), check=True, stdout=subprocess.DEVNULL)
        kills = 0
        while kills < options.kills and killed(disturbed, grid, moment):
            kills += 1
        done = int((fc.open_sweep(disturbed)["verdict"] >= 0).sum())
        last = subprocess.run(command(disturbed, grid), check=True, capture_output=True, text=True)
        resumed = int(last.stdout)
        expected, found = (xr.open_zarr(store).load() for store in (undisturbed, disturbed))
        found = found.sel(eps=expected["eps"])  # added values come last
        for name, values in expected.variables.items():
            np.testing.assert_array_equal(found[name].values, values.values, err_msg=str(name))
        assert resumed == options.tasks * LANES - done, (resumed, done)
        assert kills == options.kills, f"only {kills} kills before the sweep was complete: make it longer"
    sys.stdout.write(
        f"{kills} kills; the last run computed {resumed} of {options.tasks * LANES} lanes; the result is identical\n"
    )


if __name__ == "__main__":
    main()

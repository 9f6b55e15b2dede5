"""Kill a sweep again and again, resume it, and compare what comes out with an undisturbed run, bit by bit.

    python tests/torture.py [--kills 50] [--seed 0]

Half of the kills (SIGKILL) come at a random moment after the sweep has begun to write, half within a hundredth of a
second after a new file has appeared, which is in the middle of a task's files.
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

TASKS, LANES = 400, 8

SWEEP = f"""
import sys
import flowcollapse as fc
fc.enable_x64()
fc.use_cpu_cores(1)
model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
method = fc.Descent("sgd", num_steps=400, learning_rate=0.02)
data = fc.sweep(model, method, eps=[1.0, 0.1], seeds={TASKS * LANES // 2}, ts=21, width={LANES},
                lanes_per_task={LANES}, store=sys.argv[1], progress=False)
print(data.attrs["lanes_computed"])
"""


def command(store: Path) -> list[str]:
    return [sys.executable, "-c", SWEEP, str(store)]


def files(store: Path) -> int:
    """How many chunks there are, whole or not."""
    return sum(len(names) for _, _, names in os.walk(store))


def killed(store: Path, moment: random.Random) -> bool:
    """Start the sweep, kill it, and say whether it was killed before it could end."""
    process = subprocess.Popen(command(store), stdout=subprocess.DEVNULL)
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
    options = parser.parse_args()
    moment = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        # Programs are compiled once and read by all the processes that follow.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        undisturbed, disturbed = Path(folder, "undisturbed.zarr"), Path(folder, "disturbed.zarr")
        subprocess.run(command(undisturbed), check=True, stdout=subprocess.DEVNULL)
        kills = 0
        while kills < options.kills and killed(disturbed, moment):
            kills += 1
        marks = sum(1 for file in (disturbed / "verdict" / "c").rglob("*") if file.is_file())
        last = subprocess.run(command(disturbed), check=True, capture_output=True, text=True)
        resumed = int(last.stdout)
        expected, found = (xr.open_zarr(store).load() for store in (undisturbed, disturbed))
        for name, values in expected.variables.items():
            np.testing.assert_array_equal(found[name].values.view(), values.values, err_msg=str(name))
        assert resumed == TASKS * LANES - marks * LANES, (resumed, marks)
        assert kills == options.kills, f"only {kills} kills before the sweep was complete: make it longer"
    sys.stdout.write(
        f"{kills} kills; the last run computed {resumed} of {TASKS * LANES} lanes; the result is identical\n"
    )


if __name__ == "__main__":
    main()

# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false
# (distributed's classes are typed for their asynchronous use)
"""A sweep on a Dask cluster of two worker processes, run by `test_cluster.py`. Prints its observations as JSON.

python tests/cluster_program.py killed FOLDER    a worker is killed while it computes
python tests/cluster_program.py tls FOLDER       the command line, over TLS with certificates
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from distributed import Client, LocalCluster
from distributed.security import Security

import flowcollapse as fc

OPTIONS = {"eps": [1.0, 0.1], "seeds": 16, "ts": 3, "metrics": ["risk", "snc1"], "width": 4, "progress": False}
STEPS = 15_000
"""Enough lanes that a task can be killed while it runs."""


def sweep(**more):
    model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
    method = fc.Descent("sgd", num_steps=STEPS, learning_rate=0.02)
    return fc.sweep(model, method, lanes_per_task=4, **OPTIONS, **more)


def killed(folder: Path) -> dict:
    store, seen = folder / "a.zarr", {}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        before = client.run(os.getpid)

        def kill_one() -> None:
            while not any((store / "verdict").glob("c/*/*")):
                time.sleep(0.01)
            seen["marks"] = len(list((store / "verdict").glob("c/*/*")))
            os.kill(next(iter(before.values())), signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        found = sweep(store=store, scheduler=client)
        killer.join()
        after = client.run(os.getpid)
    alone = sweep()
    return seen | {
        "survivors": len(set(after.values()) & set(before.values())),
        "computed": int(found.attrs["lanes_computed"]),
        "same": all(bool((found[name].values == alone[name].values).all()) for name in alone.data_vars),
    }


def tls(folder: Path) -> dict:
    security = Security.temporary()
    files = {"--tls-ca-file": "tls_ca_file", "--tls-cert": "tls_client_cert", "--tls-key": "tls_client_key"}
    words = []
    for flag, name in files.items():
        (folder / name).write_text(getattr(security, name))
        words += [flag, str(folder / name)]
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, security=security
    ) as cluster:
        command = [
            sys.executable,
            "-m",
            "flowcollapse.cli",
            "sweep",
            "--eps",
            "0.1",
            "--seeds",
            "4",
            "--metrics",
            "risk",
        ]
        command += ["--method", "descent", "--num-steps", "50", "--scheduler", cluster.scheduler_address]
        good = subprocess.run([*command, *words], capture_output=True, text=True)
        without = subprocess.run(command, capture_output=True, text=True)
    return {
        "address": cluster.scheduler_address,
        "good": [good.returncode, good.stdout],
        "without": [without.returncode, without.stderr],
    }


if __name__ == "__main__":
    fc.enable_x64()
    sys.stdout.write(json.dumps({"killed": killed, "tls": tls}[sys.argv[1]](Path(sys.argv[2]))))

"""Sweeps by several processes: a Dask cluster whose workers die, TLS, and processes that share one store."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowcollapse as fc
from flowcollapse import cli


def program(kind: str, folder: Path) -> dict:
    file = Path(__file__).with_name("cluster_program.py")
    done = subprocess.run([sys.executable, file, kind, folder], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_killed_worker_had_is_computed_by_another(tmp_path):
    seen = program("killed", tmp_path)
    assert 1 <= seen["marks"] < 8  # it died before the end
    assert seen["survivors"] == 1
    assert seen["computed"] == 32
    assert seen["same"]


def test_certificates_are_passed_through(tmp_path):
    seen = program("tls", tmp_path)
    assert seen["address"].startswith("tls://")
    code, printed = seen["good"]
    assert code == 0
    assert "4 lanes (1 eps x 4 seed)" in printed
    code, told = seen["without"]
    assert code == 2
    assert "needs certificates" in told


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_processes_share_one_store(tmp_path):
    store, words = (
        tmp_path / "a.zarr",
        "--eps 1 0.1 --seeds 10 --metrics risk --num-saves 3 --lanes-per-task 3 --width 1",
    )
    method = "--method descent --num-steps 60 --learning-rate 0.05 --devices 1"
    joined = f"--distributed --coordinator 127.0.0.1:{free_port()} --num-processes 2"
    command = [sys.executable, "-m", "flowcollapse.cli", "sweep", *f"{words} {method} {joined}".split()]
    processes = [
        subprocess.Popen(
            [*command, "--store", str(store), "--process-id", str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    computed = [int(line.split()[0]) for out, _ in outputs for line in out.splitlines() if "computed now" in line]
    assert sorted(computed) == [8, 12]  # eight tasks of at most three lanes, shared alternately
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
    descent = fc.Descent("sgd", num_steps=60, learning_rate=0.05)
    options = {"eps": [1.0, 0.1], "seeds": 10, "ts": 3, "metrics": ["risk"], "width": 1, "progress": False}
    alone = fc.sweep(model, descent, **options)
    found = fc.open_sweep(store)
    assert (found["verdict"] >= 0).all()
    np.testing.assert_array_equal(found["risk"], alone["risk"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--scheduler tcp://127.0.0.1:1", "does not answer"),
        ("--scheduler tls://127.0.0.1:1", "needs certificates"),
        ("--scheduler tls://127.0.0.1:1 --tls-ca-file no.pem --tls-cert no.pem --tls-key no.pem", "is not a file"),
        ("--scheduler nonsense://1", "does not answer"),
    ],
)
def test_a_cluster_that_is_not_there_is_told(words, message, capsys, monkeypatch):
    from flowcollapse.sweeps import cluster

    monkeypatch.setattr(cluster, "PATIENCE", "1s")
    assert cli.main(["sweep", *words.split()]) == 2
    assert message in capsys.readouterr().err

"""The command that a page shows for a run gives the numbers of that run."""

import shlex
from typing import Any

import numpy as np
import optax
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.reporting.rerun import rerun

MODEL = fc.UFM(num_classes=3, samples_per_class=2, num_features=3)
KEPT: dict[str, Any] = {"ts": 3, "metrics": ("risk", "snc1"), "progress": False}


def small(name):
    """A small result of each kind, the lanes to run again, and a part of the command that shows its axes."""
    if name == "decays":
        decays = [(0.01, 0.01, 0.01), (0.01, 0.02, 0.0)]
        found = fc.sweep(MODEL, fc.Flow(t1=1.0, rtol=1e-6), eps=[0.1, 0.3], seeds=[3, 5], weight_decay=decays, **KEPT)
        return found, [{"weight_decay": 1, "eps": 1, "seed": 0}], "--weight-decay 0.01 0.02 0.0"
    if name == "optimizer":
        method = fc.Descent("adam", 20, learning_rate=0.1, b1=0.9, b2=0.9)
        found = fc.sweep(MODEL, method, eps=[0.1], seeds=2, b1=[0.5, 0.8], learning_rate=[0.1, 0.2], **KEPT)
        return found, [{"b1": 1, "learning_rate": 0, "eps": 0, "seed": 1}], "--hyperparameters b1 0.8"
    if name == "loss":
        model = fc.UFM(num_classes=3, samples_per_class=2, num_features=3, loss="focal:2", use_bias=False)
        method = fc.Descent("sgd", 9, learning_rate=0.1)
        kept: dict[str, Any] = KEPT | {"metrics": ("risk",)}
        found = fc.sweep(model, method, eps=[0.2], seeds=2, gamma=[1.0, 3.0], **kept)
        return found, [{"gamma": 1, "eps": 0, "seed": 1}], "--loss focal:gamma=3.0"
    wanted: dict[str, Any] = KEPT | {"ts": [0.0, 0.5], "metrics": ("risk", "snc1"), "progress": False}
    found = fc.compare(MODEL, optimizers="sgd:learning_rate=0.05", eps=[0.2], seeds=2, **wanted)
    return found, [{"method": 0, "eps": 0, "seed": 1}, {"method": 1, "eps": 0, "seed": 0}], "--learning-rate 0.05"


@pytest.mark.parametrize("name", ["decays", "optimizer", "loss", "comparison"])
def test_the_command_gives_the_same_run(name, tmp_path):
    dataset, lanes, shown = small(name)
    again = rerun(dataset)
    assert again.reason == ""
    for number, lane in enumerate(lanes):
        words = shlex.split(again.command(lane))
        assert words[:2] == ["flowcollapse", "simulate"]
        file = tmp_path / f"{number}.nc"
        metrics = [metric for metric in ("risk", "snc1") if metric in dataset]
        assert (
            cli.main([*words[1:], "--out", str(file), "--metrics", *metrics, "--num-saves=2", "--no-cache", "--quiet"])
            == 0
        )
        with xr.open_dataset(file, engine="h5netcdf") as run:
            for metric in metrics:
                wanted = float(dataset[metric].isel(lane).values[-1])
                # The steps of a lane and of a lone run differ by rounding errors, which grow during the escape.
                np.testing.assert_allclose(run[metric].values[-1], wanted, rtol=1e-8)
            if name != "comparison":  # which ends descent at a time, and the command at a number of steps
                assert int(run["verdict"]) == int(dataset["verdict"].isel(lane))
    assert shown in again.command(lanes[-1])


def test_the_command_of_a_run_is_read_from_its_file(tmp_path, capsys):
    first, second = tmp_path / "first.nc", tmp_path / "second.nc"
    words = [
        "--eps=0.3",
        "--seed=7",
        "--start=class-means",
        "--t1=1",
        "--no-use-bias",
        "--samples-per-class",
        "2",
        "3",
        "4",
    ]
    assert cli.main(["simulate", *words, "--num-saves=2", "--metrics=risk", "--out", str(first)]) == 0
    with xr.open_dataset(first, engine="h5netcdf") as run:
        command = rerun(run).command({})
        assert cli.main([*shlex.split(command)[1:], "--num-saves=2", "--metrics=risk", "--out", str(second)]) == 0
        with xr.open_dataset(second, engine="h5netcdf") as again:
            np.testing.assert_array_equal(run["risk"].values, again["risk"].values)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (fc.Flow(until="rest"), "until='rest' has no flag"),
        (fc.ModifiedFlow(learning_rate=0.01), "modified-flow has no flag"),
        (fc.Descent(optax.sgd(0.1), 5), "has no flag"),
    ],
    ids=["until", "modified", "ready optimizer"],
)
def test_a_run_that_flags_cannot_express_says_why(method, reason):
    from flowcollapse.results.provenance import provenance

    shape = (("eps", "seed"), np.zeros((1, 1), np.int8))
    attributes = provenance(MODEL, method, start="sphere")
    found = rerun(xr.Dataset({"verdict": shape}, {"eps": [0.1], "seed": [0]}, attributes))
    assert reason in found.reason
    assert found.common == ""


def test_a_run_made_in_python_has_no_command():
    import jax

    start = fc.initial.sphere(MODEL, 0.1, key=jax.random.key(0))
    run = fc.simulate(MODEL, start, fc.Descent("sgd", 2, learning_rate=0.1), 2, metrics=("risk",))
    assert "a start that the file does not describe" in rerun(run.to_xarray()).reason

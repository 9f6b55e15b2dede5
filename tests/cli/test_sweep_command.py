"""`flowcollapse sweep` and `flowcollapse plot`: flags, configuration files, resuming, and refused input."""

import matplotlib.image
import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.cli import said_once
from flowcollapse.cli.simulate import Simulate
from flowcollapse.cli.sweep import Sweep

CONFIG = """
seeds = 4

[model]
num_features = 5

[lanes]
eps = [0.1, 0.01]

[axes]
learning_rate = [0.02, 0.05]
weight-decay = [[0.0, 0.0, 0.0], [0.1, 0.1, 0.0]]

[method]
method = "descent"
num_steps = 100

[keep]
metrics = ["snc1", "risk"]
num_saves = 5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def config(folder):
    file = folder / "sweep.toml"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture(scope="module")
def store(folder, config):
    """The store of the configured sweep after two runs of the command, and the output of both."""
    assert cli.main(["sweep", config, "--store", str(folder / "a.zarr"), "--out", str(folder / "a.nc")]) == 0
    return folder / "a.zarr"


def test_the_configured_sweep_is_what_python_makes_of_it(store, folder):
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=5)
    method = fc.Descent("sgd", num_steps=100, learning_rate=0.02)
    axes = {"learning_rate": [0.02, 0.05], "weight_decay": [(0.0, 0.0, 0.0), (0.1, 0.1, 0.0)]}
    options = {"eps": [0.1, 0.01], "seeds": 4, "ts": 5, "metrics": ["snc1", "risk"], "progress": False}
    expected = fc.sweep(model, method, **options, **axes)
    xr.testing.assert_equal(fc.open_sweep(store).load(), expected)
    with xr.open_dataset(folder / "a.nc") as written:
        xr.testing.assert_equal(written, expected)


def test_the_same_command_again_computes_nothing(store, config, capsys):
    assert cli.main(["sweep", config, "--store", str(store)]) == 0
    printed = capsys.readouterr().out
    assert "32 lanes (2 learning_rate x 2 weight_decay x 2 eps x 4 seed)" in printed
    assert "computed now" not in printed
    assert "0.1:0.1:0" in printed
    assert f"flowcollapse plot {store}" in printed


def test_flags_replace_what_the_file_says(store, config, capsys):
    assert cli.main(["sweep", config, "--store", str(store), "--num-steps", "200"]) == 2
    assert "method.num_steps is 100 there and 200 here" in capsys.readouterr().err


def test_plots_a_store_and_a_file(store, folder):
    for source in (store, folder / "a.nc"):
        picture = folder / "picture.png"
        assert cli.main(["plot", str(source), "--metric", "risk", "--out", str(picture)]) == 0
        assert matplotlib.image.imread(picture).std() > 0.01
        picture.unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sedes = 3", "'sedes' is not a key; did you mean 'seeds'?"),
        ("[model]\nnum_clases = 3", r"'num_clases' is not a key of [model]; did you mean 'num_classes'?"),
        ("[modle]\nnum_classes = 3", "'modle' is not a key; did you mean 'model'?"),
        ("[axes]\nlearning_rat = [0.1]", "axis 'learning_rat' is not one of"),
        ("seeds = ", "is not TOML"),
    ],
)
def test_a_file_with_a_wrong_key_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(content)
    assert cli.main(["sweep", str(tmp_path / "c.toml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.toml", "cannot read nowhere.toml"),
        ("--axis learning_rate", "is not of the form"),
        ("--axis learning_rate=a,b", "is not of the form"),
        ("--eps 0.1 -0.1", "eps must be positive"),
        ("--metrics snc4", "did you mean"),
    ],
)
def test_wrong_words_are_refused(words, message, capsys):
    assert cli.main(["sweep", *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_plot_refuses_what_is_no_sweep(tmp_path, capsys):
    (tmp_path / "a.nc").write_text("no")
    for source in ("a.nc", "b.zarr"):
        assert cli.main(["plot", str(tmp_path / source), "--out", str(tmp_path / "a.png")]) == 2
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "b.png")]) == 2
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "a.txt")]) == 2
    told = capsys.readouterr().err
    assert "is not a netCDF file" in told
    assert "b.zarr does not exist" in told
    assert "is not the store of a flowcollapse sweep" in told
    assert "does not end in" in told


def test_a_file_becomes_flags(tmp_path):
    (tmp_path / "c.toml").write_text("use_bias = false\nkeep_final = true\n[method]\nhyperparameters = {b1 = 0.8}")
    words = said_once(Sweep, "sweep", [str(tmp_path / "c.toml"), "--seeds", "3"])
    expected = ["--no-use-bias", "--keep-final", "--hyperparameters", "b1", "0.8", "--seeds", "3"]
    assert words == ["sweep", *expected, f"--config={tmp_path / 'c.toml'}"]
    with pytest.raises(fc.UsageError, match=r"no use for 'c.toml'"):  # only a sweep takes it as a word
        said_once(Simulate, "simulate", ["c.toml"])


def test_unfinished_sweeps_can_be_drawn(store, tmp_path):
    found = fc.open_sweep(store).load()
    found["snc1"][0] = np.nan
    found["verdict"][0] = -1
    assert fc.plot.sweep(found.isel(weight_decay=[0]), "snc1").size >= 1

"""The files of a command, in the format that their suffix names, which `plot` reads again; and the printed output."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse._files import write_netcdf
from flowcollapse.cli.console import Console
from flowcollapse.results import provenance

DESCENT = ["--method=descent", "--num-steps=20", "--metrics=risk,snc1", "--num-saves=3", "--num-features=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module", params=[".nc", ".zarr", ".csv"])
def run(request, folder):
    """The file of a run."""
    file = folder / f"run{request.param}"
    assert cli.main(["simulate", *DESCENT, "--out", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def expected():
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=3)
    start = fc.initial.sphere(model, 0.1, key=jax.random.key(0))
    return fc.simulate(model, start, fc.Descent("sgd", 20, learning_rate=0.02), 3, metrics=["risk", "snc1"])


def test_a_run_is_written_as_its_suffix_says(run, expected):
    if run.suffix == ".csv":
        found = pd.read_csv(run)
        assert len(found) == 3
    else:
        found = xr.open_dataset(run) if run.suffix == ".nc" else xr.open_zarr(run)
        assert {"options", "versions", "model"} <= set(found.attrs)
    np.testing.assert_array_equal(found["time"], expected.ts)
    for name in ("risk", "snc1"):
        np.testing.assert_array_equal(found[name], expected.metrics[name])
    assert [file.name for file in run.parent.iterdir() if file.name.startswith(".")] == []


def test_plot_reads_a_run(run, tmp_path, capsys):
    code = cli.main(["plot", str(run), "--out", str(tmp_path / "a.png"), "--metric", "RISK"])
    if run.suffix == ".csv":
        assert code == 2
        assert "give a .nc file or a .zarr store" in capsys.readouterr().err
        return
    assert code == 0
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.01
    for words, told in (("--kind stability", "which holds a run"), ("--metric snc4", "did you mean 'snc1'?")):
        assert cli.main(["plot", str(run), "--out", str(tmp_path / "b.png"), *words.split()]) == 2
        assert told in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_plot_draws_a_picture_of_the_gallery_again(tmp_path, monkeypatch, capsys):
    data = xr.Dataset({"classifier_square": (("time", "class"), np.ones((2, 1))), "predicted_time": ("class", [0.5])})
    about = {"picture": "order-of-learning", "title": "a picture", "sources": "a paper"}
    write_netcdf(data.assign_coords(time=[0.0, 1.0], count=("class", [1])).assign_attrs(about), tmp_path / "a.nc")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", "a.nc"]) == 0
    assert capsys.readouterr().out == "Wrote order-of-learning.png\n"
    assert matplotlib.image.imread(tmp_path / "order-of-learning.png").std() > 0.01
    for words, told in (("--metric risk", "leave it out"), ("--kind figure1", "which holds a picture")):
        assert cli.main(["plot", "a.nc", *words.split()]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(fc.UsageError, match=r"draw it with fc\.gallery\.draw"):
        fc.plot.comparison(tmp_path / "a.nc")


def test_plot_reads_a_comparison(tmp_path, capsys):
    file = tmp_path / "c.nc"
    words = "--optimizer SGD:learning_rate=0.05 --eps 0.1,0.2 --seeds 3:5 --ts 0,1 2 --metrics risk --num-features 3"
    assert cli.main(["compare", *words.split(), "--out", str(file), "--quiet"]) == 0
    assert cli.main(["plot", str(file), "--out", str(tmp_path / "c.png")]) == 0
    assert matplotlib.image.imread(tmp_path / "c.png").std() > 0.01
    with xr.open_dataset(file) as found:
        assert found["seed"].values.tolist() == [3, 4]
        assert found["eps"].values.tolist() == [0.1, 0.2]
        assert found["time"].values.tolist() == [0, 1, 2]
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'c.png'}\n"


def test_a_table_has_a_row_for_each_run_and_time(tmp_path):
    words = ["--eps=0.1,0.2", "--seeds=2", "--axis=weight_decay=0:0:0,0.1:0.2:0"]
    file = tmp_path / "a.csv"
    assert cli.main(["sweep", *DESCENT, *words, "--out", str(file), "--quiet"]) == 0
    found = pd.read_csv(file)
    assert len(found) == 2 * 2 * 2 * 3
    assert set(found["weight_decay"]) == {"0:0:0", "0.1:0.2:0"}
    assert not found.duplicated(["weight_decay", "eps", "seed", "time"]).any()


def test_parquet_without_its_library_is_told_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fc, "simulate", lambda *_, **__: pytest.fail("the run began"), raising=False)
    assert cli.main(["simulate", "--out", str(tmp_path / "a.parquet")]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def test_quiet_prints_nothing(tmp_path, capsys):
    words = [*DESCENT, "--out", str(tmp_path / "a.nc"), "--quiet"]
    assert cli.main(["simulate", *words]) == 0
    assert cli.main(["--quiet", "verify", "--only", "origin-modes"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["simulate", "--eps", "0", "--quiet"]) == 2
    assert "eps must be a positive number" in capsys.readouterr().err


def test_bars_are_for_terminals(monkeypatch):
    assert not Console().bars  # standard error is captured here
    monkeypatch.setattr(sys, "stderr", type("Terminal", (), {"isatty": lambda self: True})())
    assert Console().bars
    assert not Console(quiet=True).bars
    monkeypatch.setattr(sys, "stderr", None)
    assert not Console().bars


def test_the_version_is_told_without_jax():
    program = "import sys; from flowcollapse.cli import main; main(['--version']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"flowcollapse {fc.__version__}\n", "")


def test_a_clone_that_is_not_installed_has_a_version(monkeypatch, expected):
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("flowcollapse", "optax"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    import optax

    found = provenance.versions()
    assert found["flowcollapse"] == fc.__version__
    assert found["optax"] == optax.__version__
    assert fc.__version__ in expected.to_xarray().attrs["versions"]


def test_pictures_take_what_functions_return(expected, folder, tmp_path):
    dataset = expected.to_xarray()
    dataset.to_netcdf(tmp_path / "a.nc")
    wanted = [line.get_ydata() for line in fc.plot.path(dataset).lines]
    for source in (expected, str(tmp_path / "a.nc"), tmp_path / "a.nc"):
        for line, values in zip(fc.plot.path(source).lines, wanted, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), values)
    axes = fc.plot.path(expected, name="Risk")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), expected.metrics["risk"])
    fc.plot.save(axes.figure, str(tmp_path / "a.svg"))
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    "draw", ["path", "sweep", "figure1", "bands", "heatmap", "verdicts", "comparison", "stability"]
)
@pytest.mark.parametrize("source", [None, 5, {"snc1": [1.0]}, np.ones(3), xr.DataArray(np.ones(3)), "s3://a/b.nc"])
def test_pictures_refuse_what_is_no_dataset(draw, source):
    with pytest.raises(fc.UsageError, match="dataset"):
        getattr(fc.plot, draw)(source)


def test_pictures_say_which_function_draws_a_dataset(expected):
    for draw in (fc.plot.sweep, fc.plot.comparison, fc.plot.comparison_paths):
        with pytest.raises(fc.UsageError, match="one run: draw it with"):
            draw(expected)
    with pytest.raises(fc.UsageError, match="axes must be"):
        fc.plot.save(None, "a.png")
    with pytest.raises(fc.UsageError, match="file must be"):
        fc.plot.save(fc.plot.path(expected), "")


def test_settings_of_the_wrong_kind_are_told():
    """In a separate process, without the run-time type checks of these tests."""
    program = (
        "import flowcollapse as fc\n"
        "for call in (fc.enable_x64, fc.use_cpu_cores):\n"
        "    for value in ('yes', 2.5, [1], (None if call is fc.enable_x64 else 0), {}):\n"
        "        try: call(value)\n"
        "        except fc.UsageError as error: assert repr(value) in str(error), error\n"
        "        else: raise AssertionError((call, value))\n"
        "import jax; assert not jax.config.read('jax_enable_x64')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

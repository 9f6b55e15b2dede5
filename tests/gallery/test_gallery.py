"""Every picture of the gallery: its laws hold in its runs, and its files say what they hold."""

import json

import matplotlib.image
import numpy as np
import pytest
import systems
import xarray as xr

import flowcollapse as fc
from flowcollapse import cli, gallery
from flowcollapse.gallery import cross_entropy, imbalance, losses, margin, minority_collapse

SMALLER = {
    "cross-entropy": (cross_entropy, {"SHARES": (0.01, 0.1, 0.5, 0.98, 1.02), "SEEDS": 2, "FINE": 12}),
    "margin": (margin, {"SEEDS": 2}),
    "minority-collapse": (minority_collapse, {"SMALL": (3,)}),
    "losses": (losses, {"LOSSES": ("squared", "focal:2")}),
    "imbalance": (imbalance, {"RATIOS": (3,), "FINE": (1, 3)}),
    "order-of-learning": (imbalance, {}),
}
"""Fewer values in place of the full ones: compiling takes most of the time, and each kind of run is compiled once."""


@pytest.fixture
def smaller(monkeypatch):
    for module, constants in SMALLER.values():
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("name", gallery.PICTURES)
def test_the_laws_of_a_picture_hold_and_its_files_are_complete(name, smaller, tmp_path, capsys):
    assert cli.main(["show", name, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "holds" in printed
    assert "FAILS" not in printed
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.nc", f"{name}.png", f"{name}.pdf"}
    assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.01  # not blank
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with xr.open_dataset(tmp_path / f"{name}.nc") as data:
        assert data.attrs["picture"] == name
        assert data.attrs["sources"] == gallery.PICTURES[name].sources
        assert json.loads(data.attrs["versions"])["flowcollapse"] == fc.__version__
        assert gallery.table(data) in printed  # the table needs nothing but the file
        for variable in data.data_vars.values():
            assert variable.attrs["long_name"]
    assert cli.main(["plot", str(tmp_path / f"{name}.nc"), "--out", str(tmp_path / "again.png")]) == 0
    first, again = (matplotlib.image.imread(tmp_path / f"{file}.png") for file in (name, "again"))
    np.testing.assert_array_equal(first, again)


def test_the_tests_cover_every_picture():
    assert set(SMALLER) == set(gallery.PICTURES)


def test_a_table_that_fails_says_so(monkeypatch):
    """A planted fault: a law that the run does not follow fails, in the table and in the exit code."""
    wrong = gallery.Check("nothing is one", 1.0, 0.0, 1e-3)
    picture = gallery.PICTURES["order-of-learning"]._replace(checks=lambda data: [wrong])
    monkeypatch.setitem(gallery.PICTURES, "order-of-learning", picture)
    data = xr.Dataset(attrs={"picture": "order-of-learning", "title": "t", "sources": "s"})
    assert "FAILS" in gallery.table(data)
    assert not wrong.holds
    assert not gallery.Check("a NaN", 1.0, np.nan, 1.0).holds


def test_the_list(capsys):
    assert cli.main(["show", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in gallery.PICTURES)


def test_a_wrong_name_is_refused(capsys, tmp_path):
    assert cli.main(["show", "margins", "--out", str(tmp_path)]) == 2
    assert "did you mean 'margin'" in capsys.readouterr().err
    assert cli.main(["show"]) == 2
    assert "name of a picture is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    systems.assert_refused(lambda: gallery.table(xr.Dataset()), ["dataset", "gallery.run"])
    systems.assert_refused(lambda: gallery.draw(3), ["dataset", "3"])  # pyright: ignore[reportArgumentType]

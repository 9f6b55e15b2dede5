"""The picture of a fit shows the measured numbers, and the numbers that the fit predicts."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import systems
import xarray as xr

import flowcollapse as fc
from flowcollapse import plot as pictures

EPOCHS = np.arange(1.0, 81.0)
MODE = 1 / (1 + np.exp(-0.25 * (EPOCHS - 40)))
RISK = 25 * (1 - MODE) ** 2 + 0.05 * np.sin(EPOCHS) ** 2
SNC1 = np.sqrt(50) * (1 - MODE)
KNOWN: dict[str, Any] = {"num_classes": 3, "samples_per_class": 25}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fit() -> fc.Fit:
    return fc.fit({"epoch": EPOCHS, "risk": RISK}, **KNOWN)


def test_each_shared_metric_has_a_panel_with_both_curves(fit):
    run = {"epoch": EPOCHS, "risk": RISK, "snc1": SNC1}
    axes = pictures.beside(run, fit)
    assert [ax.get_xlabel() for ax in axes] == ["epoch"] * 3
    assert [ax.get_yscale() for ax in axes] == ["linear", "linear", "log"]
    for ax, name, dashes in ((axes[0], "risk", "-"), (axes[2], "snc1", "--")):
        model, measured = ax.lines
        np.testing.assert_allclose(model.get_ydata(), fit.predict(model.get_xdata(), name)[name], rtol=1e-12)
        assert model.get_linestyle() == dashes
        assert measured.get_linestyle() == "None"
        assert measured.get_marker() == "o"
        np.testing.assert_array_equal(measured.get_ydata(), run[name][measured.get_xdata().astype(int) - 1])
    zero, points = axes[1].lines
    assert set(zero.get_ydata()) == {0}
    residuals = 100 * (RISK - fit.predict(EPOCHS, "risk")["risk"]) / np.ptp(RISK)
    np.testing.assert_allclose(points.get_ydata(), residuals, rtol=1e-12)


def test_the_picture_tells_the_verdict_and_the_lines(fit):
    axes = pictures.beside(xr.Dataset({"loss": ("epoch", RISK)}, {"epoch": EPOCHS}), fit)
    figure = axes[0].figure
    assert len(axes) == 2
    assert figure.get_suptitle().replace("\n", " ") == f"explained: {fit.reason}"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["measured", "model, fitted"]
    other = fc.fit({"epoch": EPOCHS, "risk": np.full(80, 5.0)}, **KNOWN)
    assert pictures.beside({"epoch": EPOCHS, "risk": RISK}, other)[0].figure.get_suptitle().startswith("not explained")


def test_a_whole_run_is_drawn_from_its_file(fit, tmp_path):
    """Five metrics and the residuals, in two rows; a file says the same as the Dataset it holds."""
    names = ("risk", "snc1", "snc3", "nc2_etf_h", "nc2_etf_w")
    run = xr.Dataset(dict.fromkeys((*names, "nc1"), ("epoch", SNC1)), {"epoch": EPOCHS})
    file = tmp_path / "run.nc"
    run.to_netcdf(file, engine="h5netcdf")
    axes = pictures.beside(file, fit)
    assert len(axes) == 6
    assert {ax.get_ylabel().split("\n")[0] for ax in axes} > {"risk", "SNC1 error", "SNC3 error"}
    pictures.save(axes, tmp_path / "run.png")
    one = pictures.beside(run[["snc1"]], fit)
    assert len(one) == 1


@pytest.mark.parametrize(
    ("curves", "fragment"),
    [
        (3, "dataset must be"),
        ({"t": EPOCHS, "risk": RISK}, "dataset is over 't' and fit over 'epoch'"),
        ({"epoch": EPOCHS, "nc1": RISK}, "no metric that the model predicts"),
        ({"epoch": EPOCHS[::-1], "risk": RISK}, "must increase"),
    ],
)
def test_what_cannot_be_drawn_is_refused(fit, curves, fragment):
    systems.assert_refused(lambda: pictures.beside(curves, fit), [fragment])
    assert plt.get_fignums() == []

"""The figures and the table of a comparison show the numbers of the Dataset."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse import plot as pictures
from flowcollapse.comparison.table import table

METHODS, RATES, SEEDS, TIMES = ("flow", "gd", "adam"), (0.1, 0.01), (0, 1, 2, 3), np.linspace(0.0, 4.0, 5)
OVER = ("method", "learning_rate", "seed")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def dataset() -> xr.Dataset:
    """Values that differ for every method, rate, seed and time; Adam is saved a little late, and diverges once."""
    values = np.exp(-(np.arange(3 * 2 * 4 * 5.0).reshape(3, 2, 4, 5) % 11))
    values[2, 0, 3] = np.nan
    times = np.broadcast_to(TIMES, values.shape) + np.array([0, 0, 0.1])[:, None, None, None]
    data = {
        "snc1": ((*OVER, "time"), values),
        "t": ((*OVER, "time"), times),
        "distance_to_flow": ((*OVER, "time"), values * np.array([0, 1, 2])[:, None, None, None]),
        "max_distance_to_flow": (OVER, values.max(axis=-1) * np.array([0, 1, 2])[:, None, None]),
        "steps": (OVER, np.full(values.shape[:3], 30)),
        "verdict": (OVER, np.where(np.isnan(values[..., 0]), 4, 0).astype(np.int8)),
    }
    return xr.Dataset(data, {"method": list(METHODS), "learning_rate": list(RATES), "seed": list(SEEDS), "time": TIMES})


def lines(ax) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in ax.lines}


def test_paths_are_medians_at_the_times_of_the_saves(dataset):
    one = dataset.isel(learning_rate=0)
    ax = pictures.comparison_paths(one, "snc1")
    assert list(lines(ax)) == list(METHODS)
    for name, (x, y) in lines(ax).items():
        chosen = one.sel({"method": name})
        np.testing.assert_array_equal(x, chosen.t[0])
        np.testing.assert_allclose(y, np.nanmedian(chosen.snc1, axis=0), rtol=1e-14)
    band = np.asarray(ax.collections[1].get_paths()[0].vertices)
    expected = np.quantile(one.snc1.sel({"method": "gd"}), [0.05, 0.95], axis=0)
    for k, time in enumerate(TIMES):
        heights = band[band[:, 0] == time, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], expected[:, k], rtol=1e-12)
    assert ax.get_yscale() == "log"


def test_distances_leave_out_the_flow_and_time_zero(dataset):
    one = dataset.isel(learning_rate=1, seed=[0])
    ax = pictures.comparison_distance(one)
    assert list(lines(ax)) == ["gd", "adam"]
    for name, (_, y) in lines(ax).items():
        assert np.isnan(y[0])
        np.testing.assert_array_equal(y[1:], one.distance_to_flow.sel({"method": name})[0, 1:])
    assert not ax.collections


def test_ends_along_an_axis_in_order(dataset):
    ax = pictures.comparison_ends(dataset)
    assert list(lines(ax)) == ["gd", "adam"]
    for name, (x, y) in lines(ax).items():
        np.testing.assert_array_equal(x, sorted(RATES))
        wanted = np.nanmedian(dataset.max_distance_to_flow.sel({"method": name}), axis=1)[::-1]
        np.testing.assert_allclose(y, wanted, rtol=1e-14)
    assert ax.get_xlabel() == "learning rate"
    at_end = lines(pictures.comparison_ends(dataset, "snc1"))
    np.testing.assert_allclose(at_end["flow"][1], np.median(dataset.snc1[0, ..., -1], axis=1)[::-1], rtol=1e-14)


def test_overview_and_given_axes(dataset):
    axes = pictures.comparison(dataset)
    assert len(axes) == 3
    assert "0.1" in axes[0].get_title()
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(METHODS)
    assert len(pictures.comparison(dataset.isel(learning_rate=0))) == 2
    _, given = plt.subplots()
    assert pictures.comparison_paths(dataset.isel(learning_rate=0), ax=given) is given


def test_table_shows_medians_and_verdicts(dataset):
    rows = [line.split() for line in table(dataset).splitlines()]
    assert "medians over 4 starts" in table(dataset)
    middle = np.median(dataset.snc1.sel({"method": "gd"}).isel(learning_rate=1, time=-1))
    largest = np.median(dataset.max_distance_to_flow.sel({"method": "gd"}).isel(learning_rate=1))
    assert ["0.01", "gd", f"{middle:.2e}", f"{largest:.2e}", "30", "4", "plateau"] in rows
    assert "3 plateau, 1 non_finite" in table(dataset)
    decays = dataset.rename(learning_rate="weight_decay").drop_vars("weight_decay")
    parts = decays.assign_coords(weight_decay_values=(("weight_decay", "part"), [[0.1, 0.1, 0.0], [0.2, 0.2, 0.0]]))
    assert ["0.2:0.2:0", "gd"] in [line.split()[:2] for line in table(parts).splitlines()]


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda d: pictures.comparison_paths(d), "learning_rate: select one"),
        (lambda d: pictures.comparison_paths(d, "snc4"), "mean 'snc1'"),
        (
            lambda d: pictures.comparison_distance(d.drop_vars("distance_to_flow")),
            "'distance_to_flow' is not in the dataset",
        ),
        (lambda d: pictures.comparison_ends(d, along="eps"), "no axis 'eps'"),
        (lambda d: pictures.comparison_ends(d.isel(learning_rate=0)), "no axis 'eps'"),
    ],
)
def test_bad_input_is_told(dataset, draw, told):
    with pytest.raises(fc.UsageError, match=told):
        draw(dataset)

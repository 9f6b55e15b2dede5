"""The figures draw the numbers of the Dataset, on given axes or new ones."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

import flowcollapse as fc
from flowcollapse import plot

TIMES = np.linspace(0.0, 4.0, 9)
EPS_LIST, SEEDS = (1.0, 0.1, 1e-4), (3, 5, 8, 13)
CURVES = ("snc1", "snc2", "snc3", "relative_distance")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def dataset() -> xr.Dataset:
    """Curves that differ for every method, eps, seed and quantity; seed 8 is marked as the one to show."""
    dims = ("method", "eps", "seed", "time")
    shape = (2, len(EPS_LIST), len(SEEDS), len(TIMES))
    values = np.exp(-np.cumsum(np.arange(1.0, np.prod(shape) + 1).reshape(shape) % 7, axis=-1))
    return xr.Dataset(
        {name: (dims, values * (i + 1)) for i, name in enumerate(CURVES)},
        {"method": ["flow", "descent"], "eps": list(EPS_LIST), "seed": list(SEEDS), "time": TIMES},
        {"seed_shown": 8},
    )


def solid(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "-"]


def dotted(ax: Axes) -> list[np.ndarray]:
    """The black lines, which show descent."""
    return [np.asarray(line.get_ydata()) for line in ax.lines if line.get_color() == "black"]


def dashed(ax: Axes) -> list[np.ndarray]:
    """The other broken lines, which show medians."""
    others = [line for line in ax.lines if line.get_linestyle() != "-" and line.get_color() != "black"]
    return [np.asarray(line.get_ydata()) for line in others]


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_figure1_draws_the_shown_seed_in_three_panels(dataset):
    axes = plot.figure1(dataset)
    assert len(axes) == 3
    for ax, name in zip(axes, CURVES, strict=False):
        assert isinstance(ax, Axes)
        assert ax.get_yscale() == "log"
        assert ax.get_ylabel().startswith(f"{name.upper()} error\n$")
        assert ax.get_xlabel()
        # For each eps: flow, descent and median.
        assert len(ax.lines) == 3 * len(EPS_LIST)
        assert len(ax.collections) == len(EPS_LIST)
        shown = dataset[name].sel(seed=8)
        np.testing.assert_array_equal(solid(ax), shown.isel(method=0))
        np.testing.assert_array_equal(dotted(ax), shown.isel(method=1))
        assert all(np.array_equal(line.get_xdata(), TIMES) for line in ax.lines)


def test_figure2_draws_median_and_band_of_the_flow(dataset):
    ax = plot.figure2(dataset, seed=13)
    values = dataset["relative_distance"]
    np.testing.assert_array_equal(solid(ax), values.sel(seed=13).isel(method=0))
    np.testing.assert_allclose(dashed(ax), values.isel(method=0).median("seed"), rtol=1e-14)
    for band, eps in zip(ax.collections, EPS_LIST, strict=True):
        corners = np.asarray(band.get_paths()[0].vertices)
        flow = values.isel(method=0).sel(eps=eps)
        for time in TIMES:
            heights = corners[corners[:, 0] == time, 1]
            expected = np.quantile(flow.sel(time=time), [0.05, 0.95])
            np.testing.assert_allclose([heights.min(), heights.max()], expected, rtol=1e-12)


def test_legend_names_every_eps_and_kind_of_line(dataset):
    (legend,) = plot.figure2(dataset).figure.legends
    labels = " ".join(text.get_text() for text in legend.get_texts())
    for label in ("= 1$", "= 0.1$", "10^{-4}", "flow", "descent", "median of 4 seeds", "95 %"):
        assert label in labels


def test_a_sweep_has_no_descent_and_a_lane_no_band(dataset):
    sweep = plot.figure2(dataset.isel(method=0, drop=True))
    assert len(dotted(sweep)) == 0
    assert len(sweep.lines) == 2 * len(EPS_LIST)
    lane = plot.figure2(dataset.isel(method=0, eps=1, seed=2))
    assert len(lane.lines) == 1
    assert len(lane.collections) == 0
    np.testing.assert_array_equal(solid(lane)[0], dataset["relative_distance"][0, 1, 2])


def test_a_lane_that_is_not_finite_leaves_the_band_of_the_others(dataset):
    broken = dataset.copy(deep=True)
    broken["relative_distance"][0, 0, 1, 4:] = np.nan
    ax = plot.figure2(broken)
    expected = dataset["relative_distance"][0, 0].isel(seed=[0, 2, 3]).median("seed")
    np.testing.assert_allclose(dashed(ax)[0], expected, rtol=1e-14)


def test_given_axes_are_drawn_on(dataset):
    figure, axes = plt.subplots(1, 3)
    assert list(plot.figure1(dataset, axes)) == list(axes)
    assert all(ax.lines for ax in axes)
    assert legend_of(axes[0])
    assert not figure.legends
    second, other = plt.subplots()
    assert plot.figure2(dataset, ax=other) is other
    run = dataset.isel(method=0, eps=0, seed=0)
    assert plot.path(run, ax=other) is other
    assert plt.get_fignums() == [figure.number, second.number]


def test_path_draws_the_metrics_of_one_run(dataset):
    run = dataset.isel(method=0, eps=0, seed=0).assign(verdict=0, W=(("time", "row"), np.ones((9, 2))))
    ax = plot.path(run)
    np.testing.assert_array_equal(solid(ax), [run[name] for name in CURVES])
    assert legend_of(ax) == list(plot.IN_A_PATH.values())[:4]
    only = plot.path(run[["snc2"]].rename(snc2="nc4"))
    assert legend_of(only) == ["nc4"]


@pytest.mark.parametrize("name", ["picture.png", "picture.PDF", "picture.svg"])
def test_save_writes_what_the_suffix_says(dataset, tmp_path, name):
    plot.save(plot.figure2(dataset), tmp_path / name)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    assert (tmp_path / name).read_bytes().startswith(starts[name[-3:].lower()])
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_file_is_replaced_whole_or_not_at_all(dataset, tmp_path, monkeypatch):
    (tmp_path / "old.png").write_text("old")
    ax = plot.figure2(dataset)

    def half(file, **options):
        file.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ax.figure, "savefig", half)
    with pytest.raises(fc.UsageError, match="No space left"):
        plot.save(ax, tmp_path / "old.png")
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_text() == "old"


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda d: plot.figure1(d.drop_vars("snc2")), "snc2"),
        (lambda d: plot.figure2(d.drop_vars("time")), "time"),
        (lambda d: plot.figure2(d.expand_dims("lane", axis=0)), "lane"),
        (lambda d: plot.figure2(d, seed=4), "seed 4"),
        (lambda d: plot.figure1(d, [plt.subplots()[1]]), "3 matplotlib Axes"),
        (lambda d: plot.path(d), "one run"),
        (lambda d: plot.save(plot.figure2(d), Path("picture.doc")), r"\.svg"),
    ],
)
def test_bad_input_is_told(dataset, draw, told):
    with pytest.raises(fc.UsageError, match=told):
        draw(dataset)

"""Pictures of sweeps show order statistics of the runs, and report missing runs.

The sweep is real: the paper's model over three end times, four eps and five seeds. The median of five values is the
third, and the 5 and 95 % points are a fifth of the way from the outermost value to its neighbour.
"""

import json
import math
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import systems
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.patches import Rectangle

import flowcollapse as fc
from flowcollapse import plot
from flowcollapse.endings.plateau import plateau_time
from flowcollapse.model.problem import problem_of
from flowcollapse.plot.sweeps import VERDICT_COLORS
from flowcollapse.results.labels import verdict_attributes

ENDS, EPS, SEEDS = (3.0, 8.0, 30.0), (1e-1, 1e-2, 1e-3, 1e-4), range(5)
METRICS = ("snc1", "snc2", "snc3", "distance", "risk", "nc4")
POWERS = {"snc1": 2, "snc2": 1, "snc3": 1, "distance": 1, "risk": 4}
ROUNDING = 8 * float(np.finfo(np.float64).eps)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def runs(paper_model) -> xr.Dataset:
    """Runs up to t1, or to their plateau if that comes first, so only the short runs share their times."""

    def run(t1, eps, seed):
        start = fc.initial.sphere(paper_model, eps, key=jax.random.key(seed))
        end = jnp.minimum(t1, plateau_time(*problem_of(paper_model, start)))
        return fc.simulate(paper_model, start, fc.Flow(rtol=1e-9, t1=end), 21, metrics=METRICS)

    grid = np.meshgrid(ENDS, EPS, SEEDS, indexing="ij")
    paths = systems.compiled(jax.vmap(run))(*(jnp.asarray(axis.ravel()) for axis in grid))
    axes = ("t1", "eps", "seed")

    def gridded(values) -> np.ndarray:
        return np.asarray(values).reshape(*grid[0].shape, *np.shape(values)[1:])

    data: dict[str, Any] = {"verdict": (axes, gridded(paths.code), verdict_attributes())}
    data |= {name: ((*axes, "time"), gridded(paths.metrics[name])) for name in METRICS}
    data |= {"t": ((*axes, "time"), gridded(paths.ts)), "t_end": (axes, gridded(paths.t_end))}
    data |= {f"steps_{name}": (axes, gridded(paths.stats[name]).astype(int)) for name in ("accepted", "rejected")}
    return xr.Dataset(data, {"t1": list(ENDS), "eps": list(EPS), "seed": list(SEEDS)})


@pytest.fixture
def ended(runs) -> xr.Dataset:
    """The runs to the plateau, over eps and seeds, each with its own times."""
    return runs.sel(t1=30.0, drop=True)


@pytest.fixture
def shared(runs) -> xr.Dataset:
    """The runs to time 8, which share their times."""
    short = runs.sel(t1=8.0)
    assert np.all(short["t"] == short["t"][0, 0])
    return short.assign_coords(time=short["t"][0, 0].values).drop_vars("t")


def without(dataset: xr.Dataset, gone) -> xr.Dataset:
    """The Dataset before some of its runs are finished, as on disk: their integers are -1."""
    return dataset.map(lambda v: v.where(~gone, -1 if v.dtype.kind in "iu" else np.nan), keep_attrs=True)


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in [legend.get_title(), *legend.get_texts()]]


def along_x(line) -> np.ndarray:
    return np.asarray(line.get_xdata(), float)


def along_y(line) -> np.ndarray:
    return np.asarray(line.get_ydata(), float)


def corners(band, x: float) -> tuple[float, float]:
    """The lowest and highest point of a band at x."""
    path = np.asarray(band.get_paths()[0].vertices)
    heights = path[np.isclose(path[:, 0], x, rtol=ROUNDING), 1]
    return heights.min(), heights.max()


def power_in(text: str) -> float:
    (power,) = re.findall(r"\^\{(-?[\d.]+)\}", text)
    return float(power)


# ---- bands


def test_bands_are_order_statistics_of_the_seeds(shared):
    ax = plot.bands(shared, "snc3")
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "time $t$")
    for line, band, one_eps in zip(ax.lines, ax.collections, shared["snc3"], strict=True):
        ordered = np.sort(one_eps.values, axis=0)
        np.testing.assert_array_equal(along_x(line), shared["time"])
        np.testing.assert_allclose(along_y(line), ordered[2], rtol=ROUNDING)
        for k, time in enumerate(shared["time"].values):
            first, second, _, fourth, fifth = ordered[:, k]
            wanted = first + (second - first) / 5, fifth - (fifth - fourth) / 5
            np.testing.assert_allclose(corners(band, time), wanted, rtol=ROUNDING)
    assert {"$\\varepsilon = 0.01$", "$\\varepsilon = 10^{-4}$", "median of 5 seeds"} < set(legend_of(ax))
    assert legend_of(ax)[0] == "$t_1 = 8$"


def test_bands_stand_over_the_median_of_the_runs_own_times(ended):
    ax = plot.bands(ended, "risk")
    assert "median over runs" in ax.get_xlabel()
    for line, times in zip(ax.lines, ended["t"], strict=True):
        assert len(set(times[:, -1].values)) == len(SEEDS)
        np.testing.assert_allclose(along_x(line), np.sort(times.values, axis=0)[2], rtol=ROUNDING)


def test_bands_along_another_axis(runs):
    ax = plot.bands(runs.sel(eps=1e-2), along="t1")
    assert [along_x(line)[-1] for line in ax.lines[:2]] == [3.0, 8.0]
    assert {"$t_1 = 3$", "$t_1 = 30$", "$\\varepsilon = 0.01$"} < set(legend_of(ax))


def test_runs_without_a_value_leave_the_bands_to_the_others(shared):
    ax = plot.bands(without(shared, (shared.eps == 1e-2) & (shared.seed > 2)))
    assert legend_of(ax)[0].endswith("2 of 20 runs without a value")
    middle = np.sort(shared["snc1"].sel(eps=1e-2).isel(seed=slice(3)).values, axis=0)[1]
    np.testing.assert_allclose(along_y(ax.lines[1]), middle, rtol=ROUNDING)
    emptied = plot.bands(without(shared, shared.eps == 1e-2))
    assert len(emptied.lines) == len(EPS) - 1
    alone = plot.bands(shared.sel(eps=1e-2, seed=3))
    assert (len(alone.lines), len(alone.collections)) == (1, 0)


# ---- limits and their powers


@pytest.mark.parametrize("name", METRICS[:5])
def test_limit_fits_the_predicted_power(ended, name):
    ax = plot.limit(ended, name)
    points, medians, fit, guide = ax.lines
    final = ended[name][..., -1].values
    assert set(zip(along_x(points), along_y(points), strict=True)) == {
        (eps, value) for eps, values in zip(EPS, final, strict=True) for value in values
    }
    middles = np.sort(final, axis=1)[:, 2]
    np.testing.assert_allclose(along_y(medians), middles, rtol=ROUNDING)
    # Least squares over the three eps from 1e-2 down: they are equally spaced, so the outer two decide.
    slope = math.log(middles[1] / middles[3]) / math.log(EPS[1] / EPS[3])
    fitted, predicted = legend_of(ax)[-2:]
    assert power_in(fitted) == pytest.approx(slope, abs=6e-4)  # three decimals are printed
    assert power_in(predicted) == POWERS[name]
    # The next order of the errors is smaller by eps^2, or by eps for SNC2.
    assert slope == pytest.approx(POWERS[name], abs=3e-3)
    for line, power in ((fit, slope), (guide, POWERS[name])):
        x, y = np.log(along_x(line)), np.log(along_y(line))
        np.testing.assert_allclose(np.diff(y) / np.diff(x), power, rtol=1e-9)
        # A least-squares line goes through the centre of its points.
        np.testing.assert_allclose(np.interp(math.log(1e-3), np.sort(x), np.sort(y)), np.mean(np.log(middles[1:])))
    assert (min(along_x(fit)), max(along_x(fit))) == (EPS[3], EPS[1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


UNPREDICTED = ({"num_features": 1}, {"weight_decay": 0.1})
PREDICTED = ({"num_features": 2}, {"num_classes": 2}, {"samples_per_class": 1}, {"use_bias": False})


@pytest.mark.parametrize("sizes", [*UNPREDICTED, *PREDICTED])
def test_a_power_is_predicted_where_the_theory_has_one(ended, sizes):
    """SNC1 falls as eps^2 wherever collapse has the features it needs and nothing decays."""
    model = {"num_classes": 3, "samples_per_class": 3, "num_features": 15, "use_bias": True} | sizes
    told = ended.assign_attrs(model=json.dumps(model))
    assert (r"predicted $\\varepsilon^{2}$" in str(legend_of(plot.limit(told)))) is (sizes in PREDICTED)
    selected = ended.assign_coords(sizes) if "use_bias" not in sizes else told
    assert ("predicted" in str(legend_of(plot.limit(selected)))) is (sizes in PREDICTED)
    assert "predicted" in str(legend_of(plot.limit(ended.assign_attrs(model="some words"))))


def test_limit_of_other_metrics_and_against_other_axes(runs, ended):
    assert "predicted" not in str(legend_of(plot.limit(ended, "steps_accepted")))
    ax = plot.limit(runs.sel(eps=1e-2), "distance", against="t1")
    assert "fitted" not in str(legend_of(ax))
    middles = np.sort(runs["distance"].sel(eps=1e-2)[..., -1].values, axis=1)[:, 2]
    np.testing.assert_allclose(along_y(ax.lines[1]), middles, rtol=ROUNDING)


def test_runs_that_blew_up_are_left_out_of_the_limit(ended):
    broken = ended.assign(snc1=ended["snc1"].where((ended.eps < 1e-1) | (ended.seed > 1), np.inf))
    ax = plot.limit(broken)
    assert legend_of(ax)[0] == "2 of 20 runs without a value"
    assert along_y(ax.lines[1])[0] == np.sort(ended["snc1"][0, 2:, -1])[1]


def test_the_fit_leaves_out_eps_that_are_not_done(ended):
    final = ended["snc1"][..., -1].values
    ax = plot.limit(without(ended, ended.eps == 1e-3))
    slope = math.log(np.sort(final[1])[2] / np.sort(final[3])[2]) / math.log(EPS[1] / EPS[3])
    assert power_in(legend_of(ax)[-2]) == pytest.approx(slope, abs=6e-4)
    assert not any("fitted" in text for text in legend_of(plot.limit(ended.sel(eps=[1e-2]))))


# ---- heat maps


def cells_of(ax: Axes) -> np.ndarray:
    (mesh,) = ax.collections
    return np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan)


def tick_labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels()]


def test_heatmap_holds_the_medians_of_the_last_values(runs):
    ax = plot.heatmap(runs, "distance")
    np.testing.assert_allclose(cells_of(ax), np.sort(runs["distance"][..., -1], axis=2)[..., 2], rtol=ROUNDING)
    assert isinstance(ax.collections[0].norm, LogNorm)
    assert tick_labels(ax.yaxis) == ["$3$", "$8$", "$30$"]
    assert tick_labels(ax.xaxis) == ["$0.1$", "$0.01$", "$0.001$", "$10^{-4}$"]
    turned = plot.heatmap(runs, "distance", x="t1")
    np.testing.assert_array_equal(cells_of(turned), cells_of(ax).T)
    steps = plot.heatmap(runs, "steps_accepted")
    np.testing.assert_array_equal(cells_of(steps), np.sort(runs["steps_accepted"], axis=2)[..., 2])
    # At the end of all runs NC4 is 0, which has no logarithm.
    assert not isinstance(plot.heatmap(runs, "nc4").collections[0].norm, LogNorm)


def test_cells_without_a_run_are_hatched_and_counted(runs):
    gone = (runs.t1 == 8.0) & (runs.eps < 1e-2) | (runs.seed == 4)
    ax = plot.heatmap(without(runs, gone), "steps_accepted")
    assert np.argwhere(np.isnan(cells_of(ax))).tolist() == [[1, 2], [1, 3]]
    assert ax.patch.get_hatch()
    assert ax.get_title("left") == "20 of 60 runs without a value"
    kept = np.sort(runs["steps_accepted"][0, 0, :4])
    assert cells_of(ax)[0, 0] == (kept[1] + kept[2]) / 2


def test_axes_may_hold_words_and_lists(runs):
    named = runs.assign_coords(t1=["rk4", "tsit5", "dopri8"]).rename(t1="solver")
    assert tick_labels(plot.heatmap(named).yaxis) == ["rk4", "tsit5", "dopri8"]
    assert "$\\mathrm{solver}$ = tsit5" in legend_of(plot.bands(named.sel(eps=1e-2), along="solver"))
    assert legend_of(plot.bands(named.sel(solver="rk4")))[0] == "$\\mathrm{solver}$ = rk4"
    decays = np.empty(3, dtype=object)
    decays[:] = [(0.1, 0.1, 0.0), "0.2, 0.2, 0", 0.5]
    listed = runs.rename(t1="weight_decay").assign_coords(weight_decay=decays)
    assert tick_labels(plot.heatmap(listed).yaxis) == ["0.1, 0.1, 0.0", "0.2, 0.2, 0", "$0.5$"]


# ---- verdicts


def heights(ax: Axes) -> dict[str, list[float]]:
    """The bars by the name of their verdict."""
    names = {to_rgba(color): name for name, color in VERDICT_COLORS.items()}
    bars: dict[str, list[float]] = {}
    for bar in ax.patches:
        assert isinstance(bar, Rectangle)
        bars.setdefault(names[to_rgba(bar.get_facecolor())], []).append(bar.get_height())
    return bars


@pytest.mark.parametrize("gap", [-1, np.nan], ids=["as stored", "as decoded"])
def test_verdicts_are_shares_of_the_runs(runs, gap):
    some = runs.sel(eps=1e-1)
    some = some.assign(verdict=some["verdict"].where((some.seed < 4) | (some.t1 < 8.0), gap))
    found = heights(plot.verdicts(some, along="t1"))
    names = {verdict.value: verdict.name for verdict in fc.Verdict}
    counts = [Counter(names.get(code, "missing") for code in codes.tolist()) for codes in some["verdict"].values]
    assert set(found) == {"plateau", "time_limit", "missing"} == set().union(*counts)
    for name, shares in found.items():
        assert shares == pytest.approx([count[name] / len(SEEDS) for count in counts], rel=ROUNDING)
    assert np.sum(list(found.values()), axis=0) == pytest.approx(1, rel=ROUNDING)


# ---- the overview


def test_overview_draws_what_makes_sense(runs, ended):
    bands, limit, heatmap, verdicts = plot.sweep(runs)
    assert {ax.figure for ax in (bands, limit, heatmap, verdicts)} == {bands.figure}
    assert legend_of(bands)[0] == legend_of(limit)[0] == "$t_1 = 30$"
    assert "fitted" in str(legend_of(limit))
    assert cells_of(heatmap).shape == (3, 4)
    assert legend_of(verdicts)[0] == "all $t_1$"
    assert np.sum(list(heights(verdicts).values()), axis=0) == pytest.approx(1, rel=ROUNDING)
    assert plot.sweep(ended, "risk").shape == (3,)
    assert plot.sweep(runs.sel(eps=1e-2).drop_vars("verdict")).shape == (1,)
    assert plot.sweep(ended.isel(eps=[1])).shape == plot.sweep(ended.isel(eps=1)).shape == (2,)


def test_overview_shows_the_value_with_the_most_runs(runs):
    axes = plot.sweep(without(runs, (runs.t1 == 30.0) & (runs.seed > 1)))
    assert legend_of(axes[0])[0] == "$t_1 = 8$"
    np.testing.assert_array_equal(along_y(axes[1].lines[1]), np.sort(runs["snc1"][1, ..., -1], axis=1)[:, 2])


@pytest.mark.parametrize("name", ["snc1", "nc4"])
def test_nothing_done_yet_is_an_empty_picture(runs, name):
    nothing = without(runs, runs.seed >= 0)
    for ax in plot.sweep(nothing, name)[:3]:
        assert [text.get_text() for text in ax.texts] == ["no finished run"]
        ax.figure.canvas.draw()
    assert heights(plot.verdicts(nothing.sel(t1=8.0))) == {"missing": [1.0] * len(EPS)}


def test_a_metric_that_falls_to_zero_is_drawn(ended):
    assert np.any(ended["nc4"][..., 0] > 0)
    assert not np.any(ended["nc4"][..., -1])
    for ax in (plot.bands(ended, "nc4"), plot.limit(ended, "nc4")):
        ax.figure.canvas.draw()
        assert not ax.texts


# ---- all of them

PICTURES = {
    "bands": lambda d, ax=None: plot.bands(d.sel(t1=8.0), "risk", ax),
    "limit": lambda d, ax=None: plot.limit(d.sel(t1=8.0), "risk", ax),
    "heatmap": lambda d, ax=None: plot.heatmap(d, "risk", ax),
    "verdicts": lambda d, ax=None: plot.verdicts(d.sel(t1=8.0), ax),
}


def drawn(ax: Axes) -> list[np.ndarray]:
    """The numbers in a picture."""
    meshes = [np.ma.getdata(np.ma.asarray(c.get_array())) for c in ax.collections if c.get_array() is not None]
    lines = [np.stack([along_x(line), along_y(line)]) for line in ax.lines]
    return [*lines, *meshes, *map(np.asarray, heights(ax).values())]


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_given_axes_are_drawn_on(runs, draw):
    figure, ax = plt.subplots()
    assert draw(runs, ax) is ax
    assert drawn(ax)
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_lazy_data_give_the_same_picture(runs, draw):
    pytest.importorskip("dask")
    lazy = runs.chunk(seed=2, eps=3, time=7)
    for found, wanted in zip(drawn(draw(lazy)), drawn(draw(runs)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda d: plot.bands(d.sel(t1=8.0), "snc4"), "'snc4'.*snc1, snc2, snc3"),
        (lambda d: plot.limit(d.sel(t1=8.0), "verdict"), "'verdict'.*snc1"),
        (lambda d: plot.heatmap(d, "snc4"), "'snc4'.*snc1"),
        (lambda d: plot.sweep(d, "snc4"), "'snc4'.*snc1"),
        (lambda d: plot.sweep(d[["t_end"]]), "none over time"),
        (lambda d: plot.bands(d), r"3 values of 't1'.*dataset\.sel\(t1=3\.0\)"),
        (lambda d: plot.limit(d), r"3 values of 't1'"),
        (lambda d: plot.verdicts(d), r"3 values of 't1'"),
        (lambda d: plot.heatmap(d.expand_dims(rtol=[1e-6, 1e-8])), r"rtol \(2\), t1 \(3\), eps \(4\)"),
        (lambda d: plot.heatmap(d.expand_dims(rtol=[1e-6, 1e-8]), x="eps", y="t1"), "2 values of 'rtol'"),
        (lambda d: plot.heatmap(d.sel(t1=8.0)), "two axes"),
        (lambda d: plot.heatmap(d, x="eps", y="eps"), "both 'eps'"),
        (lambda d: plot.heatmap(d, x="seed"), "'seed' cannot"),
        (lambda d: plot.bands(d.sel(t1=8.0), along="seed"), "'seed' cannot"),
        (lambda d: plot.bands(d.sel(t1=8.0), along="rtol"), "no axis 'rtol'.*eps, seed, time"),
        (lambda d: plot.limit(d.isel(t1=0, seed=0, drop=True)), "no axis 'seed'"),
        (lambda d: plot.sweep(d.isel(seed=0, drop=True)), "no axis 'seed'"),
        (lambda d: plot.bands(d.sel(t1=8.0).drop_vars("t")), "neither.*'time'.*'t'"),
        (lambda d: plot.limit(d.assign_coords(t1=list("abc")).sel(eps=0.1), against="t1"), "'t1' has no numbers"),
        (lambda d: plot.limit(d.sel(t1=8.0).drop_vars("eps")), "'eps' has no numbers"),
        (lambda d: plot.verdicts(d[["t_end"]]), "no variable 'verdict'"),
        (lambda d: plot.verdicts(d.assign(verdict=d["verdict"].copy(data=0 * d["verdict"] + 9)).sel(t1=8.0)), r"\[9\]"),
        (lambda d: plot.sweep(d.assign(verdict=d["verdict"].drop_attrs())), r"verdicts \[0, 2\]"),
    ],
)
def test_bad_input_is_told_before_a_figure_is_made(runs, draw, told):
    with pytest.raises(fc.UsageError, match=told):
        draw(runs)
    assert not plt.get_fignums()

"""Pictures of sweeps: bands over time, limits and their powers of eps, heat maps, verdicts.

A sweep is a Dataset with the axes of its grid as dimensions, then `eps`, `seed` and `time`. An unfinished run has the
verdict -1 and NaN metrics. From a Dataset on disk, only the data that a picture needs are read.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .._errors import UsageError
from ..model.ufm import UFM
from ..results.fits import power_law
from ..theory.small_starts.scaling import powers
from ._read import Source, read_many
from ._select import (
    attribute,
    axis_label,
    curves,
    drawable,
    end_label,
    ends,
    equals,
    finite_medians,
    header,
    metric_label,
    metric_of,
    model_options,
    numbers,
    only,
    several,
    symbol,
    value_text,
)
from ._style import (
    BAND,
    DASHED,
    GREY,
    LABELS,
    LEGEND,
    OKABE_ITO,
    clock_label,
    log_against_time,
    log_scale,
    log_ticks,
    palette,
    panels,
    spread,
)

MISSING, UNDONE = "missing", "0.88"
"""The label and the colour of unfinished runs."""

VERDICT_COLORS = {
    "plateau": "#009E73",
    "saddle": "#E69F00",
    "time_limit": "#56B4E9",
    "step_limit": "#0072B2",
    "non_finite": "#D55E00",
    "minimum": "#44AA99",
    "critical": "#F0E442",
    "separated": "#CC79A7",
    MISSING: UNDONE,
}


def bands(dataset: Source, name: str = "snc1", ax: Axes | None = None, *, along: str = "eps") -> Axes:
    """Plot a metric against time: for each value of one axis, the median over the seeds and the 5-95 % band.

    Args:
        dataset: a sweep, see `fc.sweep`, or its file or store, with one value of every axis except
            `along`, `seed` and `time`.
        name: the metric.
        ax: axes to draw on. Default: a new figure.
        along: the axis; each of its values gets a curve.

    Returns:
        The axes. Runs whose last value is missing or not finite are left out; the title counts them. If each run has
        its own times, in the variable `t`, the curves are drawn over the median of these times.

    Raises:
        UsageError: for an unknown metric or axis, no seeds or times, or another axis with more than one value.

    Example:
        >>> import numpy, xarray, flowcollapse as fc
        >>> errors = numpy.exp(-numpy.arange(12.0)).reshape(2, 3, 2)
        >>> sweep = xarray.Dataset({"snc1": (("eps", "seed", "time"), errors)}, {"eps": [1.0, 0.1], "time": [0.0, 1.0]})
        >>> len(fc.plot.bands(sweep).lines)
        2
    """
    dataset = read_many(dataset)
    name = metric_of(dataset, name)
    drawable(along)
    values = only(curves(dataset, name), along, "seed", "time")
    own_times = None if "time" in dataset.coords else _own_times(dataset, along)
    shades, end, left_out = palette(values.sizes[along]), 0.0, 0
    with panels(ax, 1, (5.2, 3.7)) as (one,):
        for i, color in enumerate(shades):
            lanes = values[i].values  # one value at a time, so that lazy data are never all in memory
            done = np.isfinite(lanes[:, -1])
            left_out += int(np.sum(~done))
            if not done.any():
                continue
            times = dataset["time"].values if own_times is None else np.median(own_times[i].values[done], axis=0)
            runs = np.where(np.isfinite(lanes[done]), lanes[done], np.nan)
            low, median, high = np.quantile(runs, (0.05, 0.5, 0.95), axis=0)
            if len(runs) > 1:
                one.fill_between(times, low, high, color=color, alpha=0.25, lw=0)
            one.plot(times, median, color=color, lw=1.6)
            end = max(end, float(times[-1]))
        one.set_ylabel("\n".join(LABELS.get(name, (metric_label(dataset, name),))))
        if _positive(one):
            log_against_time(one, end)
        clock = clock_label(dataset)
        one.set_xlabel(clock if own_times is None else f"{clock} (median over runs)")
        seeds = values.sizes["seed"]
        lines: list[Any] = [
            Line2D([], [], color=shades[i], lw=1.6, label=equals(along, values[along].values[i]))
            for i in spread(len(shades), 6)
        ]
        if seeds > 1:
            lines.append(Line2D([], [], color=GREY, lw=1.6, label=f"median of {seeds} seeds"))
            lines.append(Patch(color=GREY, alpha=0.25, lw=0, label=BAND))
        legend(one, lines, header(values, missing=left_out))
    return one


def _own_times(dataset: xr.Dataset, along: str) -> xr.DataArray:
    """The times of every run."""
    if "t" not in dataset:
        raise UsageError("dataset has neither the coordinate 'time' nor the variable 't': keep the times of the saves.")
    return only(dataset["t"], along, "seed", "time")


def limit(dataset: Source, name: str = "snc1", ax: Axes | None = None, *, against: str = "eps") -> Axes:
    """Plot a metric at the last time against an axis: every run as a point, and the medians over the seeds.

    Against eps, the power of eps is drawn too: the power fitted to the medians at small eps, by least squares of the
    logarithms, and the power predicted for the plateau, if it is known.

    Args:
        dataset: a sweep, see `fc.sweep`, or its file or store, with one value of every axis except
            `against`, `seed` and `time`.
        name: the metric, or a variable with one number per run, such as `steps_accepted`.
        ax: axes to draw on. Default: a new figure.
        against: the axis; its values must be numbers.

    Returns:
        The axes.

    Raises:
        UsageError: for an unknown metric or axis, no seeds, an axis whose values are not numbers, or another axis with
            more than one value.

    Source: the predicted powers, 2 for SNC1, 1 for SNC2, SNC3 and the distance to S, 4 for the risk, hold for
    `p >= C >= 3`, `N >= 2` without decay (derived here).

    Example:
        >>> import numpy, xarray, flowcollapse as fc
        >>> eps = numpy.array([1e-2, 1e-3, 1e-4])
        >>> errors = eps[:, None, None] ** 2 * numpy.ones((3, 2, 1))
        >>> ax = fc.plot.limit(xarray.Dataset({"snc1": (("eps", "seed", "time"), errors)}, {"eps": eps}))
        >>> [text.get_text() for text in ax.get_legend().get_texts()][-2]
        'fitted $\\\\varepsilon^{2.000}$'
    """
    dataset = read_many(dataset)
    name = metric_of(dataset, name, ends_too=True)
    drawable(against)
    values = only(ends(dataset, name), against, "seed")
    x, medians = numbers(values, against), finite_medians(values)
    finite = np.isfinite(values.values)
    with panels(ax, 1, (4.6, 3.7)) as (one,):
        seeds = np.broadcast_to(x[:, None], values.shape)[finite]
        # Thousands of points make slow vector files, so the points (and nothing else) are stored as pixels.
        one.plot(seeds, values.values[finite], ".", color=OKABE_ITO[0], ms=5, alpha=0.4, mew=0, rasterized=True)
        lines: list[Any] = [Line2D([], [], color=OKABE_ITO[0], ls="", marker=".", label="one run")]
        lines += one.plot(
            x, medians, "_", color=OKABE_ITO[4], ms=14, mew=2, label=f"median of {values.sizes['seed']} seeds"
        )
        if against == "eps":
            lines += _powers(dataset, name, medians, one)
        one.set_xlabel(axis_label(against))
        one.set_ylabel(end_label(dataset, name))
        if np.all(x > 0) and x.max() > 10 * x.min():
            log_scale(one, "x")
        if _positive(one):
            log_scale(one, "y")
        legend(one, lines, header(values, missing=int(np.sum(~finite))))
    return one


def _powers(dataset: xr.Dataset, name: str, medians: xr.DataArray, ax: Axes) -> list[Line2D]:
    """Draw the fitted power of eps over the medians used in the fit, and the predicted power through their middle."""
    law = power_law(medians)
    if law is None:
        return []
    predicted = predicted_power(dataset, name)

    def line(eps: np.ndarray, exponent: int | float, **looks: Any) -> Line2D:
        return Line2D(eps, law.level * (eps / law.middle) ** exponent, **looks)

    label = rf"fitted $\varepsilon^{{{law.power:.3f}}}$"
    lines = [line(law.eps, law.power, color=OKABE_ITO[5], lw=3, alpha=0.6, label=label)]
    if predicted is not None:
        label = rf"predicted $\varepsilon^{{{predicted}}}$"
        lines.append(line(np.sort(medians["eps"].values), predicted, color="black", lw=1, ls=DASHED, label=label))
    for one in lines:
        ax.add_artist(one)  # unlike `plot`, this does not widen the axes
    return lines


def predicted_power(dataset: xr.Dataset, name: str) -> int | None:
    """The predicted power, or None if the theory does not cover the model or the method.

    It covers the flow and plain gradient descent, and a Dataset that does not name its method counts as a flow.
    """
    method = attribute(dataset, "method")
    if "method" in dataset.coords and dataset["method"].ndim == 0:  # one of the methods of a comparison
        method = method.get(dataset["method"].item(), {})
    if method.get("optimizer", "sgd") != "sgd":
        return None
    try:
        return powers(UFM(**model_options(dataset))).get(name) or None
    except UsageError:
        return None


def heatmap(
    dataset: Source, name: str = "snc1", ax: Axes | None = None, *, x: str | None = None, y: str | None = None
) -> Axes:
    """Plot the median over the seeds of a metric at the last time, over two axes.

    Args:
        dataset: a sweep, see `fc.sweep`, or its file or store, with one value of every axis except
            the two drawn ones, `seed` and `time`.
        name: the metric, or a variable with one number per run, such as `steps_accepted`.
        ax: axes to draw on. Default: a new figure.
        x, y: the two axes. Default: the axes with more than one value; `x` is the inner axis of the Dataset.

    Returns:
        The axes, with logarithmic colours if all medians are positive. Cells without a finite run are hatched.

    Raises:
        UsageError: for an unknown metric or axis, no seeds, or if the axes to draw are not exactly two.

    Example:
        >>> import numpy, xarray, flowcollapse as fc
        >>> errors = numpy.arange(1.0, 13.0).reshape(2, 3, 2, 1)
        >>> sweep = xarray.Dataset({"snc1": (("num_features", "eps", "seed", "time"), errors)})
        >>> ax = fc.plot.heatmap(sweep)
        >>> ax.collections[0].get_array().ravel().tolist()
        [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]
    """
    dataset = read_many(dataset)
    name = metric_of(dataset, name, ends_too=True)
    values = ends(dataset, name)
    x, y = _two_axes(values, x, y)
    values = only(values, y, x, "seed")
    cells, finite = np.ma.masked_invalid(finite_medians(values).values), np.isfinite(values.values)
    with panels(ax, 1, (5.0, 3.7)) as (one,):
        one.patch.set(facecolor="0.93", edgecolor="0.7", hatch="///", linewidth=0)
        positive = cells.count() > 0 and cells.min() > 0
        lines: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.6} if max(cells.shape) <= 30 else {}
        mesh = one.pcolormesh(cells, norm=LogNorm() if positive else None, cmap="viridis", **lines)
        for axis, name_of in ((one.xaxis, x), (one.yaxis, y)):
            _categories(axis, name_of, values)
        if cells.count() > 0:
            locator, formatter = log_ticks(cells.min(), cells.max()) if positive else (None, None)
            bar = one.figure.colorbar(mesh, ax=one, ticks=locator, format=formatter)
            bar.ax.minorticks_off()
            bar.outline.set_linewidth(0.7)  # pyright: ignore[reportCallIssue]
            bar.set_label(f"{end_label(dataset, name)}, median of {values.sizes['seed']} seeds")
        else:
            _nothing(one)
        one.set_title(header(values, missing=int(np.sum(~finite))), loc="left")
    return one


def _two_axes(values: xr.DataArray, x: str | None, y: str | None) -> tuple[str, str]:
    """The named axes; an axis that is not named is the only other axis with more than one value."""
    for axis in (x, y):
        drawable(axis)
    left = [axis for axis in several(values) if axis not in (x, y)]
    wanted = (x is None) + (y is None)
    if x == y and x is not None:
        raise UsageError(f"x and y are both {x!r}: choose two axes.")
    if wanted and len(left) != wanted:
        there = ", ".join(f"{axis} ({values.sizes[axis]})" for axis in several(values)) or "none"
        raise UsageError(
            f"heatmap needs two axes with several values, and the dataset has these: {there}; name x and y, and select "
            "one value of each other axis with dataset.sel."
        )
    return left[-1] if x is None else x, left[0] if y is None else y


def verdicts(dataset: Source, ax: Axes | None = None, *, along: str = "eps") -> Axes:
    """Plot how the runs ended: the share of each verdict, for each value of one axis.

    Args:
        dataset: a sweep, see `fc.sweep`, or its file or store, with one value of every axis except
            `along`, `seed` and `time`.
        ax: axes to draw on. Default: a new figure.
        along: the axis; each of its values gets a bar.

    Returns:
        The axes. Unfinished runs are shown as a separate share, "missing".

    Raises:
        UsageError: if the Dataset has no verdicts, if the attributes `flag_values` and `flag_meanings` do not explain
            them, for an unknown axis or no seeds, or for another axis with more than one value.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> flags = {"flag_values": [0, 2], "flag_meanings": "plateau time_limit"}
        >>> sweep = xarray.Dataset({"verdict": (("eps", "seed"), [[0, 0], [2, -1]], flags)}, {"eps": [1.0, 0.1]})
        >>> [float(bar.get_height()) for bar in fc.plot.verdicts(sweep).patches]
        [1.0, 0.0, 0.0, 0.5, 0.0, 0.5]
    """
    dataset = read_many(dataset)
    drawable(along)
    codes, names = codes_of(dataset)
    return draw_verdicts(only(codes, along, "seed"), names, along, ax)


def codes_of(dataset: xr.Dataset) -> tuple[xr.DataArray, dict[int, str]]:
    """The verdicts, -1 for unfinished runs, and the meaning of each code."""
    if "verdict" not in dataset:
        raise UsageError("dataset has no variable 'verdict': pass the dataset of a sweep.")
    attributes, codes = dataset["verdict"].attrs, dataset["verdict"].compute().fillna(-1)  # files may have NaN there
    values, meanings = np.atleast_1d(attributes.get("flag_values", [])), attributes.get("flag_meanings", "").split()
    names = dict(zip(values.tolist(), meanings, strict=False)) | {-1: MISSING}
    unknown = sorted(set(np.unique(codes.values).tolist()) - set(names))
    if unknown:
        raise UsageError(
            f"dataset's verdicts {unknown} are not explained by flag_values={values.tolist()} and flag_meanings="
            f"{meanings}: keep the attributes of the variable 'verdict'."
        )
    return codes, names


def draw_verdicts(codes: xr.DataArray, names: dict[int, str], along: str, ax: Axes | None) -> Axes:
    """Draw the shares of the verdicts over all axes but one as stacked bars, leaving out verdicts that do not occur."""
    with panels(ax, 1, (4.6, 3.7)) as (one,):
        bottom, places, lines = np.zeros(codes.sizes[along]), np.arange(codes.sizes[along]) + 0.5, []
        for code in [*(code for code in names if code != -1), -1]:  # unfinished runs on top
            share = (codes == code).mean([axis for axis in codes.dims if axis != along]).values
            if share.any():
                color = VERDICT_COLORS.get(names[code], OKABE_ITO[len(lines) % 6])
                one.bar(places, share, 0.8, bottom, color=color, lw=0)
                lines.append(Patch(color=color, lw=0, label=names[code].replace("_", " ")))
            bottom += share
        one.set(ylim=(0, 1), ylabel="share of the runs")
        _categories(one.xaxis, along, codes)
        together = [f"all {symbol(axis)}" for axis in several(codes) if axis != along]
        legend(one, lines, header(codes, more=together))
    return one


def _categories(axis: Axis, name: str, values: xr.DataArray) -> None:
    """Put ticks at the middles of the cells, labelled with the values of the axis."""
    picked = spread(values.sizes[name], 9)
    labels = [value_text(values[name].values[i]) for i in picked]
    long = isinstance(axis, XAxis) and len("".join(labels).replace("$", "")) > 40
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axis.set_ticks(picked + 0.5, labels, **slanted)
    axis.set_tick_params(length=0)
    axis.set_label_text(axis_label(name))


def _positive(ax: Axes) -> bool:
    """Whether a positive value is drawn, as logarithmic axes need. Writes a note if nothing at all is drawn."""
    drawn = np.concatenate([np.zeros(0), *(np.asarray(line.get_ydata(), float) for line in ax.lines)])
    if not np.any(np.isfinite(drawn)):
        _nothing(ax)
        ax.set(xticks=[], yticks=[])
    return bool(np.any(drawn > 0))


def _nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no finished run", transform=ax.transAxes, ha="center", va="center", color=GREY)


def legend(ax: Axes, handles: list[Any], title: str) -> None:
    """Draw the legend above the axes if the figure's layout makes room for it, otherwise inside the axes."""
    figure = ax.get_figure(root=True)
    above = figure is not None and figure.get_layout_engine() is not None
    columns = 2 if len(handles) == 4 else 3
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": columns} if above else {}
    ax.legend(handles=handles, title=title or None, alignment="left", **LEGEND, **place)

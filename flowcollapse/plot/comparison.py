"""Figures of a comparison: the methods' paths, their distance to the flow, and where they end along an axis."""

import itertools
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from .._checks import shown
from .._errors import UsageError
from ._read import Source, another_picture, known_name, read
from ._style import OKABE_ITO, log_against_time, panels
from .paper import IN_A_PATH

OVER = ("seed", "lane")
"""The axes that are summarised as a median and a band."""

DASHES = ("-", "--", "-", "-.", ":")

LABELS = {
    "distance_to_flow": "distance to the flow\n" + r"$\|z_k - z(t_k)\|_E \,/\, \|z(t_k)\|_E$",
    "max_distance_to_flow": "largest distance to the flow",
    "eps": r"$\varepsilon$",
}


def comparison_paths(dataset: Source, name: str = "snc1", ax: Axes | None = None) -> Axes:
    """Plot a metric of every method against time.

    Args:
        dataset: the Dataset of `fc.compare`, or its file, with one value of every axis except the starts.
        name: the metric.
        ax: axes to draw on. Default: a new figure.

    Returns:
        The axes, with the median over the starts and their 5-95 % band for each method, and the flow in black.

    Raises:
        UsageError: for a metric that is not in the Dataset, or axes with several values.

    Example:
        >>> import xarray
        >>> from flowcollapse.plot import comparison_paths
        >>> curves = {"snc1": (("method", "time"), [[1.0, 0.1], [1.0, 0.2]])}
        >>> ax = comparison_paths(xarray.Dataset(curves, {"method": ["flow", "gd"], "time": [0.0, 1.0]}))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['flow', 'gd']
    """
    dataset = read(dataset)
    name = _checked(dataset, name)
    values = _starts_last(dataset, name, "time")
    with panels(ax, 1, (5.2, 3.3)) as (one,):
        _draw(one, dataset, values, _times(dataset))
        log_against_time(one, float(dataset["time"][-1]))
        one.set_ylabel(_label(name))
    return one


def comparison_distance(dataset: Source, ax: Axes | None = None) -> Axes:
    """Plot the distance of every method to the flow, divided by the norm of the flow, against time.

    Args:
        dataset: the Dataset of `fc.compare`, or its file, with one value of every axis except the starts.
        ax: axes to draw on. Default: a new figure.

    Returns:
        The axes, with lines and bands as in `comparison_paths`.

    Raises:
        UsageError: if the Dataset is not a comparison, or has axes with several values.

    Example:
        >>> import xarray
        >>> from flowcollapse.plot import comparison_distance
        >>> curves = {"distance_to_flow": (("method", "time"), [[0.0, 0.0], [0.0, 0.2]])}
        >>> ax = comparison_distance(xarray.Dataset(curves, {"method": ["flow", "gd"], "time": [0.0, 1.0]}))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['gd']
    """
    dataset = read(dataset)
    values = _starts_last(dataset, "distance_to_flow", "time")
    with panels(ax, 1, (5.2, 3.3)) as (one,):
        _draw(one, dataset, values.where(dataset["time"] > 0)[1:], _times(dataset))  # the distance is 0 at time 0
        log_against_time(one, float(dataset["time"][-1]))
        one.set_ylabel(_label("distance_to_flow"))
    return one


def comparison_ends(
    dataset: Source, name: str = "max_distance_to_flow", ax: Axes | None = None, *, along: str | None = None
) -> Axes:
    """Plot where every method ends, along an axis such as the learning rate.

    Args:
        dataset: the Dataset of `fc.compare`, or its file, with one value of every axis except the starts and the drawn
            axis.
        name: a metric, at the last time, or `max_distance_to_flow`.
        ax: axes to draw on. Default: a new figure.
        along: the axis. Default: the first axis with several values.

    Returns:
        The axes, with the median over the starts and their 5-95 % band for each method. Diverged lanes leave a gap.

    Raises:
        UsageError: for a variable or an axis that is not in the Dataset, or further axes with several values.

    Example:
        >>> import xarray
        >>> from flowcollapse.plot import comparison_ends
        >>> ends = {"max_distance_to_flow": (("method", "learning_rate"), [[0.0, 0.0], [0.1, 0.2]])}
        >>> data = xarray.Dataset(ends, {"method": ["flow", "sgd"], "learning_rate": [0.01, 0.02]})
        >>> comparison_ends(data).get_xlabel()
        'learning rate'
    """
    dataset = read(dataset)
    name = _checked(dataset, name)
    end = dataset[name].isel(time=-1) if "time" in dataset[name].dims else dataset[name]
    if along is None:
        several = [str(axis) for axis in end.dims if axis not in ("method", *OVER) and end.sizes[axis] > 1]
        along = several[0] if several else "eps"
    if not isinstance(along, str) or along not in end.dims or along not in end.coords:
        raise UsageError(
            f"dataset has no axis {shown(along)} of single numbers: choose one of {', '.join(map(str, end.dims))}."
        )
    end = end.sortby(along)
    values = _starts_last(end.to_dataset(name=name), name, along)
    with panels(ax, 1, (5.2, 3.3)) as (one,):
        few = end.sizes[along] <= 8
        drawn = values[1:] if name == "max_distance_to_flow" else values
        _draw(one, dataset, drawn.where(drawn > 0), end[along].values, marker="." if few else None)
        one.set_xscale("log")
        if few:
            one.set_xticks(end[along].values, [f"{value:g}" for value in end[along].values])
            one.xaxis.set_minor_locator(NullLocator())
        one.set_yscale("log")
        one.yaxis.set_minor_locator(NullLocator())
        one.set_xlabel(_label(along))
        one.set_ylabel(_label(name) + ("" if name in LABELS else " at the end"))
    return one


def comparison(dataset: Source, name: str | None = None) -> np.ndarray:
    """Plot a comparison in one figure: paths, distances to the flow, and ends if an axis has several values.

    Args:
        dataset: the Dataset of `fc.compare`, or its file. If an axis has several values, paths and distances show the
            first one.
        name: the metric of the paths. Default: `snc1`, or the first metric in the Dataset.

    Returns:
        An array of the axes.

    Raises:
        UsageError: for a metric that is not in the Dataset.

    Example:
        >>> import xarray
        >>> from flowcollapse.plot.comparison import comparison
        >>> names, flags = ("method", "eps", "time"), {"flag_values": [0], "flag_meanings": "plateau"}
        >>> curves = {name: (names, [[[1.0, 0.1]], [[1.0, 0.2]]]) for name in ("snc1", "distance_to_flow")}
        >>> ends = {"verdict": (names[:2], [[0], [0]], flags)}
        >>> data = xarray.Dataset(curves | ends, {"method": ["flow", "gd"], "eps": [0.1], "time": [0.0, 1.0]})
        >>> comparison(data).shape
        (2,)
    """
    dataset = read(dataset)
    if "verdict" not in dataset or "method" not in dataset["verdict"].dims:
        raise UsageError(
            "dataset has no verdicts of several methods: pass what fc.compare returns"
            f"{another_picture(dataset, 'comparison') or '.'}"
        )
    metrics = [str(key) for key in dataset.data_vars if "time" in dataset[key].dims and key not in ("t", *LABELS)]
    first_of = next(iter([key for key in metrics if key == "snc1"] + metrics), "snc1")
    name = _checked(dataset, first_of if name is None else name)
    axes = [str(axis) for axis in dataset["verdict"].dims if axis not in ("method", *OVER)]
    several = [axis for axis in axes if dataset.sizes[axis] > 1]
    first = dataset.isel(dict.fromkeys(axes, 0))
    with panels(None, 2 + bool(several), (4.4 * (2 + bool(several)), 3.5)) as three:
        comparison_paths(first, name, three[0])
        comparison_distance(first, three[1])
        if several:
            where = ", ".join(f"{_label(axis)} = {first[axis].item():g}" for axis in several if axis in first.coords)
            for ax in three[:2]:
                ax.set_title(where, fontsize="medium")
            drawn = next((axis for axis in several if axis in dataset.coords), several[0])
            others = {axis: 0 for axis in axes if axis != drawn}
            comparison_ends(dataset.isel(others), "max_distance_to_flow", three[2], along=drawn)
        handles = three[0].get_legend_handles_labels()[0]
        for ax in three:
            ax.get_legend().remove()
        three[0].figure.legend(handles=handles, ncols=len(handles), loc="outside upper center", frameon=False)
    return three


def _checked(dataset: xr.Dataset, name: Any) -> str:
    """The name of a variable that each method has, ignoring case."""
    known = [str(key) for key, values in dataset.data_vars.items() if "method" in values.dims]
    if not known:
        raise UsageError(
            "dataset has no variable of several methods: pass what fc.compare returns"
            f"{another_picture(dataset, 'comparison') or '.'}"
        )
    return known_name(name, known)


def _starts_last(dataset: xr.Dataset, name: str, along: str) -> xr.DataArray:
    """The variable with the dimensions (method, along, starts); every other axis must have one value."""
    values = dataset[_checked(dataset, name)]
    if along not in values.dims:
        raise UsageError(f"{name!r} has no axis {along!r}: choose from {', '.join(map(str, values.dims))}.")
    others = [axis for axis in values.dims if axis not in ("method", along, *OVER)]
    several = [str(axis) for axis in others if values.sizes[axis] > 1]
    if several:
        raise UsageError(f"dataset has several values of {', '.join(several)}: select one of each first.")
    values = values.isel(dict.fromkeys(others, 0), drop=True)
    starts = [axis for axis in values.dims if axis in OVER]
    values = values.stack(start=starts, create_index=False) if starts else values.expand_dims("start")
    return values.transpose("method", along, "start")


def _draw(ax: Axes, dataset: xr.Dataset, values: xr.DataArray, x: np.ndarray, **style: Any) -> None:
    """Draw the median of each method, at its row of x, and the band of its finite starts.

    The flow is black and drawn first.
    """
    names = np.atleast_1d(dataset["method"].values).astype(str).tolist()
    others = len(names) - 1
    colors = OKABE_ITO if others <= len(OKABE_ITO) else mpl.colormaps["viridis"](np.linspace(0, 0.9, others))
    looks = dict(zip(names, zip(["black", *colors], itertools.cycle(DASHES)), strict=False))
    for name, one in zip(np.atleast_1d(values["method"].values).astype(str), values.values, strict=True):
        place = np.broadcast_to(x, (len(names), one.shape[0]))[names.index(name)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", category=RuntimeWarning)  # all-NaN points become a gap
            low, median, high = np.nanquantile(np.where(np.isfinite(one), one, np.nan), (0.05, 0.5, 0.95), axis=1)
        color, dashes = looks[name]
        if one.shape[1] > 1:
            ax.fill_between(place, low, high, color=color, alpha=0.2, lw=0)
        ax.plot(place, median, color=color, ls=dashes, lw=2.4 if name == names[0] else 1.4, label=name, **style)
    ax.legend(frameon=False)


def _times(dataset: xr.Dataset) -> np.ndarray:
    """The save times of each method; for a descent, the times of its steps, which all starts share."""
    return _starts_last(dataset, "t", "time").values[..., 0] if "t" in dataset else dataset["time"].values


def _label(name: str) -> str:
    return LABELS.get(name) or IN_A_PATH.get(name) or name.replace("_", " ")

"""The paper's two figures, and the curves of one run."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .._checks import shown
from .._errors import UsageError
from ..metrics.registry import METRICS
from ._read import Source, another_picture, known_name, read
from ._style import (
    BAND,
    DASHED,
    DOTTED,
    GREY,
    LABELS,
    LEGEND,
    OKABE_ITO,
    clock_label,
    log_against_time,
    palette,
    panels,
    spread,
    tex,
)

IN_A_PATH = {
    name: METRICS[name].label or METRICS[name].long_name
    for name in ("snc1", "snc2", "snc3", "relative_distance", "risk")
}
"""The curves of one run that `path` shows."""

OF_ANY_LOSS = ("nc1", "nc2_etf_h", "nc2_etf_w", "nc3")
"""The curves that it shows for a run without strong collapse, such as one of cross-entropy without decay."""


def figure1(dataset: Source, ax: Sequence[Axes] | np.ndarray | None = None, *, seed: int | None = None):
    """Plot the errors of strong neural collapse, SNC1, SNC2 and SNC3, against time: the paper's Figure 1.

    Args:
        dataset: curves `snc1`, `snc2`, `snc3` over `time` and any of the dimensions `method`, `eps`, `seed`; as a
            Dataset, a `Trajectory`, or the path of a file or store.
        ax: three axes to draw on. Default: a new figure.
        seed: the seed whose curves are drawn. Default: the Dataset's attribute `seed_shown`, or its first seed.

    Returns:
        An array of the three axes. Each shows, for every eps, the flow of the shown seed as a line, the descent as dots
        over it, and, if there are several seeds, the median (dashed) and 5-95 % band of the flow over all seeds.

    Raises:
        UsageError: if the Dataset lacks a curve, the times or the seed, or if `ax` is not three axes.

    Source: Mixon, Parshall and Pi, figure 1.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> curves = {name: ("time", [1.0, 0.1, 0.01]) for name in ("snc1", "snc2", "snc3")}
        >>> axes = fc.plot.figure1(xarray.Dataset(curves, {"time": [0.0, 1.0, 2.0]}))
        >>> axes.shape, axes[0].get_yscale()
        ((3,), 'log')
    """
    dataset = read(dataset)
    with panels(ax, 3, (8.0, 2.9)) as axes:
        for one, name in zip(axes, ("snc1", "snc2", "snc3"), strict=True):
            _curves(dataset, name, one, seed)
        _legend(dataset, axes[0], outside=ax is None)
    return axes


def figure2(dataset: Source, ax: Axes | None = None, *, seed: int | None = None) -> Axes:
    """Plot the distance to the invariant subspace S over the norm of the state, against time: the paper's Figure 2.

    Args:
        dataset: the curve `relative_distance` over `time` and any of the dimensions `method`, `eps`, `seed`, as in
            `figure1`.
        ax: axes to draw on. Default: a new figure.
        seed: the seed whose curves are drawn, as in `figure1`.

    Returns:
        The axes, with lines as in `figure1`.

    Raises:
        UsageError: if the Dataset lacks the curve, the times or the seed.

    Source: Mixon, Parshall and Pi, figure 2.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> ax = fc.plot.figure2(
        ...     xarray.Dataset({"relative_distance": ("time", [1.0, 0.1, 0.01])}, {"time": [0.0, 1.0, 2.0]})
        ... )
        >>> ax.get_yscale()
        'log'
    """
    dataset = read(dataset)
    with panels(ax, 1, (5.2, 3.5)) as (one,):
        _curves(dataset, "relative_distance", one, seed)
        _legend(dataset, one, outside=ax is None)
    return one


def path(dataset: Source, ax: Axes | None = None, *, name: str | None = None) -> Axes:
    """Plot the metrics of one run against time: strong collapse, distance to S and risk, or else neural collapse.

    Args:
        dataset: one run: a `Trajectory`, its `to_xarray()`, or the file that holds it.
        ax: axes to draw on. Default: a new figure.
        name: the only metric to draw. Default: several.

    Raises:
        UsageError: if the Dataset has no curve with `time` as its only dimension, or lacks the metric.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> run = xarray.Dataset({"nc3": ("time", [1.0, 0.1, 0.01])}, {"time": [0.0, 1.0, 2.0]})
        >>> len(fc.plot.path(run).lines)
        1
    """
    dataset = read(dataset)
    curves = [str(name) for name, values in dataset.data_vars.items() if values.dims == ("time",)]
    names = [one for one in IN_A_PATH if one in curves]
    if names in ([], ["risk"]):  # strong collapse has no target here
        names = [one for one in OF_ANY_LOSS if one in curves] or curves
    if not names or "time" not in dataset.coords:
        raise UsageError(
            "dataset holds no metric over time alone: pass one run, as fc.simulate returns it"
            f"{another_picture(dataset, 'run') or '.'}"
        )
    if name is not None:
        names = [known_name(name, curves)]
    with panels(ax, 1, (5.2, 3.3)) as (one,):
        marker = "." if dataset.sizes["time"] < 20 else None
        for i, name in enumerate(names):
            color, dashes = OKABE_ITO[i % len(OKABE_ITO)], ("-", "--", ":", "-.")[(i // len(OKABE_ITO)) % 4]
            one.plot(
                dataset["time"], dataset[name], ls=dashes, marker=marker, color=color, label=IN_A_PATH.get(name, name)
            )
        log_against_time(one, float(dataset["time"][-1]), clock_label(dataset))
        one.legend(frameon=False, fontsize="small" if len(names) > 6 else None, ncols=1 + (len(names) > 8))
    return one


def _curves(dataset: xr.Dataset, name: str, ax: Axes, seed: int | None) -> None:
    """Draw one quantity against time: for every eps, the shown seed's flow and descent, and the median and band."""
    values = _full(dataset, name)
    shown = _shown(dataset, values, seed)
    times = dataset["time"].values
    for color, one_eps in zip(palette(values.sizes["eps"]), values.transpose("eps", ...), strict=True):
        first, *others = one_eps
        seeds = first.values[np.isfinite(first.values).all(axis=1)]
        if len(seeds) > 1:
            low, median, high = np.quantile(seeds, (0.05, 0.5, 0.95), axis=0)
            ax.fill_between(times, low, high, color=color, alpha=0.25, lw=0)
            ax.plot(times, median, color=color, lw=0.9, ls=DASHED)
        ax.plot(times, first[shown], color=color, lw=1.8)
        for other in others:
            ax.plot(times, other[shown], color="black", lw=1.1, ls=DOTTED)
    ax.set_ylabel("\n".join(LABELS[name]))
    log_against_time(ax, float(times[-1]))


def _full(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """The quantity with the dimensions (method, eps, seed, time), even if the Dataset lacks some of them."""
    if name not in dataset or "time" not in dataset.coords:
        raise UsageError(
            f"dataset needs {name!r} over the coordinate 'time': choose it among the metrics to save"
            f"{another_picture(dataset, 'figures', 'sweep', 'run') or '.'}"
        )
    values = dataset[name]
    extra = set(values.dims) - {"method", "eps", "seed", "time"}
    if extra:
        raise UsageError(f"dataset has the dimensions {sorted(map(str, extra))} too: select one value of each first.")
    missing = [dim for dim in ("method", "eps", "seed") if dim not in values.dims]
    return values.drop_vars(missing, errors="ignore").expand_dims(missing).transpose("method", "eps", "seed", "time")


def _shown(dataset: xr.Dataset, values: xr.DataArray, seed: int | None) -> int:
    """The position of the seed to draw."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise UsageError(f"seed must be one of the dataset's seeds, got {shown(seed)}: give an integer.")
    seed = dataset.attrs.get("seed_shown") if seed is None else seed
    if seed is None or ("seed" not in values.coords and values.sizes["seed"] == 1):
        return 0
    found = np.flatnonzero(values["seed"].values == seed)
    if len(found) == 0:
        raise UsageError(f"seed {seed} is not in the dataset: choose one of {values['seed'].values.tolist()}.")
    return int(found[0])


def _legend(dataset: xr.Dataset, ax: Axes, *, outside: bool) -> None:
    """Draw the legend, with colours in the first row and kinds of lines in the second, above the figure or inside."""
    values = _full(dataset, next(name for name in LABELS if name in dataset))
    colors: list[Any] = []
    if "eps" in dataset.dims:
        eps, shades = dataset["eps"].values, palette(dataset.sizes["eps"])
        colors = [
            Line2D([], [], color=shades[i], lw=1.8, label=rf"$\varepsilon = {tex(float(eps[i]))}$")
            for i in spread(len(eps), 6)
        ]
    lines: list[Any] = [Line2D([], [], color=GREY, lw=1.8, label=_method(dataset, 0))]
    if values.sizes["method"] > 1:
        lines.append(Line2D([], [], color="black", lw=1.1, ls=DOTTED, label=_method(dataset, 1)))
    if values.sizes["seed"] > 1:
        lines.append(Line2D([], [], color=GREY, lw=0.9, ls=DASHED, label=f"median of {values.sizes['seed']} seeds"))
        lines.append(Patch(color=GREY, alpha=0.25, lw=0, label=BAND))
    blank = Line2D([], [], alpha=0, label=" ")
    if not outside:
        ax.legend(handles=[*colors, *lines], loc="best", **LEGEND)
        return
    columns = list(itertools.zip_longest(colors, lines, fillvalue=blank)) if colors else [lines]
    handles = list(itertools.chain(*columns))
    ax.figure.legend(handles=handles, ncols=len(handles) // 2 or 1, loc="outside upper center", **LEGEND)


def _method(dataset: xr.Dataset, index: int) -> str:
    if "method" not in dataset.coords:
        return "flow"
    return f"{np.atleast_1d(dataset['method'].values)[index]}"

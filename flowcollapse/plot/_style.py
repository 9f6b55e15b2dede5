"""Code that all figures share: style and colours, names and numbers as text, logarithmic axes, and files."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import Formatter, FuncFormatter, Locator, LogFormatterSciNotation, LogLocator, MaxNLocator

from .._checks import shown
from .._errors import UsageError
from .._files import check_picture, local_path, replacing
from ..metrics.registry import METRICS
from ._films import Film, write_film

LABELS = {name: (metric.label, metric.symbol) for name, metric in METRICS.items() if metric.symbol}
"""The names and formulas of the curves in the figures."""

OKABE_ITO = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
"""Colours that people with any common kind of colour vision can tell apart (Okabe and Ito 2008)."""

DOTTED, DASHED, GREY = (0, (1, 2)), (0, (5, 2)), "0.35"

BAND = "5\N{EN DASH}95 %"

STYLE: dict[Any, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""The style of new figures; given axes keep their own style."""

LEGEND: dict[str, Any] = {"frameon": False, "handlelength": 1.8, "labelspacing": 0.3, "columnspacing": 1.5}


@contextlib.contextmanager
def panels(ax: Any, count: int, size: tuple[float, float], rows: int = 1) -> Iterator[np.ndarray]:
    """The given axes, or new ones in the style of this package, row by row."""
    if ax is not None:
        given = _each(ax)
        if len(given) != count or not all(isinstance(one, Axes) for one in given):
            raise UsageError(f"ax must be {count} matplotlib Axes, got {shown(ax)}: pass them, or leave ax out.")
        yield np.array(given, dtype=object)
        return
    with mpl.rc_context(STYLE):
        figure, new = plt.subplots(rows, count // rows, figsize=size, layout="constrained", squeeze=False)
        yield new.ravel()
        figure.draw_without_rendering()  # ticks take their style when they are first drawn


def _each(axes: Any) -> list[Any]:
    """The axes in an array or list, or a list of the single object."""
    if isinstance(axes, np.ndarray):
        return list(axes.ravel())
    return list(axes) if isinstance(axes, list | tuple) else [axes]


def save(axes: Any, file: str | Path) -> None:
    """Save the figure of the axes as PNG, PDF or SVG, or a film as GIF or MP4, completely or not at all.

    Args:
        axes: the axes that a plot function of this package returns (one or an array of them), their figure, or the film
            of `fc.plot.animate`.
        file: the file, whose suffix chooses the format. MP4 needs ffmpeg.

    Raises:
        UsageError: for anything else, another suffix, or a file that cannot be written.

    Example:
        >>> import pathlib, tempfile, xarray, flowcollapse as fc
        >>> ax = fc.plot.path(xarray.Dataset({"nc3": ("time", [1.0, 0.1])}, {"time": [0.0, 1.0]}))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.plot.save(ax, folder + "/run.svg")
        ...     [file.name for file in pathlib.Path(folder).iterdir()]
        ['run.svg']
    """
    file = local_path(file, "file")
    if isinstance(axes, Film):
        write_film(axes, file)
        return
    check_picture(file)
    first = next(iter(_each(axes)), None)
    figure = first.get_figure(root=True) if isinstance(first, Axes | Figure | SubFigure) else None
    if not isinstance(figure, Figure):
        raise UsageError(f"axes must be matplotlib Axes, got {shown(axes)}: pass what a picture returns.")
    with mpl.rc_context({"pdf.fonttype": 42}), replacing(file) as part:
        figure.savefig(part, format=file.suffix[1:].lower(), dpi=300)


def palette(count: int) -> Sequence[Any]:
    """One colour for each value of an axis, light enough that black dots drawn over it are visible."""
    return OKABE_ITO[:count] if count <= 6 else list(mpl.colormaps["viridis"](np.linspace(0.25, 0.9, count)))


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` positions, evenly spaced from the first to the last, for labels."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def tex(number: int | float) -> str:
    """A number as it appears inside a formula: `10^k` for powers of ten beyond the thousands, or `a x 10^k`."""
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    exponent = round(math.log10(abs(number)))
    if abs(exponent) > 3 and math.isclose(number, 10.0**exponent, rel_tol=1e-9):
        return rf"10^{{{exponent}}}"
    mantissa, _, power = (f"{number:g}" if isinstance(number, float) else f"{number}").partition("e")
    return rf"{mantissa} \times 10^{{{int(power)}}}" if power else mantissa


def log_against_time(ax: Axes, end: float, clock: str = "time $t$") -> None:
    """Set up axes with logarithmic values over times from 0 to the end, in a clock with the given label."""
    if end > 0:
        ax.set_xlim(0, end)
    ax.set_xlabel(clock)
    log_scale(ax, "y")


def clock_label(dataset: xr.Dataset) -> str:
    """The label of the times of a Dataset."""
    name = dataset["time"].attrs.get("long_name", "time") if "time" in dataset.coords else "time"
    return "time $t$" if name == "time" else name


def log_scale(ax: Axes, which: str) -> None:
    """Make the x or y axis logarithmic, with few ticks, all labelled. Call this after drawing everything."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    locator, formatter = log_ticks(*(ax.get_xlim() if which == "x" else ax.get_ylim()))
    axis.set_major_locator(locator)
    axis.set_major_formatter(formatter)
    axis.minorticks_off()


def log_ticks(low: float, high: float) -> tuple[Locator, Formatter]:
    """Ticks at powers of ten, and at other round numbers if the range holds too few of them."""
    decades = abs(math.log10(high) - math.log10(low))
    if decades >= 2:
        return LogLocator(numticks=9), LogFormatterSciNotation()
    plain = FuncFormatter(lambda value, _: f"${tex(value)}$")
    return LogLocator(subs=(1, 2, 5)) if decades > 0.7 else MaxNLocator(5, steps=[1, 2, 5, 10]), plain

"""Measured curves beside those of the model that was fitted to them."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .._checks import shown
from .._errors import UsageError
from ..fitting.measured import Measured, compared, read as read_curves
from ..fitting.result import Fit
from ..metrics.registry import METRICS
from ._read import Source, read
from ._style import GREY, LEGEND, log_against_time, panels, spread

MARKED = 60
"""The most measured points that get a marker in a panel, so that the line behind them stays visible."""

FINE = 400
"""The number of times at which the model's curve is drawn."""


def beside(dataset: Source, fit: Fit) -> np.ndarray:
    """Plot measured curves beside the fitted model's, one panel for each metric that both have.

    Args:
        dataset: the measured curves: anything that `fc.fit` takes, or a file that holds it.
        fit: what `fc.fit` found for these curves, or for others over the same time axis.

    Returns:
        An array of the axes: the risk with its residuals first, if it was measured, then the other metrics. Circles are
        measured, a solid line is a fitted curve, and a dashed line a curve that follows from the fit.

    Raises:
        UsageError: for curves over another time axis or without a metric of the model, or if `fit` is no `fc.Fit`.

    Example:
        >>> import numpy as np, flowcollapse as fc
        >>> fc.enable_x64()
        >>> epoch = np.arange(5, 100)
        >>> mode = 1 / (1 + np.exp(-0.2 * (epoch - 50.0)))
        >>> run = {"epoch": epoch, "risk": 25 * (1 - mode) ** 2, "snc1": np.sqrt(50) * (1 - mode)}
        >>> axes = fc.plot.beside(run, fc.fit(run, num_classes=3, samples_per_class=25))
        >>> [ax.get_ylabel() for ax in axes]
        ['risk', 'residual, % of the range', 'SNC1 error']
    """
    if not isinstance(fit, Fit):
        raise UsageError(f"fit must be an fc.Fit, got {shown(fit)}: pass what fc.fit returns.")
    measured = read_curves(dataset if isinstance(dataset, Mapping | pd.DataFrame) else read(dataset))
    if measured.axis != fit.axis:
        raise UsageError(
            f"dataset is over {measured.axis!r} and fit over {fit.axis!r}: pass the curves that were fitted, or rename "
            "their axis."
        )
    curves = {name: compared(measured, name) for name in fit.setting.names if name in measured.curves}
    curves = {name: values for name, values in curves.items() if np.any(np.isfinite(values))}
    if not curves:
        raise UsageError(f"dataset has no metric that the model predicts: add one of {', '.join(fit.setting.names)}.")
    count = len(curves) + ("risk" in curves)
    rows = 1 if count <= 3 else 2
    places = rows * math.ceil(count / rows)
    with panels(None, places, (3.9 * places / rows, 3.3 * rows), rows) as grid:
        axes, unused = list(grid[:count]), grid[count:]
        for ax in unused:
            ax.remove()
        free = iter(axes)
        for name, values in curves.items():
            _curve(next(free), measured, fit, name, values)
            if name == "risk":
                _residuals(next(free), measured, fit, values)
        verdict = f"{'explained' if fit.explains else 'not explained'}: {fit.reason}"
        axes[0].figure.suptitle("\n".join(textwrap.wrap(verdict, 54 * places // rows)), fontsize="medium")
        axes[0].figure.legend(handles=_handles(fit, curves), ncols=3, loc="outside lower center", **LEGEND)
    return np.array(axes, dtype=object)


def _curve(ax: Axes, measured: Measured, fit: Fit, name: str, values: np.ndarray) -> None:
    """Draw a metric and the model's curve: the risk on a linear axis, as it is fitted, others on a logarithmic one."""
    fine = np.linspace(measured.ts[0], measured.ts[-1], FINE)
    ax.plot(fine, fit.predict(fine, name)[name], color="black", lw=1.4, ls=_dashes(fit, name), zorder=3)
    marked = spread(len(measured.ts), MARKED)
    ax.plot(measured.ts[marked], values[marked], **POINTS)
    ax.set_ylabel("\n".join(textwrap.wrap(METRICS[name].label or METRICS[name].long_name, 30)))
    positive = values[np.isfinite(values) & (values > 0)]
    if name == "risk" or len(positive) == 0:
        ax.set_xlim(0, measured.ts[-1])
        ax.set_ylim(bottom=0)
        ax.set_xlabel(_clock(measured))
        return
    ax.set_ylim(0.5 * positive.min(), 2 * positive.max())
    log_against_time(ax, float(measured.ts[-1]), _clock(measured))


def _residuals(ax: Axes, measured: Measured, fit: Fit, values: np.ndarray) -> None:
    """Draw the measured risk minus the model's."""
    range_ = float(np.ptp(values[np.isfinite(values)])) or 1.0
    ax.axhline(0, color="black", lw=0.8)
    residuals = values - fit.predict(measured.ts, "risk")["risk"]
    ax.plot(measured.ts, 100 * residuals / range_, **POINTS)
    ax.set_xlim(0, measured.ts[-1])
    ax.set_xlabel(_clock(measured))
    ax.set_ylabel("residual, % of the range")


POINTS: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "mfc": "none", "mec": GREY, "mew": 0.8}


def _dashes(fit: Fit, name: str) -> str:
    return "-" if name in fit.metrics else "--"


def _handles(fit: Fit, curves: dict[str, np.ndarray]) -> list[Line2D]:
    """The entries of the legend, as far as they are drawn."""
    handles = [Line2D([], [], label="measured", **POINTS)]
    for dashes, label in (("-", "model, fitted"), ("--", "model, predicted")):
        if any(_dashes(fit, name) == dashes for name in curves):
            handles.append(Line2D([], [], color="black", lw=1.4, ls=dashes, label=label))
    return handles


def _clock(measured: Measured) -> str:
    return measured.axis if measured.axis == "epoch" else "time $t$"

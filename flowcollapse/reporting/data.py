"""The numbers of a page: curves over time with bands over the seeds, values at the end, fitted and predicted powers.

A page must open fast from disk, so the numbers are rounded to four digits, and large results are thinned; the page says
so wherever it happens.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from .._errors import UsageError
from ..measuring.table import AXES as MEASURED
from ..metrics.registry import METRICS
from ..plot.sweeps import predicted_power
from ..results.fits import PowerLaw, power_law
from ..results.labels import AXES
from ..results.tables import label

DIGITS = 4

MOST_CURVES = 400_000
"""The most numbers in curves: about 4 MB of text."""

MOST_POINTS = 100_000
"""The most single runs over all metrics."""

FEWEST_TIMES = 21

QUANTILES = (0.05, 0.5, 0.95)


def page_data(dataset: xr.Dataset) -> dict[str, Any]:
    """Everything that the charts of a page draw, as plain values."""
    over = over_of(dataset)
    axes = axes_of(dataset)
    metrics = [str(name) for name, values in dataset.data_vars.items() if over in values.dims and _fits(values, axes)]
    order = {name: i for i, name in enumerate(METRICS)}
    metrics = sorted((name for name in metrics if name != "t"), key=lambda name: order.get(name, len(order)))
    if not metrics:
        raise UsageError(f"dataset has no metric over {over}: save some, so that there is something to show.")
    ends = [*metrics, *(str(n) for n, v in dataset.data_vars.items() if _is_end(v, over, axes) and n != "verdict")]
    notes: list[str] = []
    data: dict[str, Any] = {
        "axes": [{"name": axis, "label": AXES.get(axis, axis), "values": texts_of(dataset, axis)} for axis in axes],
        "seeds": texts_of(dataset, "seed") if "seed" in dataset.dims else None,
        "over": over,
        "names": {name: long_name(dataset, name) for name in ends},
        "metrics": metrics,
        "ends": ends,
    }
    data |= _over_time(dataset, metrics, axes, over, notes)
    data |= _at_the_end(dataset, ends, axes, over, notes)
    data["notes"] = notes
    return data


def over_of(dataset: xr.Dataset) -> str:
    """The axis that curves are drawn over: time, or the epochs or layers of a measurement."""
    return next((axis for axis in MEASURED if axis in dataset.dims), "time")


def axes_of(dataset: xr.Dataset) -> list[str]:
    """The axes of the runs, without the seeds."""
    lanes = dataset["verdict"].dims if "verdict" in dataset else ()
    return [str(axis) for axis in lanes if axis != "seed"]


def long_name(dataset: xr.Dataset, name: str) -> str:
    """A variable in words."""
    return str(dataset[name].attrs.get("long_name", name.replace("_", " ")))


def texts_of(dataset: xr.Dataset, axis: str) -> list[str]:
    """The values of an axis as text."""
    coords = dataset.coords.to_dataset()
    if axis not in coords and f"{axis}_values" not in coords:
        return [str(i) for i in range(dataset.sizes[axis])]
    return [label(coords.isel({axis: i}), axis) for i in range(dataset.sizes[axis])]


def _fits(values: xr.DataArray, axes: list[str]) -> bool:
    return set(values.dims) <= {*axes, "seed", over_of(values.to_dataset(name="values"))}


def _is_end(values: xr.DataArray, over: str, axes: list[str]) -> bool:
    return values.ndim > 0 and set(values.dims) <= {*axes, "seed"} and values.dtype.kind in "iuf" and over == "time"


def on_axes(dataset: xr.Dataset, name: str, axes: list[str]) -> xr.DataArray:
    """A variable over all axes and seeds: it is repeated along those that it lacks, and there is one seed if none."""
    values = dataset[name]
    missing = {axis: dataset.sizes.get(axis, 1) for axis in (*axes, "seed") if axis not in values.dims}
    return values.expand_dims(missing).transpose(*axes, "seed", ...)


def grouped(values: xr.DataArray, axes: list[str]) -> np.ndarray:
    """The values of `on_axes` with one leading axis for all groups of seeds."""
    return values.values.astype(float).reshape(-1, *values.shape[len(axes) :])


def groups_of(dataset: xr.Dataset, axes: list[str]) -> Iterator[dict[str, int]]:
    """The positions on the axes of each group of seeds, in the order of `grouped`."""
    for place in np.ndindex(*(dataset.sizes[axis] for axis in axes)):
        yield dict(zip(axes, place, strict=True))


def _over_time(dataset: xr.Dataset, metrics: list[str], axes: list[str], over: str, notes: list[str]) -> dict[str, Any]:
    count, seeds = math.prod(dataset.sizes[axis] for axis in axes), dataset.sizes.get("seed", 1)
    times = np.arange(dataset.sizes[over])
    bands = seeds > 1
    fitting = MOST_CURVES // max(1, len(metrics) * count * (3 if bands else 1))
    if fitting < len(times):
        times = np.unique(np.linspace(0, len(times) - 1, max(FEWEST_TIMES, fitting)).round().astype(int))
        notes.append(f"Curves show {len(times)} of {dataset.sizes[over]} times.")
    if bands and len(metrics) * count * len(times) * 3 > 2 * MOST_CURVES:
        bands = False
        notes.append("There are too many curves for bands: they are medians without bands.")
    shown = metrics[: max(1, 2 * MOST_CURVES // (count * len(times)))]
    if len(shown) < len(metrics):
        notes.append(f"Curves of {', '.join(metrics[len(shown) :])} are left out: there are too many.")
    curves = {}
    for name in shown:
        values = grouped(on_axes(dataset, name, axes), axes)[:, :, times]
        parts = np.moveaxis(_quantiles(values, QUANTILES if bands else (0.5,)), 0, 1)
        curves[name] = [[numbers(row) for row in group] for group in parts]
    x: Any
    if "t" in dataset.data_vars and over in dataset["t"].dims:
        own = grouped(on_axes(dataset, "t", axes), axes)[:, :, times]
        x = [numbers(row) for row in _quantiles(own, (0.5,))[0]]
    else:
        values = dataset[over].values[times] if over in dataset.coords else times
        x = [numbers(values) if values.dtype.kind in "iuf" else [str(one) for one in values]]
    about = dataset[over].attrs if over in dataset.coords else {}
    clock = str(about.get("long_name", over)) + (" (median over the runs)" if len(x) > 1 and seeds > 1 else "")
    return {"x": x, "clock": clock, "curves": curves, "bands": bands}


def _at_the_end(dataset: xr.Dataset, ends: list[str], axes: list[str], over: str, notes: list[str]) -> dict[str, Any]:
    count, seeds = math.prod(dataset.sizes[axis] for axis in axes), dataset.sizes.get("seed", 1)
    shown = min(seeds, max(1, MOST_POINTS // (len(ends) * count)))
    if shown < seeds:
        notes.append(f"Points show the first {shown} of {seeds} seeds; medians, bands and fits are over all of them.")
    medians, points, laws = {}, {}, {}
    for name in ends:
        values = on_axes(dataset, name, axes)
        if over in values.dims:
            values = values.isel({over: -1}, drop=True)
        elif values.dtype.kind in "iu":
            values = values.where(values >= 0)
        values = values.compute()
        final = grouped(values, axes)
        medians[name] = numbers(_quantiles(final[:, :, None], (0.5,))[0, :, 0])
        points[name] = [numbers(row[:shown]) for row in final]
        if "eps" in axes and "seed" in dataset.dims:
            laws[name] = _laws(dataset, name, values, [axis for axis in axes if axis != "eps"])
    return {"medians": medians, "points": points, "laws": laws}


def _laws(dataset: xr.Dataset, name: str, values: xr.DataArray, rest: list[str]) -> list[list[dict[str, Any]]]:
    """The fitted and the predicted power of eps as lines, for each combination of the other axes."""
    medians = values.where(np.isfinite(values)).median("seed")
    found = []
    for where in groups_of(dataset, rest):
        law = power_law(medians.isel(where))
        lines = []
        if law is not None:
            lines.append(_line(law.eps, law, law.power, f"fitted power {law.power:.3f}"))
            predicted = predicted_power(dataset.coords.to_dataset().assign_attrs(dataset.attrs).isel(where), name)
            if predicted:
                lines.append(_line(dataset["eps"].values, law, predicted, f"predicted power {predicted}"))
        found.append(lines)
    return found


def _line(eps: np.ndarray, law: PowerLaw, power: int | float, text: str) -> dict[str, Any]:
    ends = np.array([eps.min(), eps.max()])
    return {"text": text, "x": numbers(ends), "y": numbers(law.level * (ends / law.middle) ** power)}


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles over the seeds, axis 1, of the runs with a finite last value; NaN where there is none."""
    found = np.full((len(levels), len(values), values.shape[-1]), np.nan)
    for i, runs in enumerate(values):
        done = runs[np.isfinite(runs[:, -1])]
        if len(done):
            with np.errstate(invalid="ignore"):
                found[:, i] = np.quantile(done, levels, axis=0)
    return found


def numbers(values: Any) -> list[float | None]:
    """Numbers with four digits, None for those that are not finite."""
    return [float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None for x in np.asarray(values, float).tolist()]

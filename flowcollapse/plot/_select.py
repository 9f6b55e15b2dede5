"""Selects from the Dataset of a sweep what a picture shows: some axes, one value of each other axis, and labels."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from .._checks import shown
from .._errors import UsageError
from ._read import known_name
from ._style import LABELS, tex

AXES = {
    "eps": (r"norm of $H_0$ and of $W_0$, ", r"\varepsilon"),
    "num_classes": ("classes ", "C"),
    "samples_per_class": ("samples per class ", "N"),
    "num_features": ("features ", "p"),
    "weight_decay": ("weight decay ", r"\lambda"),
    "learning_rate": ("step size ", r"\eta"),
    "t1": ("end ", "t_1"),
}
"""Words and symbol of the axes that have a symbol."""


PAPER = {
    "num_classes": 3,
    "samples_per_class": 3,
    "num_features": 15,
    "weight_decay": 0.0,
    "use_bias": True,
    "loss": "squared",
}
"""The model of the paper's figures."""


def attribute(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """An attribute of a sweep that holds options as text; empty if the attribute has another origin."""
    with contextlib.suppress(ValueError):
        return dict(json.loads(dataset.attrs.get(name, "{}")))
    return {}


def model_options(dataset: xr.Dataset) -> dict[str, Any]:
    """The model that all runs of a sweep share; the paper's values replace any that the Dataset lacks."""
    told = attribute(dataset, "model") | single_values(dataset)
    known = {name: told.get(name, value) for name, value in PAPER.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


def single_values(dataset: xr.Dataset) -> dict[str, Any]:
    """The value of every axis with a single value; values of several parts are stored as rows padded with NaN."""
    found: dict[str, Any] = {str(axis): value.item() for axis, value in dataset.coords.items() if value.size == 1}
    for name, value in dataset.coords.items():
        axis, _, kind = str(name).rpartition("_")
        if kind == "values" and value.size == value.shape[-1]:
            row = value.values[~np.isnan(value.values)].tolist()
            found[axis] = tuple(map(int, row)) if axis == "samples_per_class" else tuple(row)
    return found


def metrics_of(dataset: xr.Dataset) -> list[str]:
    """The metrics of a sweep: its variables over time."""
    return [str(name) for name, values in dataset.data_vars.items() if "time" in values.dims and name != "t"]


def metric_of(dataset: xr.Dataset, name: Any, *, ends_too: bool = False) -> str:
    """The name of a metric over time, ignoring case; with `ends_too`, also of a variable with one number per run.

    Raises:
        UsageError: if the sweep has no such metric.
    """
    known = metrics_of(dataset)
    numbers = [str(one) for one, values in dataset.data_vars.items() if "time" not in values.dims and one != "verdict"]
    return str(name) if ends_too and str(name) in numbers else known_name(name, known)


def curves(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A metric over time.

    Raises:
        UsageError: if the sweep has no such metric.
    """
    return dataset[metric_of(dataset, name)]


def ends(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A metric at the last time, or a variable with one number per run, such as its steps; NaN for unfinished runs.

    From a Dataset on disk, only the last times are read.

    Raises:
        UsageError: if the sweep has no such metric or number.
    """
    values = dataset[metric_of(dataset, name, ends_too=True)]
    if "time" in values.dims:
        return values.isel(time=-1, drop=True).compute()
    values = values.compute()
    return values.where(values >= 0) if values.dtype.kind in "iu" else values


def several(values: xr.DataArray) -> list[str]:
    """The axes with more than one value, apart from seeds and times."""
    return [str(axis) for axis, size in values.sizes.items() if size > 1 and axis not in ("seed", "time")]


def having(values: xr.DataArray, *axes: str) -> xr.DataArray:
    """The values with these axes as dimensions, even if selecting has turned one of them into a scalar coordinate.

    Raises:
        UsageError: if one of the axes does not exist.
    """
    for axis in axes:
        if axis not in values.dims and axis in values.coords and values[axis].ndim == 0:
            values = values.expand_dims(axis)
        if axis not in values.dims:
            there = ", ".join(map(str, values.dims)) or "none"
            raise UsageError(f"dataset has no axis {axis!r}, its axes are {there}: choose one, or pass a whole sweep.")
    return values


def only(values: xr.DataArray, *axes: str) -> xr.DataArray:
    """The values over these axes, in this order. Each other axis has one value, which stays as a coordinate.

    Raises:
        UsageError: if one of the axes does not exist, or another axis has more than one value.
    """
    values = having(values, *axes)
    for axis in several(values):
        if axis not in axes:
            value = values[axis].values[0]
            raise UsageError(
                f"dataset has {values.sizes[axis]} values of {axis!r}, but a picture shows one: select it, as in "
                f"dataset.sel({axis}={plain(value)!r})."
            )
    return values.squeeze([axis for axis in values.dims if axis not in axes]).transpose(*axes)


def drawable(axis: Any) -> None:
    """Raise `UsageError` unless `axis` is None or the name of an axis other than `seed` and `time`.

    Every curve, point and cell already covers those two.
    """
    if axis is not None and not isinstance(axis, str):
        raise UsageError(f"axis must be a name, got {shown(axis)}: choose one, such as 'eps'.")
    if axis in ("seed", "time"):
        raise UsageError(f"axis {axis!r} cannot be chosen here: choose another, such as 'eps'.")


def finite_medians(values: xr.DataArray) -> xr.DataArray:
    """The median over the seeds with a finite value; NaN if there are none."""
    return values.where(np.isfinite(values)).median("seed")


def plain(value: Any) -> Any:
    """A coordinate's value as a Python value."""
    return value.item() if isinstance(value, np.generic) else value


def value_text(value: Any) -> str:
    """A coordinate's value as text: integers and floats (four digits) as formulas, lists and words unchanged."""
    value = plain(value)
    if not isinstance(value, int | float):
        return str(value).strip("()[]")
    return f"${tex(float(f'{value:.4g}') if isinstance(value, float) else value)}$"


def symbol(axis: str) -> str:
    """An axis as a formula."""
    words = axis.replace("_", r"\ ")
    return f"${AXES[axis][1]}$" if axis in AXES else rf"$\mathrm{{{words}}}$"


def axis_label(axis: str) -> str:
    """An axis in words, with its symbol."""
    return f"{AXES[axis][0]}{symbol(axis)}" if axis in AXES else axis.replace("_", " ")


def equals(axis: str, value: Any) -> str:
    """`axis = value`."""
    return f"{symbol(axis)} = {value_text(value)}".replace("$ = $", " = ")


def metric_label(dataset: xr.Dataset, name: str) -> str:
    """A metric in words."""
    return LABELS[name][0] if name in LABELS else dataset[name].attrs.get("long_name", name.replace("_", " "))


def end_label(dataset: xr.Dataset, name: str) -> str:
    """A metric at the last time, or a variable with one number per run, in words."""
    return f"{metric_label(dataset, name)} at the end" if "time" in dataset[name].dims else metric_label(dataset, name)


def header(values: xr.DataArray, *, missing: int = 0, more: Sequence[str] = ()) -> str:
    """The text above a picture: the fixed axes, and the number of runs without a value, if any."""
    fixed = [
        equals(str(axis), value.item())
        for axis, value in values.coords.items()
        if value.ndim == 0 and axis not in ("seed", "time", "t")
    ]
    facts = [*fixed, *more]
    lines = [", ".join(facts[i : i + 4]) for i in range(0, len(facts), 4)]
    runs = values.size // values.sizes.get("time", 1)
    return "\n".join([*lines, f"{missing} of {runs} runs without a value"] if missing else lines)


def numbers(values: xr.DataArray, axis: str) -> np.ndarray:
    """The values of an axis, as numbers.

    Raises:
        UsageError: if the axis has no values, or its values are not numbers.
    """
    found = values[axis].values
    if axis not in values.coords or found.dtype.kind not in "iuf":
        raise UsageError(f"axis {axis!r} has no numbers as coordinates: choose another, or assign_coords({axis}=...).")
    return found.astype(float)

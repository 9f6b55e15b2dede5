"""Reads measured curves, and what is known about the run, from a mapping, a table, a Dataset or a Trajectory."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from .._checks import as_numbers, check_choice, check_flag, check_integer, real_numbers, shown
from .._errors import UsageError
from ..metrics.registry import METRICS, asked_names
from ..model.ufm import check_counts
from ..results.description import options
from ..results.trajectory import Trajectory
from .closed_forms import FITTED, Setting

TIMES = ("epoch", "t", "time")
"""The names that a time axis may have."""

ALIASES = {"loss": "risk"}
"""Usual names of metrics in logs of training."""

REDUCTIONS = ("sum", "mean", "mse", "free")

LOG_CLOCK = "ln(1 + t)"
"""The name of the times of a flow whose clock is logarithmic."""

UNEVEN = 0.1
"""The largest difference of class sizes, relative to their mean, that still counts as equal."""

FEWEST = 12
"""The fewest points that a curve must have: the fit has at least four unknowns, and its residuals are judged."""


class Measured(NamedTuple):
    """Curves over one time axis, and the facts that their source tells about the run.

    `chosen_by_hand` says that somebody picked the curves, so that an unknown name is a slip and no other quantity.
    """

    axis: str
    ts: Any
    curves: dict[str, Any]
    facts: dict[str, Any]
    chosen_by_hand: bool = False


def read(curves: Any) -> Measured:
    """The curves of a source, whose times are checked.

    Raises:
        UsageError: for anything but a mapping, a Dataset or a Trajectory, and for times that are missing or not
            increasing.
    """
    if isinstance(curves, Trajectory):
        found = _of_trajectory(curves)
    elif isinstance(curves, xr.Dataset):
        found = _of_dataset(curves)
    elif isinstance(curves, pd.DataFrame):
        table = curves.reset_index() if curves.index.name in TIMES else curves
        found = _of_mapping({str(name): table[name] for name in table})._replace(chosen_by_hand=False)
    elif isinstance(curves, Mapping):
        found = _of_mapping(curves)
    else:
        raise UsageError(
            f"curves must be a mapping, a DataFrame, an xarray.Dataset or an fc.Trajectory, got {shown(curves)}: pass "
            'one, such as {"epoch": epochs, "risk": risks}.'
        )
    ts = _row(found.axis, found.ts)
    if not np.all(np.isfinite(ts) & (ts >= 0)):
        raise UsageError(f"{found.axis} must be finite and not below 0, got {shown(ts)}: leave out the others.")
    if not np.all(np.diff(ts) > 0):
        place = int(np.flatnonzero(np.diff(ts) <= 0)[0])
        raise UsageError(
            f"{found.axis} must increase, but {ts[place]:g} is followed by {ts[place + 1]:g}: sort the curves by time "
            "and leave out repeated points."
        )
    if len(ts) < FEWEST:
        raise UsageError(f"{found.axis} has {len(ts)} points, too few for a fit: give at least {FEWEST}.")
    return found._replace(ts=ts)


def _row(name: str, values: Any) -> Float[np.ndarray, " n"]:
    row = as_numbers(name, values)
    if row.ndim != 1:
        raise UsageError(f"{name} must be one row of numbers, got the shape {row.shape}: select one run.")
    return row.astype(np.float64)


def _of_trajectory(path: Trajectory) -> Measured:
    if path.ts.ndim != 1:
        raise UsageError(f"curves has {path.ts.shape[:-1]} runs: select one, with jax.tree.map(lambda x: x[0], path).")
    _check_clock(path.method.time_name)
    return Measured("time", path.ts, dict(path.metrics), _of_model(options(path.model)))


def _check_clock(name: str) -> None:
    """Raise `UsageError` for the times of a flow in the logarithmic clock."""
    if name == LOG_CLOCK:
        raise UsageError(f'curves has the times {name}: run fc.Flow(clock="time"), or pass expm1 of these times.')


def _of_dataset(dataset: xr.Dataset) -> Measured:
    axes = [name for name in TIMES if name in dataset.dims]
    if len(axes) != 1 or axes[0] not in dataset.variables:
        raise UsageError(
            f"curves must have one axis of times, epoch, t or time, with its values, and has {shown([*dataset.dims])}: "
            "name it so, with rename and assign_coords."
        )
    axis = axes[0]
    _check_clock(dataset[axis].attrs.get("long_name", axis))
    curves = {str(name): values for name, values in dataset.data_vars.items() if axis in values.dims}
    several = sorted({str(dim) for values in curves.values() for dim in values.dims if dim != axis})
    of_times = {name: values.values for name, values in curves.items() if values.dims == (axis,)}
    if curves and not of_times:
        raise UsageError(f"curves has the axes {', '.join(several)} too: select one run, as in dataset.isel(seed=0).")
    facts = dict(dataset.attrs)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        facts = _of_model(dict(json.loads(facts["model"]))) | facts
    return Measured(axis, dataset[axis].values, _named(of_times), facts)


def _of_model(told: dict[str, Any]) -> dict[str, Any]:
    """The facts about runs that follow from the description of their model."""
    other = told.get("loss", "squared")
    return told | {"penalised": True} | ({} if other == "squared" else {"other_loss": str(other)})


def _of_mapping(curves: Mapping) -> Measured:
    axes = [name for name in TIMES if name in curves]
    if len(axes) != 1:
        raise UsageError(
            f"curves must have one time axis, 'epoch', 't' or 'time', and has the names {shown([*curves])}: "
            "add it, or leave out the others."
        )
    others = {name: values for name, values in curves.items() if name != axes[0]}
    for name in others:
        if not isinstance(name, str):
            raise UsageError(f"curves has the name {shown(name)}, which is no text: name each curve by its metric.")
    return Measured(axes[0], curves[axes[0]], _named(others), {}, chosen_by_hand=True)


def _named(curves: dict[str, Any]) -> dict[str, Any]:
    """The curves, under the names of metrics if they have other usual names."""
    return {ALIASES[name] if name in ALIASES and ALIASES[name] not in curves else name: curves[name] for name in curves}


def chosen(measured: Measured, metrics: Any, setting: Setting) -> tuple[str, ...]:
    """The metrics to fit: by default the risk, or SNC1 if there is no risk.

    Raises:
        UsageError: for an unknown name, a metric that is not among the curves or has no closed form, or none at all.
    """
    known = [name for name in FITTED if name in measured.curves and name in setting.names]
    if metrics is not None:
        names = asked_names(metrics)
        for name in names:
            if name not in measured.curves:
                raise UsageError(f"metric {name!r} is not among the curves: choose from {_listed(measured)}.")
            if name not in known:
                possible = ", ".join(name for name in FITTED if name in setting.names)
                raise UsageError(f"metric {name!r} has no closed form from the class means: choose from {possible}.")
    else:
        for name in measured.curves if measured.chosen_by_hand else ():
            METRICS.name(name)
        names = tuple(known[:1])
    if not {"risk", "snc1"} & set(names):
        raise UsageError(
            f"curves need the risk or snc1, which tell how the modes grow, and have {_listed(measured)}: add one."
        )
    return tuple(sorted(names, key=FITTED.index))


def _listed(measured: Measured) -> str:
    return ", ".join(measured.curves) or "none"


def values_of(measured: Measured, name: str) -> Float[np.ndarray, " time"]:
    """A curve to fit.

    Raises:
        UsageError: for another length than the times, values that are not finite, or below 0.
    """
    row = _row(name, measured.curves[name])
    if len(row) != len(measured.ts):
        raise UsageError(
            f"{name} has {len(row)} values and {measured.axis} has {len(measured.ts)}: give one value a time."
        )
    if not np.all(np.isfinite(row)):
        first = measured.ts[~np.isfinite(row)][0]
        raise UsageError(f"{name} is NaN or infinite at {measured.axis} = {first:g}: leave out such times.")
    if np.any(row < 0):
        first = measured.ts[row < 0][0]
        raise UsageError(f"{name} is below 0 at {measured.axis} = {first:g}: give a squared error, which never is.")
    return row


def compared(measured: Measured, name: str) -> Float[np.ndarray, " time"]:
    """A curve that is not fitted; NaN if it is no row of numbers."""
    row = real_numbers(measured.curves[name])
    if row is None or row.shape != measured.ts.shape:
        return np.full_like(measured.ts, np.nan)
    return row.astype(np.float64)


def setting_of(facts: Mapping[str, Any], given: Mapping[str, Any]) -> Setting:
    """The known parts of the model, from the arguments, or else from what the curves tell.

    Raises:
        UsageError: for numbers that are missing or wrong, and for classes of different sizes.
    """
    known = {name: value for name, value in facts.items() if name in _DEFAULTS}
    found = _DEFAULTS | known | {name: value for name, value in given.items() if value is not None}
    for name in ("num_classes", "samples_per_class"):
        if found[name] is None:
            raise UsageError(f"{name} is not known from the curves: give it, as in {name}=10.")
    C = check_integer("num_classes", _plain(found["num_classes"]), least=2)
    counts = check_counts(_plain(found["samples_per_class"]), C)
    check_choice("reduction", found["reduction"], REDUCTIONS)
    use_bias = check_flag("use_bias", _plain(found["use_bias"], bool))
    penalised = check_flag("penalised", _plain(found["penalised"], bool))
    N, total = float(np.mean(counts)), sum(counts)
    if max(counts) - min(counts) > UNEVEN * N:
        raise UsageError(
            f"samples_per_class is {shown(counts)}, and the closed forms are for equal counts, up to {UNEVEN:.0%}: "
            "balance the classes."
        )
    modes = C - 1 if use_bias else C
    p = modes if found["num_features"] is None else check_integer("num_features", _plain(found["num_features"]))
    factor = {"sum": 1.0, "mean": 1 / total, "mse": 2 / (total * C), "free": 1.0}[found["reduction"]]
    few = found["num_features"] is not None and p < 2 * modes
    return Setting(C, N, min(modes, p), max(modes - p, 0), few, factor, use_bias, penalised)


_DEFAULTS: dict[str, Any] = {
    "num_classes": None,
    "samples_per_class": None,
    "num_features": None,
    "use_bias": True,
    "reduction": "sum",
    "penalised": False,
}


def _plain(value: Any, kind: type | None = None) -> Any:
    """A number as attributes of files hold it, NumPy or text, as a Python value; anything else as it is."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if kind is bool and type(value) is int and value in (0, 1):
        return bool(value)
    return tuple(value) if isinstance(value, list) else value

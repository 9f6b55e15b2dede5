"""Powers of eps fitted to runs: how each error at the plateau shrinks with the start."""

import math
from typing import NamedTuple

import numpy as np
import xarray as xr

FIT_UP_TO = 1e-2
"""The largest eps in the fits: above it, higher orders of eps still bend the curves."""


def fitted_eps(eps: np.ndarray) -> np.ndarray:
    """The eps used in the fit: all up to `FIT_UP_TO`, or the two smallest if fewer than two are that small."""
    ordered = np.sort(eps)
    small = ordered[ordered <= FIT_UP_TO * (1 + 1e-9)]
    return (small if len(small) >= 2 else ordered[:2])[::-1]


def fitted_power(errors: xr.DataArray, eps: np.ndarray) -> float:
    """The slope of log error against log eps, by least squares."""
    values = errors.sel(eps=eps).values
    return float(np.polyfit(np.log(eps), np.log(values), 1)[0]) if np.all(values > 0) else math.nan


class PowerLaw(NamedTuple):
    """A power of eps fitted to medians: `level (eps / middle)^power` at the eps that were used."""

    eps: np.ndarray
    power: float
    middle: float
    level: float


def power_law(medians: xr.DataArray) -> PowerLaw | None:
    """The power of eps of medians over eps, from those that are positive; None if fewer than two are."""
    positive = medians[medians.values > 0]
    used = fitted_eps(positive["eps"].values)
    if len(used) < 2:
        return None
    middle, level = (float(np.exp(np.mean(np.log(v)))) for v in (used, positive.sel(eps=used).values))
    return PowerLaw(used, fitted_power(positive, used), middle, level)

"""Powers of eps fitted to runs: how each error at the plateau shrinks with the start."""

import math

import numpy as np
import xarray as xr

FIT_UP_TO = 1e-2
"""The powers are fitted from this eps down: above it, the next orders of eps still bend the errors."""


def fitted_eps(eps: np.ndarray) -> np.ndarray:
    """The eps that enter the fit: those up to `FIT_UP_TO`, or the two smallest if these are fewer than two."""
    ordered = np.sort(eps)
    small = ordered[ordered <= FIT_UP_TO * (1 + 1e-9)]
    return (small if len(small) >= 2 else ordered[:2])[::-1]


def fitted_power(errors: xr.DataArray, eps: np.ndarray) -> float:
    """The slope of log error against log eps, by least squares."""
    values = errors.sel(eps=eps).values
    return float(np.polyfit(np.log(eps), np.log(values), 1)[0]) if np.all(values > 0) else math.nan

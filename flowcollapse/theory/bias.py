"""The bias in closed form, and integrals of times that the closed forms share."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import is_traced, real_numbers, shown
from .._errors import UsageError
from .._linalg.phi import phi
from ..model.ufm import UFM

Times = Real[Array | np.ndarray, " time"] | Sequence[float | int]


def checked_times(ts: Any, dtype) -> Float[Array, " time"]:
    """The times in the state's precision; raises `UsageError` unless they are a list of finite numbers from 0 on."""
    if is_traced(ts):
        if ts.ndim != 1:
            raise UsageError(f"ts must be a list of times, got an array of shape {ts.shape}: give one axis.")
        return ts.astype(dtype)
    times = real_numbers(ts)
    if times is None or times.ndim != 1 or times.size == 0:
        raise UsageError(f"ts must be a list of times, got {shown(ts)}: give numbers, as [0.0, 1.0].")
    if not np.all(np.isfinite(times) & (times >= 0)):
        raise UsageError(f"ts must be finite and not below 0, where the start is, got {shown(ts)}: leave those out.")
    return jnp.asarray(times, dtype)


def bias_rate(model: UFM, dtype) -> Float[Array, ""]:
    """`n_tot + lam_b`, the rate at which the bias relaxes."""
    return model.num_samples + model.decays[2].astype(dtype)


def bias(model: UFM, b: Float[Array, "..."], ts: Float[Array, " time"]) -> Float[Array, "time C"]:
    """`b' = n - (n_tot + lam_b) b`, without a difference of what is nearly equal at small times."""
    rate = bias_rate(model, ts.dtype)
    n = jnp.asarray(model.counts, ts.dtype) * model.use_bias
    return b * jnp.exp(-rate * ts)[:, None] - n / rate * jnp.expm1(-rate * ts)[:, None]


def integral(rate, t):
    """`int_0^t e^{-rate x} dx` for a rate of at least 0."""
    return t * phi(rate * t, 1)[1]


def least(dtype) -> float:
    """A factor that is as good as zero, and whose square is not."""
    return float(jnp.finfo(dtype).tiny) ** 0.45


def _elapsed(rate, t):
    """`int_0^t e^{-rate tau} dtau`."""
    positive = rate > 0
    return jnp.where(positive, -jnp.expm1(-rate * t) / jnp.where(positive, rate, 1.0), t)

"""What the closed forms share: their arguments checked, the bias, and integrals of exponentials."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import is_traced, real_numbers, shown
from .._errors import UsageError
from ..exponential import phi
from ..model import UFM

Times = Real[Array | np.ndarray, " time"] | Sequence[float | int]


def checked_times(ts, dtype) -> Float[Array, " time"]:
    """Times in the precision of the start."""
    times = np.zeros(np.shape(ts)) if is_traced(ts) else real_numbers(ts)
    if times is None or times.ndim != 1 or not np.all(np.isfinite(times) & (times >= 0)):
        raise UsageError(f"ts must be a list of times, finite and from 0 on, got {shown(ts)}.")
    return jnp.asarray(ts, dtype)


def known_decays(model: UFM) -> tuple[float, float, float] | None:
    """`(lam_W, lam_H, lam_b)`, or None where one of them is traced."""
    decay = model.weight_decay
    if any(is_traced(x) for x in jax.tree.leaves(decay)):
        return None
    w, h, b = decay if isinstance(decay, tuple) else np.broadcast_to(np.asarray(decay), 3)
    return float(w), float(h), float(b)


def check_equal_decay(model: UFM, why: str) -> None:
    """Raise `UsageError` if the decays of W and H are known and differ."""
    known = known_decays(model)
    if known is not None and known[0] != known[1]:
        raise UsageError(f"weight_decay is {known[0]:g} for W and {known[1]:g} for H, and {why}: make them equal.")


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

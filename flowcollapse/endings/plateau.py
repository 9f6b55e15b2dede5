"""When a run has done its work."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.problem import Point, Problem
from .modes import Growth, growth_rate, mean_mode, target_modes

DECAY = 20.0
"""What decays has fallen to e^-20 = 2e-9 at the plateau time."""


def plateau_time(problem: Problem, point: Point, decay: float | Float[Array, ""] = DECAY) -> Float[Array, ""]:
    """The time at which every mode that the start has is at the plateau.

    It is the escape time (see `escape_time`), and with weight decay 20 over the smallest decay more. `decay` replaces
    the 20. Derived here.
    """
    escape = escape_time(problem, point, decay)
    return (escape + decay / slowest_decay(problem, point.X.dtype)).astype(escape.dtype)


def slowest_decay(problem: Problem, dtype) -> Float[Array, ""]:
    """The smallest weight decay that is not zero; infinite without any."""
    decays = jax.lax.stop_gradient(problem.decays(dtype))
    return jnp.min(jnp.stack([jnp.where(lam > 0, lam, jnp.inf) for lam in decays]))


def escape_time(
    problem: Problem, point: Point, decay: float | Float[Array, ""] = DECAY, mean_decay: float | None = None
) -> Float[Array, ""]:
    """The time at which every mode that the start has has escaped from the origin, whatever weight decay does later.

    `T = (ln(sqrt s / sigma_min) + 20) / s` with the slowest growth rate s (`sqrt N`, less the decay) and the smallest
    growing singular value of the start that is not zero; likewise for the mean mode, which grows if the bias decays.
    `decay` replaces the 20, and `mean_decay` that of the mean mode. Derived here.
    """
    dtype = point.X.dtype
    _, s, _ = target_modes(problem.model)
    growth, mean = Growth.of(problem, point), mean_mode(problem, dtype)
    rate = jnp.abs(growth_rate(problem, s[-1]))
    rate = jnp.maximum(rate, 1e-3 * s[-1])
    smallest = jnp.min(jnp.where(growth.values > 0, growth.values, jnp.inf))
    time = (_logarithm(math.sqrt(s[0]), smallest) + decay) / rate
    of_mean = decay if mean_decay is None else mean_decay
    mean_time = (_logarithm(jnp.sqrt(mean.strength), growth.mean) + of_mean) / jnp.where(mean.grows, mean.rate, 1.0)
    return jnp.where(mean.grows & (growth.mean > 0), jnp.maximum(time, mean_time), time).astype(dtype)


def _logarithm(above, below) -> Float[Array, ""]:
    """`ln(above / below)`, zero where that is negative or `below` is zero or infinite."""
    known = (below > 0) & jnp.isfinite(below)
    return jnp.where(known, jnp.maximum(jnp.log(above / jnp.where(known, below, 1.0)), 0.0), 0.0)


def default_times(count: int, escape: Float[Array, ""], end: Float[Array, ""]) -> Float[Array, " time"]:
    """Times from 0 to `end` that show the whole run: equal up to the escape, logarithmic after it.

    Where the approach takes e times as long as the escape or more, each has half of the times; where it takes less,
    the spacing is continuous. Without an approach all times are equal. A single time is the end.
    """
    escape = jnp.minimum(escape, end)
    ratio = jnp.log(end / jnp.where(escape > 0, escape, end))
    x = jnp.linspace(1, 0, count, dtype=end.dtype)[::-1]
    knee = jnp.maximum(1 / (1 + ratio), 0.5)
    after = jnp.where(ratio > 0, (x - knee) / jnp.where(ratio > 0, 1 - knee, 1.0), 0.0)
    times = jnp.where(x <= knee, escape * (x / knee), escape * jnp.exp(ratio * after))
    return jnp.where(x == 1, end, times)

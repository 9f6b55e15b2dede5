"""The ending of the squared error: when every mode of the targets has escaped, and what decays has decayed."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..model.problem import Point, Problem
from .base import AbstractEnding
from .modes import Growth, Modes, growth_rate, mean_mode, target_modes
from .verdict import Ending, Verdict

DECAY = 20.0
"""What decays has fallen to e^-20 = 2e-9 at the plateau time."""

ENOUGH_DECAY = 10.0
"""A run that ended with what decays at e^-10 = 5e-5 or less has reached the plateau."""


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


class Plateau(AbstractEnding):
    """Runs of the squared error end at the plateau, whose time follows from the start."""

    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        return escape_time(self.problem, start, mean_decay=mean_decay)

    def end_time(self, start: Point) -> Float[Array, ""]:
        return plateau_time(self.problem, start)

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a flow has less than `tolerance` to go, relative to its norms, and is at no saddle.

        What is left to go is the velocity over the slowest rate, which is the smallest weight decay, or without decay
        the growth rate of the slowest mode. Every mode must have escaped, but for those that the start lacks (derived
        here).
        """
        problem = self.problem
        start, point = jax.lax.stop_gradient((start, point))
        dtype = point.X.dtype
        slowest = slowest_decay(problem, dtype)
        growing = jnp.maximum(jnp.abs(growth_rate(problem, target_modes(problem.model)[1][-1])), 1e-3)
        rate = jnp.where(jnp.isfinite(slowest), slowest, growing.astype(dtype))
        velocity = problem.field(point)
        W, X, b = (jnp.linalg.norm(part) for part in point)
        left = jnp.stack([jnp.linalg.norm(part) for part in velocity]) / rate
        slow = jnp.all(left <= tolerance * jnp.stack([W, X, X + b]))
        return jax.lax.cond(slow, lambda: Modes.of(problem, start, point).done, lambda: jnp.asarray(False))

    def fastest_rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The fastest decay near a critical point up to the time t, but for the mean residual's.

        It is `s (r + 1/r)` with the largest singular value s of the targets, `sqrt N` for balanced classes, plus what
        weight decay adds. The ratio r is 1 where W and the features are balanced. Decays that differ take it to the
        root of their quotient, and with the larger decay lam no faster than `sqrt(1 + 4 lam t)` (derived here from the
        Hessian's spectrum, and from `(r - 1/r)' <= 2 lam / r` for the imbalance).
        """
        lam_W, lam_H, _ = jax.lax.stop_gradient(self.problem.decays(t.dtype))
        lam, least = jnp.maximum(lam_W, lam_H), jnp.minimum(lam_W, lam_H)
        end = lam / jnp.where(least > 0, least, jnp.finfo(t.dtype).tiny)
        ratio = jnp.sqrt(jnp.clip(end, 1.0, 1 + 4 * lam * jax.lax.stop_gradient(t)))
        return float(target_modes(self.problem.model)[1][0]) * (ratio + 1 / ratio) + lam

    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        """The verdict of a run that has settled.

        It has settled if its modes have and the start's plateau time is over, or the flow is at rest. Modes that have
        not escaped make a saddle if the start lacked as many (derived here).
        """
        modes = Modes.of(self.problem, start, run.end)
        long_enough = run.at_rest | (run.t_end >= plateau_time(self.problem, start, ENOUGH_DECAY))
        settled = modes.done & ~run.steps_ran_out & long_enough
        ended = jnp.where(modes.waiting == 0, jnp.int8(Verdict.plateau), jnp.int8(Verdict.saddle))
        return jnp.where(settled, ended, jnp.int8(-1))

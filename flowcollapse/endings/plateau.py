"""The ending of the squared error: when every mode of the targets has escaped, and decaying parts have decayed."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg.algebra import root
from ..model.problem import Point, Problem
from .base import AbstractEnding
from .modes import Growth, Modes, fixed, growth_rate, mean_mode, pull_at_origin, target_modes
from .verdict import Ending, Verdict

DECAY = 20.0
"""At the plateau time, decaying parts have fallen to e^-20 = 2e-9."""

ENOUGH_DECAY = 10.0
"""A run that ended with the decaying parts at e^-10 = 5e-5 or less has reached the plateau."""


def plateau_time(problem: Problem, point: Point, decay: float | Float[Array, ""] = DECAY) -> Float[Array, ""]:
    """The time at which every mode in the start has reached the plateau.

    It is the escape time (see `escape_time`), plus 20 over the smallest decay if there is weight decay. `decay`
    replaces the 20. Derived here.
    """
    escape = escape_time(problem, point, decay)
    return (escape + decay / slowest_decay(problem, point.X.dtype)).astype(escape.dtype)


def slowest_decay(problem: Problem, dtype) -> Float[Array, ""]:
    """The smallest non-zero weight decay; infinite if there is none."""
    decays = problem.decays(dtype)
    return jnp.min(jnp.stack([jnp.where(lam > 0, lam, jnp.inf) for lam in decays]))


def escape_time(
    problem: Problem, point: Point, decay: float | Float[Array, ""] = DECAY, mean_decay: float | None = None
) -> Float[Array, ""]:
    """The time at which every mode in the start has escaped from the origin, without the later effect of weight decay.

    `T = (ln(sqrt s / sigma_min) + 20) / s` with the slowest growth rate s (`sqrt N` minus the decay; for any other loss
    than the squared error `sqrt N` times its pull at the origin) and the smallest non-zero growing singular value of
    the start. The same formula holds for the mean mode, which grows if the bias
    decays. `decay` replaces the 20, and `mean_decay` replaces the 20 of the mean mode. Derived here.
    """
    dtype = point.X.dtype
    _, s, _ = target_modes(problem.model)
    growth, mean = Growth.of(problem, point), mean_mode(problem, dtype)
    strength = pull_at_origin(problem, dtype) * s[-1]
    rate = jnp.abs(growth_rate(problem, strength))
    rate = jnp.maximum(rate, 1e-3 * strength)
    smallest = jnp.min(jnp.where(growth.values > 0, growth.values, jnp.inf))
    time = (_logarithm(math.sqrt(s[0]), smallest) + decay) / rate
    of_mean = decay if mean_decay is None else mean_decay
    mean_time = (_logarithm(root(mean.strength), growth.mean) + of_mean) / jnp.where(mean.grows, mean.rate, 1.0)
    return jnp.where(mean.grows & (growth.mean > 0), jnp.maximum(time, mean_time), time).astype(dtype)


def _logarithm(above, below) -> Float[Array, ""]:
    """`ln(above / below)`; zero if the logarithm is negative, or one of the two is zero or infinite."""
    known = (below > 0) & jnp.isfinite(below) & (above > 0)
    above, below = jnp.where(known, above, 1.0), jnp.where(known, below, 1.0)
    return jnp.maximum(jnp.log(above / below), 0.0)


def default_times(count: int, escape: Float[Array, ""], end: Float[Array, ""]) -> Float[Array, " time"]:
    """Times from 0 to `end` that show the whole run: equally spaced up to the escape, logarithmic after it.

    If the end is at least e times as late as the escape, each phase gets half of the times; otherwise the spacing is
    continuous at the escape. Without an approach, all times are equally spaced. A single time is the end.
    """
    escape = jnp.minimum(escape, end)
    # A run that is at rest at its start ends at 0, and so do all its times.
    ratio = jnp.log(jnp.where(escape > 0, end, 1.0) / jnp.where(escape > 0, escape, 1.0))
    x = jnp.linspace(1, 0, count, dtype=end.dtype)[::-1]
    knee = jnp.maximum(1 / (1 + ratio), 0.5)
    after = jnp.where(ratio > 0, (x - knee) / jnp.where(ratio > 0, 1 - knee, 1.0), 0.0)
    times = jnp.where(x <= knee, escape * (x / knee), escape * jnp.exp(ratio * after))
    return jnp.where(x == 1, end, times)


class Plateau(AbstractEnding):
    """Runs of the squared error end at the plateau. Its time follows from the start."""

    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        return escape_time(self.problem, fixed(start), mean_decay=mean_decay)

    def end_time(self, start: Point) -> Float[Array, ""]:
        return plateau_time(self.problem, fixed(start))

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a flow has less than `tolerance` left to go, relative to its norms, and is not at a saddle.

        The distance left is the velocity over the slowest rate. That rate is the smallest weight decay, or without
        decay the growth rate of the slowest mode. Every mode must have escaped, except those that the start lacks
        (derived here).
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
        """The fastest decay near a critical point up to time t, except that of the mean residual.

        It is `s (r + 1/r)` with the largest singular value s of the targets (`sqrt N` for balanced classes), plus the
        larger weight decay. The ratio r is 1 if W and the features are balanced. Unequal decays drive r to the root of
        their quotient, but no faster than `sqrt(1 + 4 lam t)` with the larger decay lam (derived here from the
        Hessian's spectrum, and from `(r - 1/r)' <= 2 lam / r` for the imbalance).
        """
        lam_W, lam_H, _ = jax.lax.stop_gradient(self.problem.decays(t.dtype))
        lam, least = jnp.maximum(lam_W, lam_H), jnp.minimum(lam_W, lam_H)
        end = lam / jnp.where(least > 0, least, jnp.finfo(t.dtype).tiny)
        ratio = jnp.sqrt(jnp.clip(end, 1.0, 1 + 4 * lam * jax.lax.stop_gradient(t)))
        return float(target_modes(self.problem.model)[1][0]) * (ratio + 1 / ratio) + lam

    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        """The verdict of a run that has settled.

        A run has settled if its modes have settled, and either the plateau time of the start has passed or the flow is
        at rest. If some modes have not escaped, it is at a saddle: the start lacked as many modes (derived here).
        """
        modes = Modes.of(self.problem, start, run.end)
        long_enough = run.at_rest | (run.t_end >= plateau_time(self.problem, start, ENOUGH_DECAY))
        settled = modes.done & ~run.steps_ran_out & long_enough
        ended = jnp.where(modes.waiting == 0, jnp.int8(Verdict.plateau), jnp.int8(Verdict.saddle))
        return jnp.where(settled, ended, jnp.int8(-1))


class Slowed(AbstractEnding):
    """The ending of a problem with the mean over the samples: that of the sum, whose time runs `1 / a` times as fast.

    `a` is the factor of the summed loss in the risk (`model.scale`). Derived here.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.of_sum = Plateau(problem.summed)
        self.scale = problem.model.scale

    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        return self.of_sum.escape_time(start, mean_decay) / self.scale

    def end_time(self, start: Point) -> Float[Array, ""]:
        return self.of_sum.end_time(start) / self.scale

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        return self.of_sum.at_rest(start, point, tolerance)

    def fastest_rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        return self.scale * self.of_sum.fastest_rate(self.scale * t)

    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        return self.of_sum.done(start, run._replace(t_end=self.scale * run.t_end))

"""The protocol of an ending: when a run on a problem is over, and which verdict its last point gets."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..model.problem import Point, Problem
from .verdict import Ending, Verdict


class AbstractEnding(abc.ABC):
    """The known facts about the end of runs on a problem.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: Problem):
        self.problem = problem

    @abc.abstractmethod
    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        """The time by which the start has escaped from the origin."""

    @abc.abstractmethod
    def end_time(self, start: Point) -> Float[Array, ""]:
        """The time at which a run from `start` is complete, or is long if no run is ever complete."""

    def log_end_time(self, start: Point) -> Float[Array, ""]:
        """The same in the log clock, whose l is `ln(1 + t)`."""
        return jnp.log1p(self.end_time(start))

    @abc.abstractmethod
    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a flow from `start` is at rest at `point`, with less than `tolerance` of its norm left to go."""

    def fastest_rate(self, t: Float[Array, ""]) -> Float[Array, ""] | None:
        """The fastest decay near a critical point up to time t, except the mean residual's; None if not known."""
        return None

    @abc.abstractmethod
    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        """The verdict of a finite run that is complete, int8, and -1 for a run that ended early."""

    def verdict(self, start: Point, run: Ending, limit: Verdict) -> Int[Array, ""]:
        """The code of the verdict, int8. `limit` is the verdict of a run that stopped early, as requested."""
        start, end = jax.lax.stop_gradient((start, run.end))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in end]))
        end = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), end)
        code = jnp.where(run.steps_ran_out, jnp.int8(Verdict.step_limit), jnp.int8(limit))
        done = self.done(start, run._replace(end=end))
        code = jnp.where(done >= 0, done, code)
        return jnp.where(finite, code, jnp.int8(Verdict.non_finite))

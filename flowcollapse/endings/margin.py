"""The ending of a loss without a minimum: with decay runs end at rest, without decay the margins grow and none ends."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..model.columns import SampleColumns
from ..model.problem import Point, Problem
from .base import AbstractEnding
from .modes import fixed
from .stationary import Stationary
from .verdict import Ending, Verdict

LONG = 50.0
"""Without decay, runs go on until e^50 = 5e21 times the escape time by default."""


class Margin(AbstractEnding):
    """Runs of a loss whose infimum is not reached: rest under decay of W and the features, growing margins otherwise.

    Which of the two it is depends on numbers that programs do not know, so both are computed.
    """

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.with_decay = Stationary(problem)

    def _decays(self, dtype) -> Bool[Array, ""]:
        lam_W, lam_H, _ = fixed(self.problem.decays(dtype))
        return (lam_W > 0) & (lam_H > 0)

    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        return self.with_decay.escape_time(start, mean_decay)

    def end_time(self, start: Point) -> Float[Array, ""]:
        """The time of rest under decay. Without, e^50 times the escape time: margins are of the order `ln t`."""
        endless = jnp.expm1(self._endless(start))
        return jnp.where(self._decays(start.X.dtype), self.with_decay.end_time(start), endless)

    def log_end_time(self, start: Point) -> Float[Array, ""]:
        """`ln(1 + t)` of the time of rest under decay. Without, 50 plus the logarithm of the escape time."""
        return jnp.where(self._decays(start.X.dtype), self.with_decay.log_end_time(start), self._endless(start))

    def _endless(self, start: Point) -> Float[Array, ""]:
        return LONG + jnp.log(self.escape_time(start))

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a flow is at rest under decay, see `Stationary`; without, it never is."""
        return self._decays(point.X.dtype) & self.with_decay.at_rest(start, point, tolerance)

    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        """The verdict at rest under decay. Without, a run with a positive margin at every sample is `separated`."""
        fitted = jnp.min(margins(self.problem, self.problem.logits(run.end))) > 0
        separated = jnp.where(fitted & ~run.steps_ran_out, jnp.int8(Verdict.separated), jnp.int8(-1))
        return jnp.where(self._decays(run.end.X.dtype), self.with_decay.done(start, run), separated)


def margins(problem: Problem, logits: Float[Array, "C n"]) -> Float[Array, " samples"]:
    """`z_y - max_{j != y} z_j` of every sample, or of every class if there is no part within the classes."""
    columns, n = problem.columns, logits.shape[1]
    if columns.reduced and n > columns.num_classes:
        logits = columns.lift(logits)
        columns = SampleColumns(columns.counts)
    n = logits.shape[1]
    labels, z = columns.targets(n, logits.dtype) > 0, logits / columns.ones(n, logits.dtype)
    own = jnp.max(jnp.where(labels, z, -jnp.inf), axis=0)
    return own - jnp.max(jnp.where(labels, -jnp.inf, z), axis=0)

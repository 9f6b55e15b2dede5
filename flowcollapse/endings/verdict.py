"""How a run ended, and what may be said of the point where it did."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..model.problem import Point, Problem
from .modes import Modes, growth_rate, target_modes
from .plateau import plateau_time, slowest_decay

ENOUGH_DECAY = 10.0
"""A run that ended with what decays at e^-10 = 5e-5 or less has reached the plateau."""


class Verdict(enum.IntEnum):
    """How a run ended.

    Example:
        >>> import flowcollapse as fc
        >>> fc.Verdict.saddle.message
        'stopped at a saddle: the start lacks a mode, which therefore cannot grow'
    """

    plateau = 0
    saddle = 1
    time_limit = 2
    step_limit = 3
    non_finite = 4

    @property
    def message(self) -> str:
        """One sentence for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Verdict.plateau: "plateau reached: no mode of the targets is left to grow",
    Verdict.saddle: "stopped at a saddle: the start lacks a mode, which therefore cannot grow",
    Verdict.time_limit: "time limit: ended before the plateau; raise t1",
    Verdict.step_limit: "step limit: ended before the plateau; raise max_steps or num_steps, or loosen rtol",
    Verdict.non_finite: "not finite: the start or an iterate holds NaN or infinity",
}


class Ending(NamedTuple):
    """How a run ended: where, when, whether for lack of steps, and whether at rest."""

    end: Point
    t_end: Float[Array, ""]
    steps_ran_out: Bool[Array, ""]
    at_rest: Bool[Array, ""]


def at_rest(problem: Problem, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a flow has come to rest: it has less than `tolerance` to go, relative to its norms, and is at no saddle.

    What is left to go is the velocity over the slowest rate, which is the smallest weight decay, or without decay the
    growth rate of the slowest mode. Every mode must have escaped, but for those that the start lacks (derived here).
    """
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


def verdict(problem: Problem, start: Point, run: Ending, limit: Verdict) -> Int[Array, ""]:
    """The verdict's code, int8.

    A run has settled if its modes have and the start's plateau time is over, or the flow is at rest. Modes that have
    not escaped make a saddle if the start lacked as many, and otherwise show a run that ended early (derived here).
    """
    start, end = jax.lax.stop_gradient((start, run.end))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in end]))
    end = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), end)
    modes = Modes.of(problem, start, end)
    long_enough = run.at_rest | (run.t_end >= plateau_time(problem, start, ENOUGH_DECAY))
    settled = modes.done & ~run.steps_ran_out & long_enough
    early = jnp.where(run.steps_ran_out, jnp.int8(Verdict.step_limit), jnp.int8(limit))
    ended = jnp.where(modes.waiting == 0, jnp.int8(Verdict.plateau), jnp.int8(Verdict.saddle))
    return jnp.where(finite, jnp.where(settled, ended, early), jnp.int8(Verdict.non_finite))

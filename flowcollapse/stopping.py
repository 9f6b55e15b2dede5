"""When a run has done its work, and what may be said of where it ended.

Near the origin every mode of `(W + B^T)/2` along the targets' singular vectors grows, at the rate of its singular value
(`sqrt N` for balanced classes). A run is over when all modes have escaped and what decays has fallen by e^-20: the
plateau time. A run that ends before that, or cannot do it, says so: its verdict never calls a saddle converged.
"""

import enum
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._algebra import eigvalsh, singular_values
from .model import UFM, Point, Problem

DECAY = 20.0
"""What decays has fallen to e^-20 = 2e-9 at the plateau time."""

ENOUGH_DECAY = 10.0
"""A run that ended with what decays at e^-10 = 5e-5 or less has reached the plateau."""


class Verdict(enum.IntEnum):
    """How a run ended."""

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


class Run(NamedTuple):
    """A method's result: observations at `ts` (NaN where the run did not get there), the end, and how it went."""

    ts: Float[Array, " time"]
    observed: PyTree
    end: Point
    t_end: Float[Array, ""]
    steps_ran_out: Bool[Array, ""]
    stats: dict[str, Int[Array, ""]]
    at_rest: Bool[Array, ""] | bool = False

    @property
    def ending(self) -> Ending:
        return Ending(self.end, self.t_end, self.steps_ran_out, jnp.asarray(self.at_rest))


def target_modes(model: UFM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values `(U, s, V)` of the targets that the bias leaves, `diag(sqrt n)(I - u u^T / n_tot)`.

    For balanced classes: C - 1 times `sqrt N`. Without a bias nothing is projected out and there are C modes.
    """
    return _target_modes(model.counts, model.use_bias)


@functools.cache
def _target_modes(counts: tuple[int, ...], use_bias: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = np.array(counts, dtype=np.float64)
    Z = np.diag(np.sqrt(n))
    if use_bias:
        Z = Z @ (np.eye(len(n)) - np.outer(np.sqrt(n), np.sqrt(n)) / n.sum())
    U, s, Vt = np.linalg.svd(Z)
    k = len(n) - 1 if use_bias else len(n)
    return U[:, :k], s[:k], Vt[:k].T


class MeanMode(NamedTuple):
    """The target that a decaying bias leaves along the classes' mean, `strength * left right^T`, and whether it grows.

    The strength is `sqrt N lam_b / (C N + lam_b)` for balanced classes (derived here). Growth slower than a thousandth
    of the other modes' is not waited for.
    """

    strength: Float[Array, ""]
    left: Float[Array, " C"]
    right: Float[Array, " C"]
    rate: Float[Array, ""]
    grows: Bool[Array, ""]

    def amplitude(self, W: Float[Array, "C p"], B: Float[Array, "p C"]) -> Float[Array, ""]:
        """How much of the mode a point has."""
        return jnp.linalg.norm(W.T @ self.left + B @ self.right) / 2


def mean_mode(problem: Problem, dtype) -> MeanMode:
    """The mean mode of a problem."""
    n = np.array(problem.model.counts, dtype=np.float64)
    lam_b = jax.lax.stop_gradient(problem.decays(dtype)[2])
    strength = float(np.linalg.norm(n) / np.sqrt(n.sum())) * lam_b / (float(n.sum()) + lam_b)
    rate = growth_rate(problem, strength)
    _, s, _ = target_modes(problem.model)
    possible = problem.model.use_bias and problem.model.num_features > len(s)
    left, right = jnp.asarray(n / np.linalg.norm(n), dtype), jnp.asarray(np.sqrt(n / n.sum()), dtype)
    return MeanMode(strength, left, right, rate, possible & (rate > 1e-3 * s[-1]))


def growth_rate(problem: Problem, strength) -> Float[Array, ""]:
    """The rate at which a mode of the targets grows from the origin: its strength, less what decay takes."""
    lam_W, lam_H, _ = jax.lax.stop_gradient(problem.decays(jnp.result_type(float)))
    return jnp.sqrt(((lam_W - lam_H) / 2) ** 2 + strength**2) - (lam_W + lam_H) / 2


def growing_part(problem: Problem, point: Point) -> Float[Array, "p k"]:
    """`V0^T = (W^T U + B V) / 2`: the modes that grow, one column a mode; `P (W + B^T) / 2` for balanced classes."""
    U, _, V = target_modes(problem.model)
    dtype = point.X.dtype
    B, _ = problem.split(point.X)
    return (point.W.T @ jnp.asarray(U, dtype) + B @ jnp.asarray(V, dtype)) / 2


class Growth(NamedTuple):
    """How much of each growing mode a start has; zero where it lacks the mode.

    What is below the rounding of W and B is lacking: where the two cancel, only rounding is left of their sum.
    """

    values: Float[Array, " modes"]
    mean: Float[Array, ""]

    @classmethod
    def of(cls, problem: Problem, point: Point) -> "Growth":
        """The min(C-1, p) largest singular values of `growing_part`, largest first, and the mean mode's amplitude."""
        point = jax.lax.stop_gradient(point)
        B, _ = problem.split(point.X)
        values = singular_values(growing_part(problem, point))
        mean = mean_mode(problem, point.X.dtype).amplitude(point.W, B)
        tolerance = 16 * jnp.finfo(values.dtype).eps * max(problem.model.num_classes, point.X.shape[0])
        least = tolerance * (jnp.linalg.norm(point.W) + jnp.linalg.norm(B)) / 2
        return cls(jnp.where(values > least, values, 0.0), jnp.where(mean > least, mean, 0.0))


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


class Modes(NamedTuple):
    """The modes of the targets at a point, as the spectrum of the residual shows them.

    At a critical point a mode can still grow if and only if the residual G has a singular value above
    `sqrt(lam_W lam_H)` and the features have room for it, that is a direction that no escaped mode uses: those are
    counted in the spectrum of `W B`. So the modes that have not escaped are counted in the spectrum of `G G^T`, up to
    the room (derived here).
    """

    waiting: Int[Array, ""]
    """How many have not escaped."""
    lacking: Int[Array, ""]
    """How many the start lacks; they cannot grow."""
    settled: Bool[Array, ""]
    """Whether every mode either has escaped or has not begun to."""

    @classmethod
    def of(cls, problem: Problem, start: Point, end: Point) -> "Modes":
        _, s, _ = target_modes(problem.model)
        lam_W, lam_H, _ = jax.lax.stop_gradient(problem.decays(end.X.dtype))
        floor = jnp.sqrt(lam_W * lam_H)
        G, mean, growth = problem.residual(end), mean_mode(problem, end.X.dtype), Growth.of(problem, start)
        mean_excess = jnp.abs(mean.left @ problem.columns.times_ones(G)) / problem.model.num_samples**0.5 - floor
        mean_gap = mean.strength - floor
        G = jnp.where(mean.grows, G - jnp.outer(mean.left, mean.left @ G), G)  # the mean mode is judged by itself

        spectrum = jnp.sqrt(jnp.maximum(eigvalsh(G @ G.T)[::-1], 0.0))
        excess = spectrum - floor
        gap = jnp.maximum(s[-1] - floor, 1e-2 * s[-1])
        escaped = jnp.sum(singular_values(end.W @ problem.split(end.X)[0]) > 0.5 * gap)
        room = problem.model.num_features - escaped
        # The largest belong to the modes that have not escaped. Without room for them it does not matter how large.
        rest = jnp.arange(len(spectrum)) < len(spectrum) - escaped
        waiting = jnp.minimum(jnp.sum(rest & (excess > 0.5 * gap)), room)
        waiting += mean.grows & (mean_excess > 0.5 * mean_gap)
        settled = jnp.all((excess < 0.05 * gap) | (rest & ((excess > 0.95 * gap) | (room == 0))))
        settled &= ~mean.grows | (mean_excess < 0.05 * mean_gap) | (mean_excess > 0.95 * mean_gap)
        return cls(waiting, jnp.sum(growth.values == 0) + (mean.grows & (growth.mean == 0)), settled)

    @property
    def done(self) -> Bool[Array, ""]:
        """Whether no mode can grow any more: all have escaped, but for those that the start lacks."""
        return self.settled & ((self.waiting == 0) | (self.waiting == self.lacking))


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

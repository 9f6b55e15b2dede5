"""The ending of a loss that has a minimum, or of weight decay: rest, where one singular value certifies the minimum."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._linalg.algebra import eigh, eigvalsh
from ..losses.base import AbstractLoss
from ..model.problem import Point, Problem
from .base import AbstractEnding
from .modes import fixed, growth_rate, pull_at_origin, target_modes
from .plateau import DECAY, ENOUGH_DECAY, escape_time, slowest_decay
from .verdict import Ending, Verdict

TOLERANCE = 1e-3
"""A singular value of the residual counts as above `sqrt(lam_W lam_H)` if it is, by more than this share of it."""

NEARLY = 1e-2
"""A run that ended after its end time is at rest if it has less than this share of its norm left to go."""

LEAST_RATE = 1e-6
"""The slowest rate that runs wait for, in units of the growth from the origin."""


class Stationary(AbstractEnding):
    """Runs end at rest. At a minimum of a convex loss, a singular value says so.

    The risk is `min a loss(Z) + mu ||Z||_*` over the logits Z, with `mu = sqrt(lam_W lam_H)`, if the features have room
    for them. So a critical point at which no singular value of the residual G, the loss's derivative in the logits,
    exceeds mu is a global minimum if the loss is convex, and one at which no mode can grow if it is not. This holds
    for any counts, with and without a bias.

    Source: the nuclear norm, Zhu et al. 2021 (arXiv 2105.02375); the certificate and the rates are derived here.
    """

    def escape_time(self, start: Point, mean_decay: float | None = None) -> Float[Array, ""]:
        return escape_time(self.problem, fixed(start), mean_decay=mean_decay)

    def end_time(self, start: Point) -> Float[Array, ""]:
        """The escape time, plus 20 over the slowest rate at the collapsed minimum."""
        return self._time(start, DECAY)

    def fastest_rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The fastest decay near the collapsed minimum: the largest curvature of the loss there times the features.

        It is `rho s c (r + 1/r)` with the curvature c of the frame's directions, the ratio r of the decays' roots and
        the largest decay (derived here as in `_rate_of_mode`).
        """
        loss, (lam_W, lam_H, _) = fixed((self.problem.loss, self.problem.decays(t.dtype)))
        s = float(target_modes(self.problem.model)[1][0])
        rho, curvatures = _curvatures(loss, self.problem.model.num_classes, s, jnp.sqrt(lam_W * lam_H))
        lam = jnp.maximum(lam_W, lam_H)
        decays = (lam_W > 0) & (lam_H > 0)
        ratio = jnp.where(decays, jnp.sqrt(lam_W / jnp.where(decays, lam_H, 1.0)), 1.0)
        return rho * s * jnp.max(curvatures) * (ratio + 1 / ratio) + lam

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether a flow has less than `tolerance` left to go, relative to its norms, and no mode can grow from there.

        The distance left is the velocity over the slowest rate. Where a singular value of the residual exceeds
        `sqrt(lam_W lam_H)`, its mode grows unless the point lacks it.
        """
        point = jax.lax.stop_gradient(point)
        slow = self._is_slow(start, point, tolerance)
        return jax.lax.cond(slow, lambda: self._stays(point), lambda: jnp.asarray(False))

    def done(self, start: Point, run: Ending) -> Int[Array, ""]:
        """The verdict of a run at rest: at a minimum, or at a critical point that is not certified as one.

        A run also counts as at rest if its time was long enough and it has little left to go.
        """
        long_enough = run.t_end >= self._time(start, ENOUGH_DECAY)
        settled = run.at_rest | (long_enough & self._is_slow(start, run.end, jnp.asarray(NEARLY, run.end.X.dtype)))
        minimum = self._is_certified(run.end) if self.problem.loss.convex else jnp.asarray(False)
        ended = jnp.where(minimum, jnp.int8(Verdict.minimum), jnp.int8(Verdict.critical))
        return jnp.where(settled & ~run.steps_ran_out & self._has_minimum(run.end.X.dtype), ended, jnp.int8(-1))

    def _time(self, start: Point, decay: float) -> Float[Array, ""]:
        escape = escape_time(self.problem, fixed(start), decay)
        return (escape + decay / slowest_rate(self.problem, start.X.dtype)).astype(start.X.dtype)

    def _is_slow(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        velocity, rate = fixed(self.problem).field(point), slowest_rate(self.problem, point.X.dtype)
        W, X, b = jnp.maximum(_norms(point), _norms(jax.lax.stop_gradient(start)))
        return jnp.all(_norms(velocity) / rate <= tolerance * jnp.stack([W, X, X + b]))

    def _has_minimum(self, dtype) -> Bool[Array, ""]:
        """Whether W and the features both decay, or, if the loss has a minimum, neither."""
        lam_W, lam_H, _ = fixed(self.problem.decays(dtype))
        return (lam_W > 0) & (lam_H > 0) | ((lam_W + lam_H == 0) & self.problem.loss.attained)

    def _most(self, dtype) -> Float[Array, ""]:
        """The largest singular value of the residual at a minimum, `sqrt(lam_W lam_H)`, with some tolerance.

        Without decay the residual vanishes there, which means relative to its size at the origin.
        """
        lam_W, lam_H, _ = fixed(self.problem.decays(dtype))
        mu = jnp.sqrt(lam_W * lam_H)
        at_origin = pull_at_origin(self.problem, dtype) * float(target_modes(self.problem.model)[1][0])
        rounding = 1e3 * float(jnp.finfo(dtype).eps) * at_origin
        return jnp.where(mu > 0, (1 + TOLERANCE) * mu + rounding, TOLERANCE * at_origin)

    def _is_certified(self, point: Point) -> Bool[Array, ""]:
        return residual_norm(fixed(self.problem).residual(point)) <= self._most(point.X.dtype)

    def _stays(self, point: Point) -> Bool[Array, ""]:
        """Whether no mode grows from a critical point: the residual allows none, or the point lacks those that could.

        With a singular value t of the residual and its vectors u and v, `W^T u - X v` grows at the rate t minus the
        decay. At the critical point it is zero.
        """
        G = fixed(self.problem).residual(point)
        squares, U = eigh(G @ G.T)
        values = jnp.sqrt(jnp.maximum(squares, 0.0))
        can_grow = values > self._most(point.X.dtype)
        V = (G.T @ U) / jnp.where(can_grow, values, 1.0)
        size = jnp.sqrt(jnp.sum((point.W.T @ U - point.X @ V) ** 2, axis=0))
        rounding = 16 * jnp.finfo(size.dtype).eps * max(point.W.shape)
        return jnp.all(~can_grow | (size <= rounding * (jnp.linalg.norm(point.W) + jnp.linalg.norm(point.X))))


def residual_norm(G: Float[Array, "C n"]) -> Float[Array, ""]:
    """`||G||_op`, the largest singular value."""
    size = jnp.max(jnp.abs(G))
    unit = G / jnp.where(size > 0, size, 1.0)  # the squares of a residual of 1e-200 would vanish
    return size * jnp.sqrt(jnp.maximum(eigvalsh(unit @ unit.T)[-1], 0.0))


def slowest_rate(problem: Problem, dtype) -> Float[Array, ""]:
    """The slowest rate at which a flow approaches the collapsed minimum.

    It is the smallest non-zero decay, or a rate that the curvature of the loss sets (`_rate_of_mode`), whichever is
    smaller. With unequal classes each mode has its rate; the weakest and the strongest mode give the extremes.
    """
    loss, (lam_W, lam_H, _) = fixed((problem.loss, problem.decays(dtype)))
    _, s, _ = target_modes(problem.model)
    extremes = s[:1] if math.isclose(s[0], s[-1]) else s[np.array([0, -1])]
    floor = LEAST_RATE * pull_at_origin(problem, dtype) * float(s[0])
    rates = [_rate_of_mode(loss, problem, float(one), lam_W, lam_H) for one in extremes]
    return jnp.maximum(jnp.min(jnp.stack([slowest_decay(problem, dtype), *rates])), floor).astype(dtype)


def _rate_of_mode(loss: AbstractLoss, problem: Problem, s: float, lam_W, lam_H) -> Float[Array, ""]:
    """The slowest rate at the collapsed minimum, whose logits are `rho P` with `s pull(rho) = sqrt(lam_W lam_H)`.

    A direction in which the loss has the curvature c contributes `q = rho s c`: without decay this is a rate. With
    decay the rates are the eigenvalues of `[[lam_W (1 + k), mu (k - 1)], [mu (k - 1), lam_H (1 + k)]]`, `k = q / mu`.
    The directions are P itself and, with three classes or more, the difference of two classes at a sample of a third.
    If the minimum is the origin, modes decay there with their growth rate. Derived here.
    """
    C, dtype = problem.model.num_classes, lam_W.dtype
    mu, mean = jnp.sqrt(lam_W * lam_H), (lam_W + lam_H) / 2
    rho, curvatures = _curvatures(loss, C, s, mu)
    q = rho * s * jnp.min(curvatures)
    half_trace = mean * (1 + q / jnp.where(mu > 0, mu, 1.0))
    decayed = 4 * q * mu / (half_trace + jnp.sqrt(jnp.maximum(half_trace**2 - 4 * q * mu, 0.0)))
    at_minimum = jnp.where(mu > 0, decayed, q)
    at_origin = jnp.abs(growth_rate(problem, loss.pull(jnp.zeros((), dtype), C) * s))
    return jnp.where(rho > 0, at_minimum, at_origin)


def _curvatures(
    loss: AbstractLoss, C: int, s: float, mu: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, " directions"]]:
    """The logits rho of the collapsed minimum, 0 if they are not finite, and the curvatures of the loss there."""
    rho, dtype = loss.collapsed_logit(mu / s, C), mu.dtype
    rho = jnp.where(jnp.isfinite(rho), rho, 0.0)
    eye, ones = jnp.eye(C, dtype=dtype), jnp.ones(C, dtype)
    frame = eye - 1 / C
    directions = [frame / (C - 1) ** 0.5]
    if C > 2:
        directions.append(jnp.zeros((C, C), dtype).at[1:3, 0].set(jnp.asarray([1.0, -1.0], dtype) / 2**0.5))
    return rho, jnp.stack([jnp.sum(D * loss.curvature(rho * frame, eye, ones, D)) for D in directions])


def _norms(point: Point) -> Float[Array, "3"]:
    return jnp.stack([jnp.linalg.norm(part) for part in point])

"""The modes of the targets: how fast they grow near the origin, and which modes have escaped from it."""

import functools
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._linalg.algebra import eigvalsh, singular_values
from ..model.problem import Point, Problem
from ..model.ufm import UFM

T = TypeVar("T")


def target_modes(model: UFM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular vectors and values `(U, s, V)` of the targets that grow from the origin.

    For a loss that only differences of logits matter to, these targets are `P diag(sqrt n)`, with C - 1 modes. For any
    other loss they are the targets that the bias cannot fit, `diag(sqrt n)(I - u u^T / n_tot)`, and without a bias
    all of `diag(sqrt n)`, with C modes. For balanced classes all modes have the size `sqrt N`.
    """
    return margin_modes(model.counts) if model.loss.shift_invariant else _fitted_modes(model.counts, model.use_bias)


@functools.cache
def margin_modes(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The singular vectors and values `(U, s, V)` of `P diag(sqrt n)`: the labels, up to a shift of each column."""
    Z = np.diag(np.sqrt(np.array(counts, dtype=np.float64)))
    return _leading(Z - np.mean(Z, axis=0), len(counts) - 1)


@functools.cache
def _fitted_modes(counts: tuple[int, ...], use_bias: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = np.array(counts, dtype=np.float64)
    Z = np.diag(np.sqrt(n))
    if use_bias:
        Z = Z @ (np.eye(len(n)) - np.outer(np.sqrt(n), np.sqrt(n)) / n.sum())
    return _leading(Z, len(n) - 1 if use_bias else len(n))


def _leading(Z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest singular values of a matrix, with their vectors."""
    U, s, Vt = np.linalg.svd(Z)
    return U[:, :k], s[:k], Vt[:k].T


def pull_at_origin(problem: Problem, dtype) -> Float[Array, ""] | float:
    """The pull of the loss at the origin: modes grow with this times their singular value in the targets."""
    if problem.loss.squared_error:
        return 1.0
    return problem.loss.pull(jnp.zeros((), dtype), problem.model.num_classes)


def fixed(numbers: T) -> T:
    """A pytree without derivatives: times and verdicts are constants of a run."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, numbers)


class MeanMode(NamedTuple):
    """The target that a decaying bias leaves along the mean of the classes, `strength * left right^T`.

    The strength is `sqrt N lam_b / (C N + lam_b)` for balanced classes (derived here). `grows` is false if the mode
    grows more than a thousand times slower than the other modes: runs do not wait for it.
    """

    strength: Float[Array, ""]
    left: Float[Array, " C"]
    right: Float[Array, " C"]
    rate: Float[Array, ""]
    grows: Bool[Array, ""]

    def amplitude(self, W: Float[Array, "C p"], B: Float[Array, "p C"]) -> Float[Array, ""]:
        """The size of the mode at a point."""
        return jnp.linalg.norm(W.T @ self.left + B @ self.right) / 2


def mean_mode(problem: Problem, dtype) -> MeanMode:
    """The mean mode of a problem; it is known for the squared error only, and does not grow for any other loss."""
    n = np.array(problem.model.counts, dtype=np.float64)
    lam_b = problem.decays(dtype)[2]
    strength = float(np.linalg.norm(n) / np.sqrt(n.sum())) * lam_b / (float(n.sum()) + lam_b)
    rate = growth_rate(problem, strength)
    _, s, _ = target_modes(problem.model)
    possible = problem.loss.squared_error and problem.model.use_bias and problem.model.num_features > len(s)
    left, right = jnp.asarray(n / np.linalg.norm(n), dtype), jnp.asarray(np.sqrt(n / n.sum()), dtype)
    return MeanMode(strength, left, right, rate, possible & (rate > 1e-3 * s[-1]))


def growth_rate(problem: Problem, strength) -> Float[Array, ""]:
    """The rate at which a mode of the targets grows from the origin: its strength, reduced by weight decay."""
    lam_W, lam_H, _ = problem.decays(jnp.result_type(float))
    return jnp.sqrt(((lam_W - lam_H) / 2) ** 2 + strength**2) - (lam_W + lam_H) / 2


def growing_part(problem: Problem, point: Point) -> Float[Array, "p k"]:
    """`V0^T = (W^T U + B V) / 2`: the growing modes, one column per mode; `P (W + B^T) / 2` for balanced classes."""
    U, _, V = target_modes(problem.model)
    dtype = point.X.dtype
    B, _ = problem.split(point.X)
    return (point.W.T @ jnp.asarray(U, dtype) + B @ jnp.asarray(V, dtype)) / 2


class Growth(NamedTuple):
    """The size of each growing mode in a start; zero if the start lacks the mode.

    A size below the rounding of W and B counts as zero: where W and B cancel, their sum is only rounding.
    """

    values: Float[Array, " modes"]
    mean: Float[Array, ""]

    @classmethod
    def of(cls, problem: Problem, point: Point) -> "Growth":
        """The min(C-1, p) largest singular values of `growing_part`, largest first, and the mean mode's amplitude."""
        B, _ = problem.split(point.X)
        values = singular_values(growing_part(problem, point))
        mean = mean_mode(problem, point.X.dtype).amplitude(point.W, B)
        tolerance = 16 * jnp.finfo(values.dtype).eps * max(problem.model.num_classes, point.X.shape[0])
        least = tolerance * (jnp.linalg.norm(point.W) + jnp.linalg.norm(B)) / 2
        return cls(jnp.where(values > least, values, 0.0), jnp.where(mean > least, mean, 0.0))


class Modes(NamedTuple):
    """The state of the target modes at a point, read from the spectrum of the residual.

    At a critical point a mode can still grow if and only if the residual G has a singular value above
    `sqrt(lam_W lam_H)` and the features have room for the mode: a direction that no escaped mode uses. The spectrum of
    `W B` counts the escaped modes. The spectrum of `G G^T` counts the modes that have not escaped, as far as there is
    room (derived here).
    """

    waiting: Int[Array, ""]
    """The number of modes that have not escaped."""
    lacking: Int[Array, ""]
    """The number of modes that the start lacks; they cannot grow."""
    settled: Bool[Array, ""]
    """Whether every mode either has escaped or has not begun to escape."""

    @classmethod
    def of(cls, problem: Problem, start: Point, end: Point) -> "Modes":
        _, s, _ = target_modes(problem.model)
        lam_W, lam_H, _ = jax.lax.stop_gradient(problem.decays(end.X.dtype))
        floor = jnp.sqrt(lam_W * lam_H)
        G, mean, growth = problem.residual(end), mean_mode(problem, end.X.dtype), Growth.of(problem, start)
        mean_excess = jnp.abs(mean.left @ problem.columns.times_ones(G)) / problem.model.num_samples**0.5 - floor
        mean_gap = mean.strength - floor
        G = jnp.where(mean.grows, G - jnp.outer(mean.left, mean.left @ G), G)  # the mean mode is judged separately

        spectrum = jnp.sqrt(jnp.maximum(eigvalsh(G @ G.T)[::-1], 0.0))
        excess = spectrum - floor
        gap = jnp.maximum(s[-1] - floor, 1e-2 * s[-1])
        escaped = jnp.sum(singular_values(end.W @ problem.split(end.X)[0]) > 0.5 * gap)
        room = problem.model.num_features - escaped
        # The largest values belong to the modes that have not escaped. Without room for them, their size is irrelevant.
        rest = jnp.arange(len(spectrum)) < len(spectrum) - escaped
        waiting = jnp.minimum(jnp.sum(rest & (excess > 0.5 * gap)), room)
        waiting += mean.grows & (mean_excess > 0.5 * mean_gap)
        settled = jnp.all((excess < 0.05 * gap) | (rest & ((excess > 0.95 * gap) | (room == 0))))
        settled &= ~mean.grows | (mean_excess < 0.05 * mean_gap) | (mean_excess > 0.95 * mean_gap)
        return cls(waiting, jnp.sum(growth.values == 0) + (mean.grows & (growth.mean == 0)), settled)

    @property
    def done(self) -> Bool[Array, ""]:
        """Whether no mode can grow any more: all have escaped, except those that the start lacks."""
        return self.settled & ((self.waiting == 0) | (self.waiting == self.lacking))

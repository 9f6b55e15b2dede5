"""How far a point is from balance: the drift of `W^T W - H H^T`, which the flow conserves without decay."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import square_norm, triangle
from ..model.problem import Point

STRIPS, STRIPS_FROM = 4, 256
"""From this many features on, a symmetric matrix is computed in this many strips, each up to the diagonal."""

THIN_FROM = 4
"""From this many features for each column of `[W^T, X]` on, no p x p matrix is made."""


class Reference(NamedTuple):
    """The point that a drift is measured from, `||H||^2` there, and its imbalance in strips."""

    start: Point
    X_square: Float[Array, ""]
    strips: tuple[Float[Array, "rows upto"], ...]

    @classmethod
    def of(cls, start: Point) -> "Reference":
        """All that depends on the start alone."""
        return cls(start, square_norm(start.X), () if _is_thin(start) else _strips(start))

    def drift(self, point: Point) -> Float[Array, ""]:
        """`||W^T W - X X^T - (the same at the start)||_F`, from the differences themselves, which keeps the digits."""
        if _is_thin(point):
            C, n = len(point.W), point.X.shape[1]
            signs = jnp.where(jnp.arange(C + n) < C, 1.0, -1.0).astype(point.X.dtype)
            return _thin_drift(_factor(point), _factor(self.start), signs)
        squares = jnp.zeros((), point.X.dtype)
        for strip, before in zip(_strips(point), self.strips, strict=True):
            change = (strip - before) ** 2
            below = change[:, : strip.shape[1] - strip.shape[0]]  # of the diagonal block, and mirrored above it
            squares += jnp.sum(change) + (jnp.sum(below) if below.size else 0)
        return jnp.sqrt(squares)


def _is_thin(point: Point) -> bool:
    (C, p), n = point.W.shape, point.X.shape[1]
    return p >= THIN_FROM * (C + n)


def _strips(point: Point) -> tuple[Float[Array, "rows upto"], ...]:
    """`W^T W - X X^T` in strips of rows, each with the columns up to the strip's last row."""
    W, X, _ = point
    p = len(X)
    count = STRIPS if p >= STRIPS_FROM else 1
    edges = [p * i // count for i in range(count + 1)]
    return tuple(W[:, i:j].T @ W[:, :j] - X[i:j] @ X[:j].T for i, j in itertools.pairwise(edges))


def _factor(point: Point) -> Float[Array, "p columns"]:
    return jnp.concatenate([point.W.T, point.X], axis=1)


@jax.custom_jvp
def _thin_drift(Y, Y0, signs):
    """`||Y J Y^T - Y0 J Y0^T||_F` with `J = diag(signs)`: `[Y, Y0] = Q R` leaves `||R diag(J, -J) R^T||_F`.

    Traces of products of Gram matrices would lose half of the digits. The derivative takes products alone, so that it
    is finite where columns depend on each other (derived here).
    """
    R = triangle(jnp.concatenate([Y, Y0], axis=1))
    return jnp.sqrt(jnp.sum(((R * jnp.concatenate([signs, -signs])) @ R.T) ** 2))


@_thin_drift.defjvp
def _derivative_of_thin_drift(primals, tangents):
    (Y, Y0, signs), (dY, dY0, _) = primals, tangents

    def changed(V):
        """The difference of the two matrices times V."""
        return (Y * signs) @ (Y.T @ V) - (Y0 * signs) @ (Y0.T @ V)

    drift = _thin_drift(Y, Y0, signs)
    slope = jnp.sum(changed(Y) * signs * dY) - jnp.sum(changed(Y0) * signs * dY0)
    return drift, 2 * slope / drift

"""The drift of `W^T W - H H^T`, which the flow without decay conserves."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import square_norm, triangle
from ..model.problem import Point
from ..programs import full_precision

STRIPS, STRIPS_FROM = 4, 256
"""With `STRIPS_FROM` features or more, a symmetric matrix is computed in `STRIPS` strips, each up to the diagonal."""

THIN_FROM = 4
"""With at least this many features per column of `[W^T, X]`, no p x p matrix is formed."""


class Reference(NamedTuple):
    """The reference point of a drift, its `||H||^2`, and its imbalance `W^T W - X X^T` in strips."""

    start: Point
    X_square: Float[Array, ""]
    strips: tuple[Float[Array, "rows upto"], ...]

    @classmethod
    def of(cls, start: Point) -> "Reference":
        """Everything that depends only on the start."""
        return cls(start, square_norm(start.X), () if _is_thin(start) else _strips(start))

    def drift(self, point: Point) -> Float[Array, ""]:
        """`||W^T W - X X^T - (the same at the start)||_F`, from the differences themselves, to keep all digits."""
        if _is_thin(point):
            C, n = len(point.W), point.X.shape[1]
            signs = jnp.where(jnp.arange(C + n) < C, 1.0, -1.0).astype(point.X.dtype)
            return _thin_drift(_factor(point), _factor(self.start), signs)
        squares = jnp.zeros((), point.X.dtype)
        for strip, before in zip(_strips(point), self.strips, strict=True):
            change = (strip - before) ** 2
            below = change[:, : strip.shape[1] - strip.shape[0]]  # below the diagonal block; its mirror image is above
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

    Traces of products of Gram matrices would lose half of the digits. The derivative uses only products, so it is
    finite even if the columns are linearly dependent (derived here).
    """
    R = triangle(jnp.concatenate([Y, Y0], axis=1))
    return jnp.sqrt(jnp.sum(((R * jnp.concatenate([signs, -signs])) @ R.T) ** 2))


@_thin_drift.defjvp
@full_precision
def _derivative_of_thin_drift(primals, tangents):
    (Y, Y0, signs), (dY, dY0, _) = primals, tangents

    def changed(V):
        """The difference of the two matrices times V."""
        return (Y * signs) @ (Y.T @ V) - (Y0 * signs) @ (Y0.T @ V)

    drift = _thin_drift(Y, Y0, signs)
    slope = jnp.sum(changed(Y) * signs * dY) - jnp.sum(changed(Y0) * signs * dY0)
    return drift, 2 * slope / drift

"""The neural collapse metrics NC1 to NC4 and CDNV, for a point of the model or for the features of a network."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import pinv
from ..programs import inlined
from .view import Measured, Metric, _or_nan, _square


def _nc1(view: Measured):
    """`||M^+ L||_F^2 / n_tot`, computed from the centred means (derived here).

    Products of covariances are avoided, so that values down to the sixth power of eps keep their digits and dead
    features contribute nothing. M has C columns that sum to zero; the reflection of (1, ..., 1) onto the first axis
    leaves C - 1 columns.
    """
    return view.within_square(_inverse(view.M)) / view.num_samples + 0.0 * view.M_square


@inlined
def _inverse(M: Float[Array, "p C"]) -> Float[Array, "m p"]:
    """The pseudo-inverse of the reflected M."""
    return pinv(M[:, 1:] - M[:, :1] / (1 + M.shape[1] ** 0.5))


def _nc1_trace(view: Measured):
    return view.within_square() / view.num_samples / view.M_square * view.M.shape[1]


def _nc3(view: Measured):
    return _nc3_of(view.paired.T, view.M, view.paired_square, view.M_square)


@inlined
def _nc3_of(W: Float[Array, "p C"], M: Float[Array, "p C"], W_square: Float[Array, ""], M_square: Float[Array, ""]):
    return jnp.sqrt(_square(W / jnp.sqrt(_or_nan(W_square)) - M / jnp.sqrt(M_square)))


def _nc4(view: Measured):
    return view.disagreement() + 0.0 * view.M_square


COMPARED_AT_ONCE = 2**14
"""The most differences of class means, over all pairs and all features, that are computed at once."""


def _cdnv(view: Measured):
    return _cdnv_of(view.M, view.variances())


@inlined
def _cdnv_of(M: Float[Array, "p C"], variances: Float[Array, " C"]) -> Float[Array, ""]:
    C = len(variances)
    same = jnp.eye(C, dtype=M.dtype)
    ratios = (variances[:, None] + variances) / _or_nan(square_distances(M) + same) * (1 - same)
    return jnp.sum(ratios) / (2 * C * (C - 1))


@inlined
def square_distances(M: Float[Array, "p C"]) -> Float[Array, "C C"]:
    """`||m_i - m_j||^2` for all pairs of columns.

    It is computed from the differences, because a Gram matrix would lose the digits of nearly equal means. If there are
    many features, they are added one at a time, because jax 0.10.1 would store all p C^2 differences.
    """

    def square(row):
        return (row[:, None] - row) ** 2

    C = M.shape[1]
    if M.size * C <= COMPARED_AT_ONCE:
        return jnp.sum(jax.vmap(square)(M), axis=0)
    return jax.lax.scan(lambda total, row: (total + square(row), None), jnp.zeros((C, C), M.dtype), M)[0]


METRICS = {
    "nc1": Metric(_nc1, "within-class variability, pseudo-inverse form", of_features=("scatter",)),
    "nc1_trace": Metric(_nc1_trace, "within-class variability, ratio of traces", of_features=()),
    "nc2_norm_h": Metric(lambda v: v.defects[0].lengths, "spread of the class means' lengths", of_features=()),
    "nc2_norm_w": Metric(
        lambda v: v.defects[1].lengths, "spread of the classifier rows' lengths", of_features=("classifier",)
    ),
    "nc2_angle_h": Metric(lambda v: v.defects[0].angles, "class means' angles against the simplex", of_features=()),
    "nc2_angle_w": Metric(
        lambda v: v.defects[1].angles, "classifier rows' angles against the simplex", of_features=("classifier",)
    ),
    "nc2_etf_h": Metric(
        lambda v: v.defects[0].gram, "class means' Gram matrix against the simplex frame", of_features=()
    ),
    "nc2_etf_w": Metric(
        lambda v: v.defects[1].gram, "classifier's Gram matrix against the simplex frame", of_features=("classifier",)
    ),
    "nc3": Metric(_nc3, "self-duality of classifier and class means", of_features=("classifier",)),
    "nc4": Metric(
        _nc4, "disagreement with the nearest class mean", samples=True, of_features=("classifier", "assigned")
    ),
    "cdnv": Metric(_cdnv, "class-distance normalised variance", samples=True, of_features=()),
}

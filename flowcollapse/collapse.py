"""The formulas of the metrics, each a function of what is measured: a point of the model, or features of a network.

`fc.metrics` lists them with their sources.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._algebra import in_blocks, pinv, product, square_norm
from .columns import root_counts, times_within_basis
from .hessian import largest_eigenvalue
from .model import Point, Problem


class Measured(abc.ABC):
    """The data that collapse metrics read: class means, the scatter within the classes, and a classifier."""

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """How many samples there are."""

    @property
    @abc.abstractmethod
    def M(self) -> Float[Array, "p C"]:
        """The class means less their unweighted mean."""

    @property
    @abc.abstractmethod
    def W(self) -> Float[Array, "K p"]:
        """The classifier."""

    @property
    def paired(self) -> Float[Array, "C p"]:
        """The rows of the classifier that belong to the class means, in the same order."""
        return self.W

    @abc.abstractmethod
    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        """`||A (h - mu_c)||^2` summed over all samples; without A the identity."""

    @abc.abstractmethod
    def variances(self) -> Float[Array, " C"]:
        """`||h - mu_c||^2` averaged over the samples of each class."""

    @abc.abstractmethod
    def disagreement(self) -> Float[Array, ""]:
        """The share of samples that the classifier and the nearest class mean put into different classes."""


@dataclasses.dataclass(frozen=True)
class View(Measured):
    """A point of the model: the problem, the point, its class means and within-class part, and the start."""

    problem: Problem
    point: Point
    B: Float[Array, "p C"]
    L: Float[Array, "p r"]
    start: Point | None

    @property
    def num_samples(self) -> int:
        return self.problem.model.num_samples

    @property
    def means(self) -> Float[Array, "p C"]:
        return self.B / root_counts(self.problem.model.counts, self.B.dtype)

    @property
    def M(self) -> Float[Array, "p C"]:
        return self.means - jnp.mean(self.means, axis=1, keepdims=True)

    @property
    def W(self) -> Float[Array, "C p"]:
        return self.point.W

    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        if A is None:
            return jnp.sum(self.L**2)
        return jnp.sum(in_blocks(lambda column: jnp.sum((A @ column) ** 2), self.L.T, A.shape[0]))

    def variances(self) -> Float[Array, " C"]:
        counts = jnp.asarray(self.problem.model.counts, self.B.dtype)
        return self.problem.columns.within_class_energies(self.L) / counts

    def disagreement(self) -> Float[Array, ""]:
        W, X, b = self.point
        M, centre = self.M, jnp.mean(self.means, axis=1)
        lengths = jnp.sum(M**2, axis=0)

        def differs(h):
            return jnp.argmax(W @ h + b) != jnp.argmin(lengths - 2 * (h - centre) @ M)

        H = self.problem.columns.lift(X)
        return jnp.mean(in_blocks(differs, H.T, 2 * len(W)).astype(H.dtype))

    @property
    def root_n(self) -> float:
        return self.problem.model.counts[0] ** 0.5

    def centre(self, W: Float[Array, "C p"]) -> Float[Array, "C p"]:
        """`P W`."""
        return W - jnp.mean(W, axis=0) if self.problem.model.use_bias else W


def _frame_projector(view: View) -> Float[Array, "C C"]:
    return view.centre(jnp.eye(view.problem.model.num_classes, dtype=view.B.dtype))


def _snc1(view: View):
    W = view.point.W
    return jnp.linalg.norm(product(W, W.T) - view.root_n * _frame_projector(view))


def _snc2(view: View):
    numerator = square_norm(view.L) + square_norm(view.B.T - view.point.W)
    return jnp.sqrt(numerator / _or_nan(square_norm(view.point.X)))


def _snc3(view: View):
    model = view.problem.model
    return jnp.linalg.norm(view.point.b - (1 / model.num_classes if model.use_bias else 0.0))


def _distance(view: View):
    """In S, `W = B^T`, the rows of `W + B^T` add up to zero, `L` vanishes and b is constant: the sum of the squares of
    what is none of this, no difference of large numbers (derived here)."""
    W, _, b = view.point
    squares = square_norm(view.L) + 0.5 * square_norm(view.B.T - W) + jnp.sum((b - jnp.mean(b)) ** 2)
    if view.problem.model.use_bias:
        squares += 0.5 * jnp.sum((jnp.sum(W, axis=0) + jnp.sum(view.B, axis=1)) ** 2) / W.shape[0]
    return jnp.sqrt(squares)


def _relative_distance(view: View):
    W, X, b = view.point
    return _distance(view) / jnp.sqrt(_or_nan(square_norm(W) + square_norm(X) + jnp.sum(b**2)))


def _nc1(view: Measured):
    """`||M^+ L||_F^2 / n_tot` from the centred means themselves: never a product of covariances, so that values down
    to the sixth power of eps keep their digits, and features that are dead count for nothing (derived here)."""
    M = view.M
    centred = times_within_basis(M, (M.shape[1],))
    return view.within_square(pinv(centred)) / view.num_samples + 0.0 * _or_nan(jnp.sum(centred**2))


def _nc1_trace(view: Measured):
    M = view.M
    return view.within_square() / view.num_samples / _or_nan(jnp.sum(M**2) / M.shape[1])


def _norm_spread(rows: Float[Array, "C p"]):
    lengths = jnp.linalg.norm(rows, axis=1)
    return jnp.std(lengths) / _or_nan(jnp.mean(lengths))


def _angle_defect(rows: Float[Array, "C p"]):
    C = rows.shape[0]
    directions = rows / _or_nan(jnp.linalg.norm(rows, axis=1, keepdims=True))
    off_diagonal = 1 - jnp.eye(C, dtype=rows.dtype)
    return jnp.sum(jnp.abs(directions @ directions.T + 1 / (C - 1)) * off_diagonal) / (C * (C - 1))


def _etf_defect(rows: Float[Array, "C p"]):
    C = rows.shape[0]
    gram = rows @ rows.T
    frame = (jnp.eye(C, dtype=rows.dtype) - 1 / C) / (C - 1) ** 0.5
    return jnp.linalg.norm(gram / _or_nan(jnp.linalg.norm(gram)) - frame)


def _nc3(view: Measured):
    W, M = view.paired, view.M
    return jnp.linalg.norm(W.T / _or_nan(jnp.linalg.norm(W)) - M / _or_nan(jnp.linalg.norm(M)))


def _nc4(view: Measured):
    return view.disagreement() + 0.0 * _or_nan(jnp.sum(view.M**2))


COMPARED_AT_ONCE = 2**14
"""Up to this many differences, those of all pairs of class means and all features are taken at once."""


def _cdnv(view: Measured):
    M, variances = view.M, view.variances()
    off_diagonal = 1 - jnp.eye(len(variances), dtype=M.dtype)
    distances = square_distances(M) + jnp.eye(len(variances), dtype=M.dtype)
    ratios = (variances[:, None] + variances) / (2 * _or_nan(distances)) * off_diagonal
    return jnp.sum(ratios) / jnp.sum(off_diagonal)


def square_distances(M: Float[Array, "p C"]) -> Float[Array, "C C"]:
    """`||m_i - m_j||^2` of all pairs of columns.

    From the differences themselves: a Gram matrix would lose the digits of means that are close to each other. Many
    features are added up one at a time, because jax 0.10.1 would store all p C^2 differences.
    """

    def square(row):
        return (row[:, None] - row) ** 2

    C = M.shape[1]
    if M.size * C <= COMPARED_AT_ONCE:
        return jnp.sum(jax.vmap(square)(M), axis=0)
    return jax.lax.scan(lambda total, row: (total + square(row), None), jnp.zeros((C, C), M.dtype), M)[0]


def _risk(view: View):
    return view.problem.risk(view.point)


def _grad_norm(view: View):
    return jnp.sqrt(sum(jnp.sum(part**2) for part in view.problem.field(view.point)))


def _balancedness(view: View):
    start = view.point if view.start is None else view.start
    drift = _imbalance(view.point) - _imbalance(start)
    return jnp.linalg.norm(drift) / _or_nan(jnp.sum(start.X**2))


def _imbalance(point: Point) -> Float[Array, "p p"]:
    return point.W.T @ point.W - point.X @ point.X.T


def _sharpness(view: View):
    """In whatever coordinates: those directions that they hide are never curved more than the rest."""
    return largest_eigenvalue(view.problem, view.point)


class Metric(NamedTuple):
    """A metric and what it needs: equal counts, single samples, much more time than the rest together.

    What is costly is computed only where it is asked for by name.
    """

    function: Callable[[Any], Float[Array, ""]]
    long_name: str
    equal_counts: bool = False
    samples: bool = False
    costly: bool = False


METRICS: dict[str, Metric] = {
    "snc1": Metric(_snc1, "strong collapse of the classifier", equal_counts=True),
    "snc2": Metric(_snc2, "strong collapse of the features, relative", equal_counts=True),
    "snc3": Metric(_snc3, "strong collapse of the bias", equal_counts=True),
    "distance": Metric(_distance, "distance to the invariant subspace S", equal_counts=True),
    "relative_distance": Metric(_relative_distance, "distance to S over the norm of the state", equal_counts=True),
    "nc1": Metric(_nc1, "within-class variability, pseudo-inverse form"),
    "nc1_trace": Metric(_nc1_trace, "within-class variability, ratio of traces"),
    "nc2_norm_h": Metric(lambda v: _norm_spread(v.M.T), "spread of the class means' lengths"),
    "nc2_norm_w": Metric(lambda v: _norm_spread(v.W), "spread of the classifier rows' lengths"),
    "nc2_angle_h": Metric(lambda v: _angle_defect(v.M.T), "class means' angles against the simplex"),
    "nc2_angle_w": Metric(lambda v: _angle_defect(v.W), "classifier rows' angles against the simplex"),
    "nc2_etf_h": Metric(lambda v: _etf_defect(v.M.T), "class means' Gram matrix against the simplex frame"),
    "nc2_etf_w": Metric(lambda v: _etf_defect(v.W), "classifier's Gram matrix against the simplex frame"),
    "nc3": Metric(_nc3, "self-duality of classifier and class means"),
    "nc4": Metric(_nc4, "disagreement with the nearest class mean", samples=True),
    "cdnv": Metric(_cdnv, "class-distance normalised variance", samples=True),
    "risk": Metric(_risk, "risk"),
    "grad_norm": Metric(_grad_norm, "norm of the risk's gradient"),
    "balancedness": Metric(_balancedness, "drift of W^T W - H H^T over the squared norm of H at the start"),
    "sharpness": Metric(_sharpness, "largest eigenvalue of the Hessian", costly=True),
}


def _or_nan(denominator):
    """The denominator, or NaN where it is so small that a ratio by it says nothing."""
    tiny = jnp.finfo(denominator.dtype).tiny
    return jnp.where(denominator > tiny, denominator, jnp.nan)

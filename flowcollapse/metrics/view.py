"""The data that metrics read (a point of the model, or the features of a network) and the products they share."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import in_blocks, square_norm
from ..model.columns import root_counts
from ..model.problem import Point, Problem
from ..programs import inlined
from .balance import Reference
from .target import Target


class Products(NamedTuple):
    """The inner products of vectors with each other, their squared norms, and the sum of the squared norms."""

    gram: Float[Array, "C C"]
    squares: Float[Array, " C"]
    total: Float[Array, ""]

    @property
    def cosines(self) -> Float[Array, "C C"]:
        """The cosines between the vectors."""
        inverse = 1 / _or_nan(jnp.sqrt(self.squares))
        return self.gram * inverse[:, None] * inverse

    @staticmethod
    @inlined
    def of(rows: Float[Array, "C p"]) -> "Products":
        squares = jnp.sum(rows**2, axis=1)
        return Products(rows @ rows.T, squares, jnp.sum(squares))


class Defects(NamedTuple):
    """How far vectors are from a simplex frame: their lengths, their angles, their Gram matrix."""

    lengths: Float[Array, ""]
    angles: Float[Array, ""]
    gram: Float[Array, ""]

    @staticmethod
    @inlined
    def of(vectors: Products) -> "Defects":
        gram, squares, total = vectors
        C, lengths = len(squares), jnp.sqrt(squares)
        mean = jnp.sum(lengths) / C
        spread = jnp.sqrt(jnp.sum((lengths - mean) ** 2) / C) / _or_nan(mean)
        same = jnp.eye(C, dtype=gram.dtype)
        angles = jnp.sum(jnp.abs(vectors.cosines + 1 / (C - 1)) * (1 - same)) / (C * (C - 1))
        return Defects(spread, angles, frame_defect(gram, total))


def frame_defect(gram: Float[Array, "C C"], scale: Float[Array, ""]) -> Float[Array, ""]:
    """`||G / ||G|| - P / sqrt(C - 1)||_F`.

    The matrix is divided by its scale first, because the square of a small one would underflow.
    """
    C = len(gram)
    frame = (jnp.eye(C, dtype=gram.dtype) - 1 / C) / (C - 1) ** 0.5
    scaled = gram / _or_nan(scale)
    return jnp.sqrt(jnp.sum((scaled / jnp.sqrt(jnp.sum(scaled**2)) - frame) ** 2))


class Measured(abc.ABC):
    """The data that collapse metrics read: class means, the scatter within the classes, and a classifier.

    Quantities that several metrics need are computed once.
    """

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """The number of samples."""

    @functools.cached_property
    @abc.abstractmethod
    def M(self) -> Float[Array, "p C"]:
        """The class means minus their unweighted mean."""

    @property
    @abc.abstractmethod
    def W(self) -> Float[Array, "K p"]:
        """The classifier."""

    @property
    def paired(self) -> Float[Array, "C p"]:
        """The rows of the classifier that belong to the class means, in the same order."""
        return self.W

    @functools.cached_property
    def class_means(self) -> Products:
        """The columns of M."""
        return Products.of(self.M.T)

    @functools.cached_property
    def classifier(self) -> Products:
        """The rows of W."""
        return Products.of(self.W)

    @functools.cached_property
    def M_square(self) -> Float[Array, ""]:
        """`||M||^2`, or NaN if the class means are too small to be meaningful."""
        return _or_nan(self.class_means.total)

    @property
    def paired_square(self) -> Float[Array, ""]:
        """The sum of the squares of `paired`."""
        return self.classifier.total

    @functools.cached_property
    def defects(self) -> tuple[Defects, Defects]:
        """The defects of the class means and of the classifier."""
        return Defects.of(self.class_means), Defects.of(self.classifier)

    @abc.abstractmethod
    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        """`||A (h - mu_c)||^2`, summed over all samples; A is the identity by default."""

    @abc.abstractmethod
    def variances(self) -> Float[Array, " C"]:
        """`||h - mu_c||^2` averaged over the samples of each class."""

    @abc.abstractmethod
    def disagreement(self) -> Float[Array, ""]:
        """The share of samples that the classifier and the nearest class mean assign to different classes."""


@dataclasses.dataclass(frozen=True)
class View(Measured):
    """A point of the model: the problem, the point, its class means and within-class part, and the start."""

    problem: Problem
    point: Point
    B: Float[Array, "p C"]
    L: Float[Array, "p r"]
    start: Reference | None

    @property
    def num_samples(self) -> int:
        return self.problem.model.num_samples

    @functools.cached_property
    def means(self) -> Float[Array, "p C"]:
        return self.B / root_counts(self.problem.model.counts, self.B.dtype)

    @functools.cached_property
    def M(self) -> Float[Array, "p C"]:
        return self.means - self.centre_of_means[:, None]

    @functools.cached_property
    def centre_of_means(self) -> Float[Array, " p"]:
        return jnp.sum(self.means, axis=1) / self.means.shape[1]

    @property
    def W(self) -> Float[Array, "C p"]:
        return self.point.W

    @functools.cached_property
    def defects(self) -> tuple[Defects, Defects]:
        """The defects of both, computed by one `vmap` to halve the program."""
        both = jax.tree.map(lambda h, w: jnp.stack([h, w]), self.class_means, self.classifier)
        found = jax.vmap(Defects.of)(both)
        return Defects(*(x[0] for x in found)), Defects(*(x[1] for x in found))

    @functools.cached_property
    def logits(self) -> Float[Array, "C n"]:
        return self.problem.logits(self.point)

    @functools.cached_property
    def L_square(self) -> Float[Array, ""]:
        return _square(self.L)

    @functools.cached_property
    def X_square(self) -> Float[Array, ""]:
        return _square(self.B) + self.L_square

    def unduality_square(self, ratio: Float[Array, ""] | float = 1.0) -> Float[Array, ""]:
        """`||B - ratio W^T||^2`."""
        return _square(self.B - (self.W.T if isinstance(ratio, float) and ratio == 1 else ratio * self.W.T))

    @functools.cached_property
    def target(self) -> Target:
        """The state that strong collapse is measured against."""
        return Target.of(self.problem, self.point)

    @functools.cached_property
    def distance(self) -> Float[Array, ""]:
        """The distance to S, without differences of large numbers (derived here).

        In S, `W = B^T`, the rows of `W + B^T` sum to zero, `L` vanishes and b is constant. The distance is the root of
        the sum of the squares of the deviations from these four conditions.
        """
        W, _, b = self.point
        squares = self.L_square + 0.5 * self.unduality_square() + jnp.sum((b - jnp.sum(b) / len(b)) ** 2)
        if self.problem.model.use_bias:
            squares += 0.5 * jnp.sum((jnp.sum(W, axis=0) + jnp.sum(self.B, axis=1)) ** 2) / W.shape[0]
        return jnp.sqrt(squares)

    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        if A is None:
            return self.L_square
        return jnp.sum(in_blocks(lambda column: jnp.sum((A @ column) ** 2), self.L.T, A.shape[0]))

    def variances(self) -> Float[Array, " C"]:
        return self.problem.columns.variances(self.L)

    def disagreement(self) -> Float[Array, ""]:
        W, X, b = self.point
        centre, columns, C = self.centre_of_means, self.problem.columns, len(W)
        # For a feature h minus the centre: the logits, and scores that are largest for the nearest class mean.
        scores = jnp.concatenate([W, 2 * self.M.T])
        at_centre = jnp.concatenate([W @ centre + b, -self.class_means.squares])
        X = X - centre[:, None] * columns.ones(X.shape[1], X.dtype)
        few = len(X) >= 2 * C  # fewer scores than features: then only the scores are computed for each sample

        def differs(h):
            one = (h if few else scores @ h) + at_centre
            chosen, nearest = jax.lax.argmax(one.reshape(2, C), 1, jnp.int32)
            return chosen != nearest

        H = columns.lift(scores @ X if few else X)
        return jnp.mean(in_blocks(differs, H.T, 2 * C).astype(H.dtype))

    def centre(self, W: Float[Array, "C p"]) -> Float[Array, "C p"]:
        """`P W`."""
        return W - jnp.mean(W, axis=0) if self.problem.model.use_bias else W


class Metric(NamedTuple):
    """A metric: the `function` that computes it from a `View`, its names, and its needs.

    It can need `equal_counts`, a finite `target` (a collapsed state to measure against, see `metrics/target.py`), the
    `squared_error`, or single `samples`. A metric that takes much more time than all others together is `costly`: it is
    computed only if it is requested by name. So is one that is `shift_invariant`, unless the loss has this property.
    So is one that is `on_request`, unless it is measured on features. `long_name` and `symbol`, the formula in TeX, go
    into Datasets. Pictures use `label`, or the long name if there is no label.

    A metric that can be measured on the features of a network names in `of_features` the data that it needs besides
    class means and variances: `"scatter"` within the classes, a `"classifier"`, samples `"assigned"` to class means, or
    features `"outside"` the classes. One that exists for features alone is not `of_model`, and only such a metric may
    have `axes`: a value for each class, `("class",)`, or for each pair of classes.

    Example:
        >>> import flowcollapse as fc
        >>> fc.metrics.METRICS["snc1"].equal_counts, fc.metrics.METRICS["sharpness"].costly
        (True, True)
    """

    function: Callable[[Any], Any]
    long_name: str
    label: str = ""
    symbol: str = ""
    equal_counts: bool = False
    squared_error: bool = False
    samples: bool = False
    costly: bool = False
    target: bool = False
    shift_invariant: bool = False
    on_request: bool = False
    of_features: tuple[str, ...] | None = None
    of_model: bool = True
    axes: tuple[str, ...] = ()

    @property
    def usual(self) -> bool:
        """Whether runs compute it without being asked."""
        return self.of_model and not (self.costly or self.on_request)


@inlined
def _or_nan(denominator):
    """The denominator, or NaN if it is so small that dividing by it is meaningless."""
    return jax.lax.select(
        denominator > jnp.finfo(denominator.dtype).tiny, denominator, jnp.full_like(denominator, jnp.nan)
    )


SUMMED_AT_ONCE = 2**12
"""The most squares that are summed in one loop; in a longer loop, each addition would wait for the one before."""


@inlined
def _square(A: Float[Array, "m n"]) -> Float[Array, ""]:
    """`||A||_F^2`."""
    return jnp.sum(A**2) if A.size <= SUMMED_AT_ONCE else square_norm(A)

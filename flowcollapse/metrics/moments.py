"""Class counts, class means and scatter of a stream of features, which need one pass and lose no digits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._errors import UsageError
from .labelled import LabelledFeatures

BLOCK = 2**21
"""The most numbers in a block of samples: 16 MiB."""


@dataclasses.dataclass
class Moments:
    """The moments of labelled features up to the second order, in float64.

    Args:
        counts: the number of samples of each class.
        means: their means, 0 for a class without samples.
        squares: `sum ||h - mu_c||^2` over the samples of each class.
        scatter: `sum (h - mu_c)(h - mu_c)^T` over all samples, or None if it is not kept.
    """

    counts: Int[np.ndarray, " K"]
    means: Float[np.ndarray, "K p"]
    squares: Float[np.ndarray, " K"]
    scatter: Float[np.ndarray, "p p"] | None

    @classmethod
    def empty(cls, num_classes: int, num_features: int, scatter: bool) -> "Moments":
        """The moments of no samples."""
        return cls(
            np.zeros(num_classes, np.int64),
            np.zeros((num_classes, num_features)),
            np.zeros(num_classes),
            np.zeros((num_features, num_features)) if scatter else None,
        )

    def add(
        self, features: Shaped[np.ndarray, "all p"], rows: Int[np.ndarray, " block"], codes: Int[np.ndarray, " block"]
    ) -> None:
        """Add some of the samples in a matrix.

        The samples of a class among them, m with the mean `mu`, are centred at
        `mu_c + (1 - sqrt(n / (n + m))) (mu - mu_c)`, where n samples with the mean `mu_c` were there before. Then their
        scatter is what they add to the scatter about the new mean: nothing is subtracted, and the distance between both
        means needs no product of its own (derived here).

        Args:
            features: the matrix, of any real type.
            rows: the rows to add.
            codes: their classes.

        Raises:
            UsageError: for NaN, infinity, and numbers whose squares overflow. Then nothing is added.
        """
        order = np.argsort(codes, kind="stable")
        rows, codes = rows[order], codes[order]
        block = features[rows].astype(np.float64, copy=False)
        starts = np.flatnonzero(np.append(True, np.diff(codes) > 0))
        classes = codes[starts]
        found = np.diff(np.append(starts, len(codes)))
        with np.errstate(all="ignore"):
            sums = np.add.reduceat(block, starts, axis=0)
            if not np.all(np.isfinite(sums)):
                _refuse(block, rows)
            before = self.counts[classes]
            total = before + found
            shift = sums / found[:, None] - self.means[classes]
            kept = np.sqrt(before / total)
            centres = self.means[classes] + (1 - kept)[:, None] * shift
            block -= np.repeat(centres, found, axis=0)
            squares = np.add.reduceat(np.einsum("ij,ij->i", block, block), starts)
        if not np.all(np.isfinite(squares)):
            raise UsageError("features hold numbers whose squares overflow: divide all by the largest.")
        if self.scatter is not None:
            self.scatter += block.T @ block
        self.squares[classes] += squares
        self.means[classes] += (found / total)[:, None] * shift
        self.counts[classes] = total

    def merged(self, other: "Moments") -> "Moments":
        """The moments of the samples of both."""
        total = self.counts + other.counts
        share = other.counts / np.maximum(total, 1)
        shift = other.means - self.means
        weights = self.counts * share
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            between = np.sqrt(weights)[:, None] * shift
            scatter = self.scatter + other.scatter + between.T @ between
        return Moments(
            total,
            self.means + share[:, None] * shift,
            self.squares + other.squares + weights * np.einsum("ij,ij->i", shift, shift),
            scatter,
        )

    def check(self) -> None:
        """Raise `ValueError` unless shapes and numbers are those of moments."""
        K, p = self.means.shape
        shapes = [(self.counts, (K,)), (self.squares, (K,))]
        shapes += [] if self.scatter is None else [(self.scatter, (p, p))]
        if any(array.shape != shape for array, shape in shapes):
            raise ValueError("shapes differ")
        numbers = [self.means, self.squares] + [part for part in (self.scatter,) if part is not None]
        if self.counts.dtype != np.int64 or any(part.dtype != np.float64 for part in numbers):
            raise ValueError("types differ")
        if np.any(self.counts < 0) or not all(np.all(np.isfinite(part)) for part in numbers):
            raise ValueError("numbers are impossible")

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Moments) and all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
        )


class Accumulated(LabelledFeatures):
    """The moments of labelled features."""

    def __init__(self, moments: Moments, agreement: np.ndarray, W: np.ndarray, b: np.ndarray, outside: Any):
        super().__init__(moments.counts, moments.means, W, b, outside)
        self._moments, self._agreement = moments, agreement

    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        if A is None:
            return jnp.asarray(np.sum(self._moments.squares))
        rows = np.asarray(A, np.float64)
        return jnp.asarray(max(0.0, float(np.sum((rows @ self.scatter()) * rows))))

    def variances(self) -> Float[Array, " C"]:
        return jnp.asarray(self._moments.squares[self.occurring] / self.counts, jnp.result_type(float))

    def scatter(self) -> Float[np.ndarray, "p p"]:
        assert self._moments.scatter is not None  # metrics say that they need it
        return self._moments.scatter

    def disagreement(self) -> Float[Array, ""]:
        return jnp.asarray(self._agreement[1] / self._agreement[0])

    def misassigned(self) -> Float[Array, ""]:
        return jnp.asarray(self._agreement[2] / self._agreement[0])


def blocks(num_samples: int, numbers: int) -> list[slice]:
    """Slices of at most `BLOCK` numbers, for samples with as many `numbers` each."""
    height = max(1, BLOCK // max(1, numbers))
    return [slice(start, min(start + height, num_samples)) for start in range(0, num_samples, height)]


def _refuse(block: Float[np.ndarray, "block p"], rows: Int[np.ndarray, " block"]) -> None:
    """Raise `UsageError` for the first row that is not finite, or for sums that are not."""
    broken = ~np.all(np.isfinite(block), axis=1)
    if not broken.any():
        raise UsageError("features hold numbers whose sums overflow: divide all by the largest.")
    raise UsageError(f"features hold NaN or infinity, as in row {rows[broken].min()}: remove those rows first.")

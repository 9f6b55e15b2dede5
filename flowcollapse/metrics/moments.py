"""Class counts, class means and scatter of a stream of features, which need one pass and lose no digits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from scipy import sparse

from .._errors import UsageError
from .labelled import LabelledFeatures, check_finite

BLOCK = 2**21
"""The most numbers in a block of samples: 16 MiB."""

CENTRED_AT_ONCE = 128
"""The number of samples that are centred at once, so few that they stay in the processor's cache."""


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

    def __post_init__(self):
        self._block = np.empty(0)  # memory for the centred samples, which new memory for each batch would slow down

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
        self, samples: Shaped[np.ndarray, "block p"], codes: Int[np.ndarray, " block"], rows: Int[np.ndarray, " block"]
    ) -> None:
        """Add samples.

        The samples of a class among them, m with the mean `mu`, are centred at
        `mu_c + (1 - sqrt(n / (n + m))) (mu - mu_c)`, where n samples with the mean `mu_c` were there before. Then their
        scatter is what they add to the scatter about the new mean: nothing is subtracted, and the distance between both
        means needs no second product (derived here).

        Args:
            samples: the samples, in any real type.
            codes: their classes.
            rows: the numbers of their rows, for messages.

        Raises:
            UsageError: for NaN, infinity, and numbers whose squares overflow. Then nothing is added.
        """
        classes: Any = slice(None)
        if len(samples) < len(self.counts):  # few samples: only their classes
            classes, codes = np.unique(codes, return_inverse=True)
        before, means = self.counts[classes], self.means[classes]
        with np.errstate(all="ignore"):
            if self._block.size < samples.size:
                self._block = np.empty(samples.size)
            block = self._block[: samples.size].reshape(samples.shape)
            block[...] = samples
            found = np.bincount(codes, minlength=len(before))
            shift = _sums(block, codes, len(before))
            if not np.all(np.isfinite(shift)):
                check_finite(block, rows)
                raise UsageError("features hold numbers whose sums overflow: divide all by the largest.")
            total = before + found
            shift /= np.maximum(found, 1)[:, None]
            shift -= means
            centres = shift * (1 - np.sqrt(before / np.maximum(total, 1)))[:, None]
            centres += means
            squares = np.zeros(len(block))
            for start in range(0, len(block), CENTRED_AT_ONCE):
                part = slice(start, start + CENTRED_AT_ONCE)
                block[part] -= centres[codes[part]]
                squares[part] = np.einsum("ij,ij->i", block[part], block[part])
            of_classes = np.bincount(codes, squares, len(before))
        if not np.all(np.isfinite(of_classes)):
            raise UsageError("features hold numbers whose squares overflow: divide all by the largest.")
        if self.scatter is not None:
            self.scatter += block.T @ block
        shift *= (found / np.maximum(total, 1))[:, None]
        self.means[classes] += shift
        self.squares[classes] += of_classes
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

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are kept, by name."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def check(self, K: int) -> None:
        """Raise `ValueError` unless shapes and numbers are those of moments of K classes."""
        p = self.means.shape[1]
        shapes = [(self.counts, (K,)), (self.means, (K, p)), (self.squares, (K,))]
        shapes += [] if self.scatter is None else [(self.scatter, (p, p))]
        if any(array.shape != shape for array, shape in shapes):
            raise ValueError("shapes differ")
        numbers = [self.means, self.squares] + [part for part in (self.scatter,) if part is not None]
        if self.counts.dtype != np.int64 or any(part.dtype != np.float64 for part in numbers):
            raise ValueError("types differ")
        if np.any(self.counts < 0) or not all(np.all(np.isfinite(part)) for part in numbers):
            raise ValueError("numbers are impossible")

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        ours, theirs = self.arrays(), other.arrays()
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


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


def _sums(block: Float[np.ndarray, "block p"], codes: Int[np.ndarray, " block"], C: int) -> Float[np.ndarray, "C p"]:
    """The sums of the samples of each class, by a sparse product, because NumPy has no fast sum over groups of rows."""
    n = len(block)
    return sparse.csr_array((np.ones(n), codes, np.arange(n + 1)), shape=(n, C)).T @ block

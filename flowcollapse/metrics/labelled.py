"""The data that metrics read from the labelled features of a network."""

import abc
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import UsageError
from .view import Measured


class LabelledFeatures(Measured):
    """Class means of labelled features, and a classifier whose rows are in the order of the classes.

    Args:
        counts: the number of samples of each class.
        means: the mean of each class; the rows of classes without samples are not used.
        weights: the classifier's rows.
        bias: the classifier's bias.
        outside: the mean of features outside the classes, or None.

    Raises:
        UsageError: if fewer than two classes have samples.
    """

    def __init__(
        self,
        counts: Int[np.ndarray, " K"],
        means: Float[np.ndarray, "K p"],
        weights: Float[np.ndarray, "K p"],
        bias: Float[np.ndarray, " K"],
        outside: Float[np.ndarray, " p"] | None,
    ):
        self.occurring = np.flatnonzero(counts)
        if len(self.occurring) < 2:
            raise UsageError(
                f"labels hold {len(self.occurring)} class{'es' * (len(self.occurring) != 1)}, and collapse needs at "
                "least 2: add samples of others."
            )
        self.counts, self.means = counts[self.occurring], means[self.occurring]
        self.weights, self.bias, self.outside = weights, bias, outside
        self.centre = self.means.mean(axis=0)

    @property
    def num_samples(self) -> int:
        return int(np.sum(self.counts))

    @functools.cached_property
    def M(self) -> Float[Array, "p C"]:
        return jnp.asarray((self.means - self.centre).T, jnp.result_type(float))

    @property
    def W(self) -> Float[Array, "K p"]:
        return jnp.asarray(self.weights, jnp.result_type(float))

    @property
    def paired(self) -> Float[Array, "C p"]:
        return self.W[self.occurring]

    @property
    def paired_square(self) -> Float[Array, ""]:
        return jnp.sum(self.paired**2)

    def total_scatter(self) -> Float[np.ndarray, "p p"]:
        """`sum (h - h_G)(h - h_G)^T` over all samples, `h_G` their mean."""
        shares = self.counts / self.num_samples
        between = np.sqrt(self.counts)[:, None] * (self.means - shares @ self.means)
        return self.scatter() + between.T @ between

    @abc.abstractmethod
    def scatter(self) -> Float[np.ndarray, "p p"]:
        """`sum (h - mu_c)(h - mu_c)^T` over all samples."""

    @abc.abstractmethod
    def misassigned(self) -> Float[Array, ""]:
        """The share of samples whose nearest class mean is that of another class."""


def check_finite(block: Float[np.ndarray, "block p"], rows: Int[np.ndarray, " block"]) -> None:
    """Raise `UsageError` for the first of these rows that holds NaN or infinity."""
    broken = ~np.all(np.isfinite(block), axis=1)
    if broken.any():
        raise UsageError(f"features hold NaN or infinity, as in row {rows[broken].min()}: remove those rows first.")


class Assignment:
    """Assigns samples to class means and to rows of the classifier.

    Args:
        data: means and classifier.
    """

    def __init__(self, data: LabelledFeatures):
        self.data = data
        self._M = data.means - data.centre
        self._lengths = np.sum(self._M**2, axis=1)

    def nearest(self, block: Float[np.ndarray, "block p"]) -> Int[np.ndarray, " block"]:
        """The class with the nearest mean."""
        return self.data.occurring[np.argmin(self._lengths - 2 * (block - self.data.centre) @ self._M.T, axis=1)]

    def chosen(self, block: Float[np.ndarray, "block p"]) -> Int[np.ndarray, " block"]:
        """The class that the classifier chooses."""
        if not (self.data.weights.any() or self.data.bias.any()):
            return np.zeros(len(block), np.int64)
        return np.argmax(block @ self.data.weights.T + self.data.bias, axis=1)

    def count(self, block: Float[np.ndarray, "block p"], codes: Int[np.ndarray, " block"]) -> Int[np.ndarray, " 3"]:
        """The number of samples, of those for which the classifier and the nearest mean differ, and of those of another
        class than the nearest mean."""
        nearest = self.nearest(block)
        differ = np.count_nonzero(self.chosen(block) != nearest)
        return np.array([len(block), differ, np.count_nonzero(nearest != codes)])

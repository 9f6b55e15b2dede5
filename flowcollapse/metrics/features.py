"""Metrics of measured features (the penultimate layer of any network), read one block of samples at a time."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._checks import as_numbers
from .._errors import UsageError
from .class_labels import Labels, read_labels
from .registry import METRICS
from .view import Measured

BLOCK = 2**21
"""The most numbers in a block of samples and in the arrays computed from it: 16 MiB."""

OF_FEATURES = ("nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "cdnv")
OF_CLASSIFIER = ("nc2_norm_w", "nc2_angle_w", "nc2_etf_w", "nc3", "nc4")


def from_features(
    features: Any, labels: Any, W: Any = None, b: Any = None, *, classes: Any = None, ignore_label: Any = None
) -> dict[str, float]:
    """Collapse metrics of measured features, from any framework.

    Arrays of NumPy, JAX, torch, TensorFlow and pandas, and lists, need no conversion: tensors are detached and copied
    to the CPU. Samples are read in blocks, so little memory is needed beyond the given arrays.

    Args:
        features: real numbers of shape (samples, p), one row per sample.
        labels: integers or text of shape (samples,); classes may differ in size.
        W: classifier, shape (C, p), or None.
        b: bias, shape (C,), or None for zeros.
        classes: the label values in the order of the rows of `W`. Default: the categories of categorical pandas labels,
            otherwise the sorted values that occur. Not all classes need to occur; see below.
        ignore_label: the label or labels of samples to leave out; NaN means missing labels.

    Returns:
        `nc1`, `nc1_trace`, `nc2_*_h` and `cdnv`; with `W` also `nc2_*_w`, `nc3` and `nc4`. Class means exist for the
        classes that occur, of which there must be at least two. `nc1`, `nc1_trace`, `nc2_*_h` and `cdnv` use these
        means, `nc3` compares them with their rows of `W`, and `nc4` compares the class chosen among all rows of `W`
        with the nearest mean. `nc2_*_w` uses all rows of `W`. Sums over samples are computed in float64; everything
        else is computed in float64 too if it is enabled in JAX.

    Raises:
        UsageError: for shapes that do not match, fewer than two classes, values that are not finite real numbers,
            missing labels, -1 or -100 among the labels (by convention they mark ignored samples) unless `classes` or
            `ignore_label` names them, and, with `W`, text labels whose sorted order differs from that of the numbers in
            them.

    Source: see the table of `fc.metrics`. How classes that do not occur are left out is derived here.

    Example:
        >>> import flowcollapse as fc
        >>> features, labels = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [5.0, 5.0]], [0, 0, 2, -1]
        >>> W = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
        >>> fc.metrics.from_features(features, labels, W, classes=range(3), ignore_label=-1)["nc4"]
        0.0
    """
    matrix = as_numbers("features", features)
    if matrix.ndim != 2 or 0 in matrix.shape:
        cure = "use features.reshape(len(features), -1)" if matrix.ndim > 2 else "give each sample a row of p numbers"
        raise UsageError(f"features must have the shape (samples, p), one row a sample, got {matrix.shape}: {cure}.")
    given = [name for name, value in (("W", W), ("b", b)) if value is not None]
    if given == ["b"]:
        raise UsageError("b is given without W, and has no use alone: pass W too, or leave b out.")
    read = read_labels(labels, len(matrix), classes, ignore_label, ordered=bool(given))
    occurring = len(np.unique(read.codes))
    if occurring < 2:
        raise UsageError(
            f"labels hold {occurring} class{'es' * (occurring != 1)}, and collapse needs at least 2: "
            "add samples of others."
        )
    shape = (len(read.classes), matrix.shape[1])
    weights = np.zeros(shape) if W is None else _checked("W", W, shape)
    view = Features(matrix, read, weights, np.zeros(shape[0]) if b is None else _checked("b", b, shape[:1]))
    names = OF_FEATURES if W is None else OF_FEATURES + OF_CLASSIFIER
    with jax.default_matmul_precision("highest"):
        return {name: float(METRICS[name].function(view)) for name in names}


def _checked(name: str, value: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    array = as_numbers(name, value)
    if array.shape != shape:
        cure = f"pass classes=, the label of each row of {name}, if the labels lack classes"
        if array.T.shape == shape:
            cure = f"transpose {name}"
        wanted = "".join(f" of {size} features" for size in shape[1:])
        raise UsageError(f"{name} has shape {array.shape} but {shape[0]} classes{wanted} need {shape}: {cure}.")
    if not np.all(np.isfinite(array)):
        raise UsageError(f"{name} holds NaN or infinity: measure a classifier whose numbers are finite.")
    return array.astype(np.float64)


class Features(Measured):
    """Features of labelled samples, and a classifier whose rows are in the order of the classes."""

    def __init__(
        self,
        features: Shaped[np.ndarray, "samples p"],
        labels: Labels,
        W: Float[np.ndarray, "K p"],
        b: Float[np.ndarray, " K"],
    ):
        self.features, self.weights, self.bias = features, W, b
        self.occurring, codes, self.counts = np.unique(labels.codes, return_inverse=True, return_counts=True)
        order = np.argsort(codes, kind="stable")
        self.rows, self.codes = labels.rows[order], codes[order]
        sums = np.zeros((len(self.counts), features.shape[1]))
        for block, codes in self._blocks():
            _add_by_class(sums, block, codes)
        self.means = sums / self.counts[:, None]
        self.centre = self.means.mean(axis=0)

    def _blocks(self) -> Iterator[tuple[Float[np.ndarray, "block p"], Int[np.ndarray, " block"]]]:
        """Blocks of samples, sorted by class, with their classes."""
        height = max(1, BLOCK // max(self.features.shape[1], len(self.weights)))
        for start in range(0, len(self.rows), height):
            rows = self.rows[start : start + height]
            block = self.features[rows].astype(np.float64)
            if not np.all(np.isfinite(block)):
                row = rows[~np.all(np.isfinite(block), axis=1)].min()
                raise UsageError(f"features hold NaN or infinity, as in row {row}: remove those rows first.")
            yield block, self.codes[start : start + height]

    @property
    def num_samples(self) -> int:
        return len(self.rows)

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

    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        if A is None:
            return jnp.sum(self.variances() * self.counts)
        turned = np.asarray(A, np.float64).T
        return jnp.asarray(sum(np.sum(((block - self.means[codes]) @ turned) ** 2) for block, codes in self._blocks()))

    def variances(self) -> Float[Array, " C"]:
        return self._variances

    @functools.cached_property
    def _variances(self) -> Float[Array, " C"]:
        sums = np.zeros((len(self.counts), 1))
        for block, codes in self._blocks():
            _add_by_class(sums, np.sum((block - self.means[codes]) ** 2, axis=1, keepdims=True), codes)
        return jnp.asarray(sums[:, 0] / self.counts, jnp.result_type(float))

    def disagreement(self) -> Float[Array, ""]:
        M = self.means - self.centre
        lengths, differ = np.sum(M**2, axis=1), 0
        for block, _ in self._blocks():
            chosen = np.argmax(block @ self.weights.T + self.bias, axis=1)
            nearest = np.argmin(lengths - 2 * (block - self.centre) @ M.T, axis=1)
            differ += np.count_nonzero(chosen != self.occurring[nearest])
        return jnp.asarray(differ / self.num_samples)


def _add_by_class(sums: Float[np.ndarray, "C m"], block: Float[np.ndarray, "block m"], codes: np.ndarray) -> None:
    """Add the rows of a block, sorted by class, to the sums of their classes."""
    starts = np.flatnonzero(np.append(True, np.diff(codes) > 0))
    sums[codes[starts]] += np.add.reduceat(block, starts, axis=0)

"""Metrics of measured features (the penultimate layer of any network), read one block of samples at a time."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .._checks import as_numbers
from .._errors import UsageError
from .class_labels import Labels, read_labels
from .labelled import Assignment, LabelledFeatures, check_finite
from .moments import BLOCK
from .registry import METRICS, asked_names

Values = dict[str, float | np.ndarray]
"""Metrics by name: a number each, or an array for metrics of each class or pair."""

CURES = {
    "scatter": "the scatter within the classes: use Accumulator(scatter=True)",
    "classifier": "a classifier: pass W",
    "assigned": "a second pass over the samples: call update_agreement with each batch",
    "outside": "features outside the classes: pass ood=, or call update_ood",
}
"""The data that metrics of features can need, and what to do where they are missing."""


def from_features(
    features: Any,
    labels: Any,
    W: Any = None,
    b: Any = None,
    *,
    classes: Any = None,
    ignore_label: Any = None,
    ood: Any = None,
    metrics: Any = None,
) -> Values:
    """Collapse metrics of measured features, from any framework.

    Arrays of NumPy, JAX, torch, TensorFlow and pandas, and lists, need no conversion: tensors are detached and copied
    to the CPU. Samples are read in blocks, so little memory is needed beyond the given arrays. For features that come
    batch by batch, see `Accumulator`.

    Args:
        features: real numbers of shape (samples, p), one row per sample. More axes, as convolutional layers have them,
            are flattened to p in the order of C.
        labels: integers or text of shape (samples,); classes may differ in size.
        W: classifier, shape (C, p), or None.
        b: bias, shape (C,), or None for zeros.
        classes: the label values in the order of the rows of `W`. Default: the categories of categorical pandas labels,
            otherwise the sorted values that occur. Not all classes need to occur; see below.
        ignore_label: the label or labels of samples to leave out; NaN means missing labels.
        ood: features of samples outside all classes, shape (any number, p), for `nc5`.
        metrics: names from the table of `fc.metrics`. Default: all that are a single number, are not costly, and have
            the data they need.

    Returns:
        The metrics by name. Class means exist for the classes that occur, of which there must be at least two. Metrics
        of the features use these means, `nc3`, `nc3_etf` and `unc3` compare them with their rows of `W`, and `nc4`
        compares the class chosen among all rows of `W` with the nearest mean. `nc2_*_w` uses all rows of `W`. Metrics
        of each class are arrays of shape (classes that occur,), those of pairs are square. Sums over samples are
        computed in float64; everything else is computed in float64 too if it is enabled in JAX.

    Raises:
        UsageError: for shapes that do not match, fewer than two classes, values that are not finite real numbers,
            missing labels, -1 or -100 among the labels (by convention they mark ignored samples) unless `classes` or
            `ignore_label` names them, metrics whose data are missing, and, with `W`, text labels whose sorted order
            differs from that of the numbers in them.

    Source: see the table of `fc.metrics`. How classes that do not occur are left out is derived here.

    Example:
        >>> import flowcollapse as fc
        >>> features, labels = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [5.0, 5.0]], [0, 0, 2, -1]
        >>> W = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
        >>> fc.metrics.from_features(features, labels, W, classes=range(3), ignore_label=-1)["nc4"]
        0.0
    """
    matrix = feature_rows("features", features)
    if not len(matrix):
        raise UsageError(f"features has no rows, its shape is {matrix.shape}: give samples of at least 2 classes.")
    read = read_labels(labels, len(matrix), classes, ignore_label, ordered=W is not None)
    has = {"scatter", "assigned"} | ({"classifier"} if W is not None else set())
    has |= {"outside"} if ood is not None else set()
    names = names_for(has, metrics)
    classifier = checked_classifier(W, b, (len(read.classes), matrix.shape[1]))
    outside = None if ood is None else mean_outside(ood, matrix.shape[1])[1]
    return evaluated(Features(matrix, read, *classifier, outside), names)


def feature_rows(name: str, features: Any) -> Shaped[np.ndarray, "samples p"]:
    """Features as a matrix with one row per sample; all other axes are flattened.

    Raises:
        UsageError: for anything but real numbers with at least two axes and one feature.
    """
    array = as_numbers(name, features)
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise UsageError(
            f"{name} must have the shape (samples, p), one row a sample, got {array.shape}: give each sample a row of "
            "p numbers."
        )
    return array.reshape(len(array), math.prod(array.shape[1:]))


def checked_classifier(
    W: Any, b: Any, shape: tuple[int, int]
) -> tuple[Float[np.ndarray, "K p"], Float[np.ndarray, " K"]]:
    """The classifier in float64, zeros by default.

    Raises:
        UsageError: for a bias without W, other shapes than (K, p) and (K,), and numbers that are not finite.
    """
    if W is None and b is not None:
        raise UsageError("b is given without W, and has no use alone: pass W too, or leave b out.")
    weights = np.zeros(shape) if W is None else _checked("W", W, shape)
    return weights, np.zeros(shape[0]) if b is None else _checked("b", b, shape[:1])


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


def mean_outside(features: Any, num_features: int) -> tuple[int, Float[np.ndarray, " p"]]:
    """The number and the mean of features outside the classes.

    Raises:
        UsageError: unless they are finite rows of `num_features` numbers, at least one.
    """
    matrix = feature_rows("ood", features)
    if matrix.shape[1] != num_features or not len(matrix):
        raise UsageError(
            f"ood has shape {matrix.shape} but features has {num_features} columns: give at least one row of the same "
            "layer."
        )
    mean = np.asarray(np.mean(matrix, axis=0, dtype=np.float64))
    if not np.all(np.isfinite(mean)):
        raise UsageError("ood holds NaN or infinity: remove those rows first.")
    return len(matrix), mean


def names_for(has: set[str], metrics: Any) -> tuple[str, ...]:
    """The requested metrics of features, by default all cheap ones that are numbers and need only what is there.

    Raises:
        UsageError: for names that are not known, not for features, or that need more.
    """
    if metrics is None:
        return tuple(
            name
            for name, metric in METRICS.items()
            if metric.of_features is not None and has.issuperset(metric.of_features)
            if not metric.axes and not metric.costly
        )
    names = asked_names(metrics)
    for name in names:
        needs = METRICS[name].of_features
        if needs is None:
            raise UsageError(f"metric {name!r} needs a run of the model, not features alone: leave it out.")
        for need in needs:
            if need not in has:
                raise UsageError(f"metric {name!r} needs {CURES[need]}.")
    return names


def evaluated(data: LabelledFeatures, names: Iterable[str]) -> Values:
    """The metrics of these names."""
    with jax.default_matmul_precision("highest"):
        found: Mapping[str, Any] = {name: METRICS[name].function(data) for name in names}
    return {name: np.asarray(value) if METRICS[name].axes else float(value) for name, value in found.items()}


class Features(LabelledFeatures):
    """Features of labelled samples in memory, or in a file that is mapped to memory."""

    def __init__(
        self,
        features: Shaped[np.ndarray, "samples p"],
        labels: Labels,
        W: Float[np.ndarray, "K p"],
        b: Float[np.ndarray, " K"],
        outside: Float[np.ndarray, " p"] | None,
    ):
        self.features = features
        order = np.argsort(labels.codes, kind="stable")
        self.rows, self.codes, self._height = labels.rows[order], labels.codes[order], max(features.shape[1], len(W))
        counts = np.bincount(labels.codes, minlength=len(W))
        sums = np.zeros((len(W), features.shape[1]))
        for block, codes in self._blocks():
            _add_by_class(sums, block, codes)
        super().__init__(counts, sums / np.maximum(counts, 1)[:, None], W, b, outside)
        self.codes = np.searchsorted(self.occurring, self.codes)

    def _blocks(self) -> Iterator[tuple[Float[np.ndarray, "block p"], Int[np.ndarray, " block"]]]:
        """Blocks of samples, sorted by class, with their classes."""
        height = max(1, BLOCK // self._height)
        for start in range(0, len(self.rows), height):
            rows = self.rows[start : start + height]
            block = self.features[rows].astype(np.float64)
            check_finite(block, rows)
            yield block, self.codes[start : start + height]

    def _deviations(self) -> Iterator[tuple[Float[np.ndarray, "block p"], Int[np.ndarray, " block"]]]:
        """Blocks of `h - mu_c`, with their classes."""
        return ((block - self.means[codes], codes) for block, codes in self._blocks())

    def within_square(self, A: Float[Array, "m p"] | None = None) -> Float[Array, ""]:
        if A is None:
            return jnp.sum(self.variances() * self.counts)
        turned = np.asarray(A, np.float64).T
        return jnp.asarray(sum(np.sum((block @ turned) ** 2) for block, _ in self._deviations()))

    def variances(self) -> Float[Array, " C"]:
        return self._variances

    @functools.cached_property
    def _variances(self) -> Float[Array, " C"]:
        sums = np.zeros((len(self.counts), 1))
        for block, codes in self._deviations():
            _add_by_class(sums, np.sum(block**2, axis=1, keepdims=True), codes)
        return jnp.asarray(sums[:, 0] / self.counts, jnp.result_type(float))

    def scatter(self) -> Float[np.ndarray, "p p"]:
        p = self.features.shape[1]
        return sum((block.T @ block for block, _ in self._deviations()), np.zeros((p, p)))

    @functools.cached_property
    def _assigned(self) -> tuple[float, float]:
        """The shares of samples on which the classifier and the nearest mean differ, and the nearest mean errs."""
        assignment = Assignment(self)
        found = (assignment.count(block, self.occurring[codes]) for block, codes in self._blocks())
        total, differ, wrong = sum(found, np.zeros(3, np.int64))
        return differ / total, wrong / total

    def disagreement(self) -> Float[Array, ""]:
        return jnp.asarray(self._assigned[0])

    def misassigned(self) -> Float[Array, ""]:
        return jnp.asarray(self._assigned[1])


def _add_by_class(sums: Float[np.ndarray, "C m"], block: Float[np.ndarray, "block m"], codes: np.ndarray) -> None:
    """Add the rows of a block, sorted by class, to the sums of their classes."""
    starts = np.flatnonzero(np.append(True, np.diff(codes) > 0))
    sums[codes[starts]] += np.add.reduceat(block, starts, axis=0)

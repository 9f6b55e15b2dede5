"""Collapse metrics of features that come batch by batch, in one pass and in memory that does not grow."""

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .._checks import check_flag, check_integer, shown
from .._errors import UsageError
from .._files import local_path, replacing
from .class_labels import class_values, read_labels
from .features import Values, checked_classifier, evaluated, feature_rows, mean_outside, names_for
from .labelled import Assignment, check_finite
from .moments import Accumulated, Moments, blocks

FORMAT = 1
"""The version of saved accumulators."""


class Accumulator:
    """Collapse metrics of features that come batch by batch, from any framework.

    It keeps counts, means and variances of the classes and, unless `scatter=False`, the p x p scatter within them: the
    result is that of all samples at once, in any order and any batches, up to rounding. Memory is O(C p + p^2), without
    the scatter O(C p). All sums are computed in float64.

    `nc4` and `ncc_error` compare single samples with the final class means, so they need a second pass over the
    samples, `update_agreement`. From then on the means are frozen.

    Args:
        num_classes: the number of classes C; labels are 0 ... C - 1.
        classes: instead of `num_classes`, the label values in the order of the classifier's rows.
        num_features: the number of features p; by default that of the first batch.
        scatter: whether to keep the scatter, which `nc1` and `effective_rank_features` need.
        ignore_label: the label or labels of samples to leave out; NaN means missing labels.

    Raises:
        UsageError: unless exactly one of `num_classes` and `classes` is given, and for values of the wrong kind.

    Source: pairwise updates of Chan, Golub and LeVeque 1983; the centre of a batch is derived here, see `Moments.add`.

    Example:
        >>> import flowcollapse as fc
        >>> accumulator = fc.metrics.Accumulator(num_classes=2)
        >>> for features, labels in [([[1.0, 0.0], [0.8, 0.2]], [0, 0]), ([[0.0, 1.0]], [1])]:
        ...     _ = accumulator.update(features, labels)
        >>> round(accumulator.result()["cdnv"], 4)
        0.0062
    """

    def __init__(
        self,
        num_classes: Any = None,
        *,
        classes: Any = None,
        num_features: Any = None,
        scatter: Any = True,
        ignore_label: Any = None,
    ):
        if (num_classes is None) == (classes is None):
            given = "neither" if classes is None else "both"
            raise UsageError(f"num_classes or classes must say which classes there are, got {given}: give one of them.")
        if classes is None:
            classes = range(check_integer("num_classes", num_classes, 2))
        self._classes, self._ignored = class_values(classes, ignore_label)
        if len(self._classes) < 2:
            raise UsageError(f"classes={shown(classes)} names fewer than 2 classes: name at least 2.")
        self._keeps_scatter = check_flag("scatter", scatter)
        self._moments: Moments | None = None
        self._outside: tuple[int, Any] = (0, 0.0)
        self._classifier: tuple[Any, Any] | None = None
        self._agreement = np.zeros(3, np.int64)  # samples, disagreements with W, samples nearest to another class
        if num_features is not None:
            self._moments = self._empty(check_integer("num_features", num_features))

    def _empty(self, num_features: int) -> Moments:
        return Moments.empty(len(self._classes), num_features, self._keeps_scatter)

    # ---- what is known

    @property
    def classes(self) -> tuple[int | str, ...]:
        """The label values, in the order of the classifier's rows."""
        return self._classes

    @property
    def num_samples(self) -> int:
        """The number of samples so far."""
        return 0 if self._moments is None else int(self._moments.counts.sum())

    @property
    def counts(self) -> np.ndarray:
        """The number of samples of each class, shape (C,)."""
        return np.zeros(len(self._classes), np.int64) if self._moments is None else self._moments.counts.copy()

    @property
    def means(self) -> Float[np.ndarray, "C p"]:
        """The class means, NaN for classes without samples. Raises `UsageError` before the first batch."""
        moments = self._seen()
        return np.where(moments.counts[:, None] > 0, moments.means, np.nan)

    def __repr__(self) -> str:
        p = "?" if self._moments is None else self._moments.means.shape[1]
        return f"Accumulator({self.num_samples} samples of {len(self._classes)} classes, {p} features)"

    def _seen(self) -> Moments:
        if self._moments is None:
            raise UsageError("accumulator holds no samples yet: call update first.")
        return self._moments

    # ---- one pass

    def update(self, features: Any, labels: Any) -> "Accumulator":
        """Add a batch of samples.

        Args:
            features: real numbers of shape (samples, p); more axes are flattened to p in the order of C.
            labels: integers or text of shape (samples,).

        Returns:
            The accumulator itself.

        Raises:
            UsageError: for shapes that do not match, labels that are not among the classes, values that are not finite
                real numbers, and after `update_agreement`. Then nothing of the batch is added.
        """
        if self._agreement[0]:
            raise UsageError(
                "update after update_agreement would change the means that samples were compared with: "
                "finish all calls of update first."
            )
        matrix, rows, codes = self._read(features, labels)
        before = self._empty(matrix.shape[1]) if self._moments is None else self._moments
        parts = blocks(len(rows), matrix.shape[1])
        # Several blocks first go into separate moments, so that a fault in the last one adds nothing.
        several = len(parts) > 1
        moments = self._empty(matrix.shape[1]) if several else before
        for part in parts:
            moments.add(_part(matrix, rows, part), codes[part], rows[part])
        self._moments = before.merged(moments) if several else before
        return self

    def _read(self, features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The samples as a matrix, the rows that count, and their classes."""
        matrix = feature_rows("features", features)
        p = matrix.shape[1] if self._moments is None else self._moments.means.shape[1]
        if matrix.shape[1] != p:
            raise UsageError(
                f"features has {matrix.shape[1]} columns, and the batches before had {p}: give features of one layer."
            )
        read = read_labels(labels, len(matrix), self._classes, self._ignored or None, ordered=False)
        return matrix, read.rows, read.codes

    def update_ood(self, features: Any) -> "Accumulator":
        """Add features of samples outside all classes, for `nc5`.

        Args:
            features: real numbers of shape (samples, p).

        Returns:
            The accumulator itself.

        Raises:
            UsageError: for another number of features, and for values that are not finite real numbers.
        """
        p = feature_rows("ood", features).shape[1] if self._moments is None else self._moments.means.shape[1]
        count, mean = mean_outside(features, p)
        if self._moments is None:
            self._moments = self._empty(p)
        self._outside = _joined(self._outside, (count, mean))
        return self

    # ---- a second pass

    def update_agreement(self, features: Any, labels: Any, W: Any = None, b: Any = None) -> "Accumulator":
        """Compare a batch of samples with the class means, which are final from now on.

        Args:
            features: real numbers of shape (samples, p), usually those of the first pass; other samples, as those of a
                test set, are allowed.
            labels: integers or text of shape (samples,).
            W: classifier, shape (C, p), for `nc4`; the same in all calls.
            b: bias, shape (C,), or None for zeros.

        Returns:
            The accumulator itself.

        Raises:
            UsageError: as `update`, for a classifier of the wrong shape, and for one that is not that of earlier calls.
        """
        moments = self._seen()
        matrix, rows, codes = self._read(features, labels)
        classifier = None if W is None and b is None else checked_classifier(W, b, moments.means.shape)
        if self._agreement[0] and not _same(classifier, self._classifier):
            raise UsageError("W or b differs from that of earlier calls of update_agreement: pass the same classifier.")
        assignment, found = Assignment(self._data(classifier)), np.zeros(3, np.int64)
        for part in blocks(len(rows), max(moments.means.shape)):
            block = _part(matrix, rows, part).astype(np.float64)
            check_finite(block, rows[part])
            found += assignment.count(block, codes[part])
        self._agreement = self._agreement + found
        self._classifier = classifier
        return self

    # ---- results

    def result(self, W: Any = None, b: Any = None, *, metrics: Any = None) -> Values:
        """The metrics of all samples so far, with the names of `fc.metrics.from_features`.

        Args:
            W: classifier, shape (C, p). Default: that of `update_agreement`, if it was given one.
            b: bias, shape (C,), or None for zeros.
            metrics: names from the table of `fc.metrics`. Default: all that are a single number, are not costly, and
                have the data they need.

        Returns:
            The metrics by name.

        Raises:
            UsageError: if fewer than two classes have samples, for a classifier of the wrong shape or not that of
                `update_agreement`, and for metrics whose data are missing.
        """
        moments = self._seen()
        classifier = self._classifier
        if W is not None or b is not None:
            classifier = checked_classifier(W, b, moments.means.shape)
        compared = self._classifier is not None
        if compared and not _same(classifier, self._classifier):
            raise UsageError("W or b is not the classifier of update_agreement: pass the same one, or leave it out.")
        has = {
            "scatter": self._keeps_scatter,
            "classifier": classifier is not None,
            "assigned": bool(self._agreement[0]),
            "outside": bool(self._outside[0]),
        }
        there = {need for need, present in has.items() if present}
        names = names_for(there, metrics)
        if not compared:  # the samples were compared with the class means alone
            if metrics is not None and "nc4" in names:
                raise UsageError("metric 'nc4' needs the classifier in update_agreement: pass W there too.")
            names = tuple(name for name in names if name != "nc4")
        return evaluated(self._data(classifier), names)

    def _data(self, classifier: tuple[Any, Any] | None) -> "Accumulated":
        moments = self._seen()
        weights, bias = checked_classifier(None, None, moments.means.shape) if classifier is None else classifier
        outside = self._outside[1] if self._outside[0] else None
        return Accumulated(moments, self._agreement, weights, bias, outside)

    # ---- several processes

    def merge(self, other: Any) -> "Accumulator":
        """The accumulator of the samples of both, which stay as they are.

        After a first pass in several processes, merge their accumulators and give each process the result. After a
        second pass, in which all have the same means, merging adds what `update_agreement` found.

        Args:
            other: an accumulator of the same classes and features.

        Returns:
            A new accumulator.

        Raises:
            UsageError: if classes, features or settings differ, or after `update_agreement` the means do.
        """
        if not isinstance(other, Accumulator):
            raise UsageError(f"other must be an Accumulator, got {shown(other)}: pass one.")
        for name in ("classes", "_keeps_scatter"):
            if getattr(self, name) != getattr(other, name):
                ours, theirs = getattr(self, name), getattr(other, name)
                said = "classes" if name == "classes" else "scatter"
                raise UsageError(f"{said} {shown(ours)} and {shown(theirs)} differ: make both alike.")
        merged = copy.deepcopy(self)
        if other._moments is None:
            return merged
        if self._moments is None:
            return copy.deepcopy(other)
        if self._moments.means.shape != other._moments.means.shape:
            p, q = self._moments.means.shape[1], other._moments.means.shape[1]
            raise UsageError(f"other has {q} features and this accumulator {p}: merge those of one layer.")
        if self._agreement[0] or other._agreement[0]:
            if self._moments != other._moments:
                raise UsageError(
                    "other has different means, and update_agreement compared samples with them: "
                    "merge the first passes of all, and use the result in the second pass of each."
                )
            if self._agreement[0] and other._agreement[0] and not _same(self._classifier, other._classifier):
                raise UsageError("other had a different W or b in update_agreement: pass the same to both.")
            merged._agreement = self._agreement + other._agreement
            merged._classifier = self._classifier if self._agreement[0] else other._classifier
            return merged
        merged._moments = self._moments.merged(other._moments)
        merged._outside = _joined(self._outside, other._outside)
        return merged

    def save(self, path: Any) -> None:
        """Write the accumulator to a file ending in `.npz`, completely or not at all.

        Args:
            path: the file.

        Raises:
            UsageError: for another ending, and if the file cannot be written.
        """
        place = _npz(path)
        arrays: dict[str, Any] = {"agreement": self._agreement}
        if self._moments is not None:
            arrays |= self._moments.arrays()
        if self._outside[0]:
            arrays |= {"outside": self._outside[1]}
        if self._classifier is not None:
            arrays |= {"W": self._classifier[0], "b": self._classifier[1]}
        said = {
            "accumulator": FORMAT,
            "classes": self._classes,
            "scatter": self._keeps_scatter,
            "ignored": self._ignored,
            "num_outside": self._outside[0],
        }
        with replacing(place) as temporary, temporary.open("wb") as file:
            np.savez(file, description=np.array(json.dumps(said)), **arrays)

    @classmethod
    def load(cls, path: Any) -> "Accumulator":
        """Read an accumulator that `save` wrote. Nothing in the file is executed.

        Args:
            path: the file.

        Returns:
            The accumulator.

        Raises:
            UsageError: if there is no such file, or it is another kind of file or damaged.
        """
        place = _npz(path)
        if not place.is_file():
            raise UsageError(f"{place} does not exist: give the file that Accumulator.save wrote.")
        try:
            with place.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            said = json.loads(str(arrays.pop("description")))
            if said["accumulator"] != FORMAT:
                raise ValueError
            found = cls(classes=said["classes"], scatter=said["scatter"], ignore_label=said["ignored"] or None)
            found._agreement = arrays.pop("agreement").astype(np.int64)
            if "counts" in arrays:
                found._moments = Moments(arrays["counts"], arrays["means"], arrays["squares"], arrays.get("scatter"))
                found._moments.check(len(found.classes))
            if said["num_outside"]:
                found._outside = (said["num_outside"], arrays["outside"])
            if "W" in arrays:
                found._classifier = checked_classifier(arrays["W"], arrays["b"], found._seen().means.shape)
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UsageError(f"{place} is no saved accumulator, or damaged: save it again.") from error


def _part(matrix: np.ndarray, rows: np.ndarray, part: slice) -> np.ndarray:
    """Some of the rows that count; a view of the matrix if all count."""
    return matrix[part] if len(rows) == len(matrix) else matrix[rows[part]]


def _joined(one: tuple[int, Any], two: tuple[int, Any]) -> tuple[int, Any]:
    """Number and mean of the samples of both."""
    total = one[0] + two[0]
    return (0, 0.0) if total == 0 else (total, one[1] + two[0] / total * (two[1] - one[1]))


def _same(one: tuple[Any, Any] | None, two: tuple[Any, Any] | None) -> bool:
    if one is None or two is None:
        return one is two
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def _npz(path: Any) -> Path:
    place = local_path(path)
    if place.suffix.lower() != ".npz":
        raise UsageError(f"{place} does not end in .npz: give the file this ending.")
    return place

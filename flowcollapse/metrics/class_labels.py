"""Converts class labels in any form (integers, text, pandas, tensors) into class numbers."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .._checks import as_numpy, shown
from .._errors import UsageError

IGNORED_BY_CONVENTION = (-1, -100)
"""Labels that frameworks use for ignored samples."""

MISSING_AS_TEXT = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "nat"})
"""The forms of a missing label as text."""


class Labels(NamedTuple):
    """The rows that are kept, the class of each such row, and the label values of the classes."""

    rows: Int[np.ndarray, " kept"]
    codes: Int[np.ndarray, " kept"]
    classes: tuple[int | str, ...]


def read_labels(labels: Any, num_samples: int, classes: Any, ignore_label: Any, ordered: bool) -> Labels:
    """The class of each sample.

    Args:
        labels: one label per sample: integers (also as floats or booleans) or text.
        num_samples: the expected number of labels.
        classes: the label values in the order of the classes; None means the sorted values that occur, or the
            categories of pandas.
        ignore_label: the label or labels of samples to ignore; NaN means all missing labels.
        ordered: whether the order of the classes matters.

    Raises:
        UsageError: for labels that are missing, of mixed kinds, not among `classes`, or without a clear order.
    """
    values, missing = _values("labels", labels, num_samples)
    if classes is None:
        classes = getattr(labels, "categories", getattr(getattr(labels, "cat", None), "categories", None))
    ignored, missing_ignored = _ignored(ignore_label)
    if missing.any() and not missing_ignored:
        raise UsageError(
            f"labels are missing (NaN, None or NA) in {missing.sum()} of {num_samples} rows, first in row "
            f"{np.argmax(missing)}: remove those rows, or leave them out with ignore_label=float('nan')."
        )
    found, codes = np.unique(values[~missing], return_inverse=True)
    found = found.tolist()
    if classes is None:
        named = [value for value in found if value not in ignored]
    else:
        named = [value for value in _named(classes, found) if value not in ignored]
    kept = set(named)
    for value in found:
        if (classes is None or value not in kept) and value not in ignored and _looks_ignored(value):
            raise UsageError(
                f"labels hold {value!r}, which by convention marks samples that do not count: leave them out with "
                f"ignore_label={value!r}, or make it a class with classes=."
            )
    unknown = [value for value in found if value not in kept and value not in ignored]
    if unknown:
        raise UsageError(
            f"labels hold {_listed(unknown)}, not among classes={_listed(named)}: add them there, or leave their "
            "samples out with ignore_label=."
        )
    if ordered and classes is None:
        _check_order(named)
    number = {value: i for i, value in enumerate(named)} | dict.fromkeys(ignored, -1)
    all_codes = np.full(num_samples, -1)
    all_codes[~missing] = np.array([number[value] for value in found], int)[codes.ravel()]
    rows = np.flatnonzero(all_codes >= 0)
    return Labels(rows, all_codes[rows], tuple(named))


def class_values(classes: Any, ignore_label: Any) -> tuple[tuple[int | str, ...], list[int | str | float]]:
    """The label values of the classes without the ignored ones, and the ignored values; NaN stands for missing labels.

    Raises:
        UsageError: for values of the wrong kind.
    """
    ignored, missing = _ignored(ignore_label)
    named = tuple(value for value in _named(classes, []) if value not in ignored)
    return named, [*sorted(ignored, key=str), *[float("nan")] * missing]


def _values(name: str, labels: Any, num_samples: int) -> tuple[np.ndarray, Bool[np.ndarray, " samples"]]:
    """The labels as integers or text, and a mask of the missing ones (whose values are arbitrary)."""
    array = as_numpy(name, labels)
    if array.dtype.kind in "US" and isinstance(labels, list | tuple):
        array = np.array(labels, dtype=object)  # otherwise a NaN among texts would become the text "nan"
    if array.shape != (num_samples,):
        raise UsageError(f"{name} has shape {array.shape} but features has {num_samples} rows: {_cure(array)}.")
    missing = np.zeros(num_samples, bool)
    if array.dtype.kind == "O":
        missing = np.array([_is_missing(value) for value in array], bool)
        array = _of_one_kind(name, array, missing)
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        missing = missing | np.isnan(array)
        broken = array[~missing & ~((np.abs(array) < 2**53) & (array == np.round(array)))]
        if broken.size:
            raise UsageError(f"{name} must be integers or text, got {broken[0]}: name the class of each sample.")
        array = np.where(missing, 0, array).astype(np.int64)
    if array.dtype.kind not in "biuUS":
        raise UsageError(f"{name} must be integers or text, got dtype {array.dtype}: convert them.")
    alike = {"b": np.int64, "S": np.str_}.get(array.dtype.kind, array.dtype)
    return array.astype(alike), missing


def _cure(array: np.ndarray) -> str:
    if array.ndim == 2 and array.shape[1] == 1:
        return "give one label a row, as labels.ravel() does"
    one_hot = array.ndim == 2
    return "give one label a row" + ", as np.argmax(labels, axis=1) does if each row marks its class" * one_hot


def _is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or NA or NaT of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or _is_nan(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and bool(np.isnan(value))


def _of_one_kind(name: str, array: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Objects as numbers or as text; all that are not missing must be of the same kind."""
    there = [value.decode() if isinstance(value, bytes) else value for value in array[~missing]]
    text = [isinstance(value, str) for value in there]
    number = [isinstance(value, int | float | np.number | np.bool_) for value in there]
    if not (all(text) or all(number)):
        wrong = next((v for v, t, n in zip(there, text, number, strict=True) if not (t or n)), None)
        such = f"{wrong!r}" if wrong is not None else "both"
        raise UsageError(f"{name} must be integers or text, all of one kind, got {such}: convert them first.")
    known = np.array(there) if there else np.zeros(0, np.int64)
    values = np.zeros(array.shape, known.dtype)
    values[~missing] = known
    return values


def _ignored(ignore_label: Any) -> tuple[set[int | str], bool]:
    """The ignored labels, and whether missing labels are ignored too."""
    if ignore_label is None:
        return set(), False
    several = isinstance(ignore_label, Iterable) and not isinstance(ignore_label, str | bytes)
    given = list(ignore_label) if several and getattr(ignore_label, "ndim", 1) > 0 else [ignore_label]
    ignored, missing = set(), False
    for one in given:
        value, is_missing = _values("ignore_label", [one], 1)
        missing |= bool(is_missing[0])
        ignored |= set() if is_missing[0] else set(value.tolist())
    return ignored, missing


def _named(classes: Any, found: list[int | str]) -> list[int | str]:
    """The values of the classes, in the order given."""
    if isinstance(classes, set | frozenset):
        raise UsageError(f"classes={classes!r} is a set, which has no order: pass a list.")
    try:
        given = None if isinstance(classes, str | bytes) else list(classes)
    except TypeError:  # some arrays only look iterable
        given = None
    if given is None:
        raise UsageError(
            f"classes must be the label values in the order of W's rows, got {shown(classes)}: pass a list, or "
            "range(10)."
        )
    values, missing = _values("classes", given, len(given))
    named = values.tolist()
    if missing.any() or len(set(named)) < len(named):
        wrong = "a missing value" if missing.any() else "a value twice"
        raise UsageError(f"classes={_listed(given)} holds {wrong}: give each label value once.")
    if found and named and isinstance(found[0], str) != isinstance(named[0], str):
        kinds = ("text", "numbers") if isinstance(found[0], str) else ("numbers", "text")
        raise UsageError(f"labels are {kinds[0]} but classes are {kinds[1]}, {_listed(named)}: give both alike.")
    return named


def _looks_ignored(value: int | str) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in MISSING_AS_TEXT | {str(n) for n in IGNORED_BY_CONVENTION}
    return value in IGNORED_BY_CONVENTION


def _check_order(named: list[int | str]) -> None:
    """Raise `UsageError` if sorting the texts and sorting the numbers in them give different orders."""
    if named and isinstance(named[0], str) and sorted(named, key=_natural) != named:
        raise UsageError(
            f"labels are text whose order, {_listed(named)}, is not that of the numbers in it: pass classes=, the "
            "label of each row of W, or integer labels."
        )


def _natural(text: Any) -> tuple:
    """A key that sorts texts by the numbers in them."""
    try:
        return (float(text),)
    except ValueError:
        return tuple((0, float(part), "") if part.isdigit() else (1, 0.0, part) for part in re.split(r"(\d+)", text))


def _listed(values: list) -> str:
    return f"[{', '.join(map(repr, values[:6]))}{', ...' if len(values) > 6 else ''}]"

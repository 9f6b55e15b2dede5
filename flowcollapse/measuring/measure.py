"""Measures collapse in the features that a training run has left in files, one file an epoch or a layer."""

import contextlib
import dataclasses
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from .._checks import as_numpy, check_choice, check_flag, shown
from .._errors import UsageError
from ..metrics.accumulator import Accumulator
from ..metrics.class_labels import class_values, read_labels
from ..metrics.registry import METRICS, asked_names
from ..results.provenance import precision, versions
from .files import ROLES, Arrays, open_arrays
from .table import AXES


@dataclasses.dataclass(frozen=True)
class Item:
    """The features of one epoch or layer: an array of a file, labels, classifier, and the value on the axis."""

    arrays: Arrays
    name: str
    value: int | str | None
    labels: np.ndarray
    classifier: tuple[Any, Any] | None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The features and labels, block by block."""
        start = 0
        for block in self.arrays.blocks(self.name):
            yield block, self.labels[start : start + len(block)]
            start += len(block)
        if start != len(self.labels):
            raise UsageError(
                f"labels has {len(self.labels)} entries but features has {start} rows: give one label a row."
            )


def measure(
    files: Any,
    labels: Any = None,
    *,
    classifier: Any = None,
    ood: Any = None,
    by: Any = "epoch",
    arrays: Any = None,
    classes: Any = None,
    ignore_label: Any = None,
    metrics: Any = None,
    two_passes: Any = True,
    progress: Any = False,
) -> xr.Dataset:
    """Collapse metrics of features in files, one file an epoch or a layer, which may be larger than memory.

    Files are `.npz`, `.npy`, `.csv`, `.h5`, `.zarr`, and with the extra `files` also `.parquet` and `.safetensors`.
    Arrays are found by their names, without folders and case: `features` (or embeddings, activations, h, x), `labels`
    (label, targets, y), `W` (weight) and `b` (bias). In a table every column is a feature, apart from that of the
    labels. Features of more than two axes are flattened, see `fc.metrics.Accumulator`.

    Args:
        files: a path, or several.
        labels: labels for files without: a path, one for each file, or an array of shape (samples,). The default is
            each file's own.
        classifier: `W`, `(W, b)`, or a path, one for each file, of a file that holds them; for layers that of the last.
            The default is each file's own.
        ood: features of samples outside all classes, or a path, for `nc5`.
        by: `"epoch"` or `"layer"`. The epoch is the array `epoch` of a file, or else the last number in its name, or
            else its place; the name of a layer is that of its file. One file may hold an array for each layer.
        arrays: names of arrays that are not found by name, as `{"features": "layer4", "labels": "digit"}`.
        classes: as in `fc.metrics.from_features`; the default is all labels in all files.
        ignore_label: the label or labels of samples to leave out; NaN means missing labels.
        metrics: names from the table of `fc.metrics`. Default: all that are a single number, are not costly, and have
            the data they need; and `nc1_class`.
        two_passes: whether to read everything twice, which `nc4` and `ncc_error` need.
        progress: whether to show a progress bar on standard error.

    Returns:
        A Dataset over `epoch` or `layer`, and `class` and `other` for metrics of classes and pairs, with the counts of
        the classes. A metric that an epoch or a layer lacks is NaN there.

    Raises:
        UsageError: for files that do not exist, are of another kind, damaged or empty, hold pickles, or need a package
            that is missing; for arrays that are missing or do not fit each other; and as `from_features`.

    Source: see the table of `fc.metrics`.

    Example:
        >>> import numpy, pathlib, tempfile, flowcollapse as fc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for epoch in (1, 10):
        ...         features = numpy.repeat(numpy.eye(3), 4, axis=0) + numpy.random.normal(size=(12, 3)) / epoch
        ...         numpy.savez(f"{folder}/epoch{epoch}.npz", features=features, labels=numpy.arange(12) // 4)
        ...     found = fc.measure(pathlib.Path(folder).glob("*.npz"))
        >>> found["epoch"].values.tolist()
        [1, 10]
    """
    check_choice("by", by, AXES)
    check_flag("two_passes", two_passes)
    check_flag("progress", progress)
    named = _names(arrays)
    opened = [open_arrays(path) for path in _paths(files)]
    if not opened:
        raise UsageError("files is empty: give at least one file with features.")
    names = None if metrics is None else asked_names(metrics)
    items = _items(opened, labels, classifier, by, named)
    known = _classes(items, classes, ignore_label)
    outside = None if ood is None else _outside(ood)
    found = [
        _measured(item, known, ignore_label, outside, _for(item, items, names), two_passes)
        for item in _watched(items, progress, by)
    ]
    return _dataset(items, found, known, by)


# ---- what is measured


def _names(arrays: Any) -> dict[str, str]:
    if arrays is None:
        return {}
    wrong = not isinstance(arrays, Mapping) or not all(isinstance(one, str) for pair in arrays.items() for one in pair)
    if wrong or set(arrays) - set(ROLES):
        raise UsageError(
            f"arrays must name arrays for {', '.join(ROLES)}, got {shown(arrays)}: give a dictionary such as "
            '{"features": "layer4"}.'
        )
    return dict(arrays)


def _paths(places: Any) -> list[Any]:
    if isinstance(places, str | Path):
        return [places]
    with contextlib.suppress(TypeError):
        listed = sorted(places, key=_natural) if isinstance(places, set | frozenset) else list(places)
        if not isinstance(places, bytes | Mapping):
            return listed
    raise UsageError(f"files must be a path or several, got {shown(places)}: give texts or pathlib.Paths.")


def _natural(path: Any) -> tuple[Any, ...]:
    """A key that sorts names by the numbers in them."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path)))


def _items(opened: list[Arrays], labels: Any, classifier: Any, by: str, named: dict[str, str]) -> list[Item]:
    """The features of every epoch or layer, in order."""
    of_labels = _given("labels", labels, len(opened))
    of_classifier = _given("classifier", classifier, len(opened))
    items = []
    for arrays, given, rows in zip(opened, of_labels, of_classifier, strict=True):
        marks = _own(arrays, "labels", named) if given is None else as_numpy("labels", _from(given, "labels"))
        if marks is None:
            raise UsageError(
                f"{arrays.path} holds no labels, only {', '.join(arrays.names)}: pass labels=, or name the array with "
                "arrays={'labels': ...}, or --arrays labels=NAME."
            )
        if marks.ndim == 0:
            raise UsageError(f"labels must be one label a row, got {shown(given)}: give a list, an array or a path.")
        layers = _layers(arrays, named, marks, by, alone=len(opened) == 1)
        for name in layers:
            value = name if len(layers) > 1 else arrays.path.stem if by == "layer" else _epoch(arrays, named)
            items.append(Item(arrays, name, value, marks, _classifier(arrays, rows, named)))
    if by == "layer":  # the classifier reads the last layer
        items = [dataclasses.replace(item, classifier=None) for item in items[:-1]] + items[-1:]
    values = [item.value for item in items]
    if by == "epoch" and (None in values or len(set(values)) < len(values)):
        return [dataclasses.replace(item, value=i) for i, item in enumerate(items)]
    if len(set(values)) < len(values):
        raise UsageError(f"files have names that repeat, {shown(values)}: give each layer's file a different name.")
    return sorted(items, key=lambda item: item.value) if by == "epoch" else items


def _given(argument: str, value: Any, count: int) -> list[Any]:
    """A value for each file: the same for all, or one each if several paths are given."""
    paths = isinstance(value, Sequence) and value and all(isinstance(one, Path) or _is_path(one) for one in value)
    if isinstance(value, str) or not paths:
        return [value] * count
    if len(value) not in (1, count):
        raise UsageError(f"{argument} has {len(value)} files for {count} with features: give one, or one for each.")
    return list(value) if len(value) == count else [value[0]] * count


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(Path(value).suffix)


def _from(given: Any, role: str) -> Any:
    """An array that is given, or that is in the file whose path is given."""
    if not isinstance(given, str | Path):
        return given
    arrays = open_arrays(given, role)
    name = arrays.find(role) or (arrays.names[0] if len(arrays.names) == 1 else None)
    if name is None:
        raise UsageError(
            f"{arrays.path} holds no array for {role}, only {', '.join(arrays.names)}: name it {ROLES[role][0]!r}."
        )
    found = arrays.whole(name)
    return found[:, 0] if role == "labels" and found.ndim == 2 and found.shape[1] == 1 else found  # a table of labels


def _own(arrays: Arrays, role: str, named: dict[str, str]) -> np.ndarray | None:
    name = arrays.find(role, named.get(role))
    return None if name is None else arrays.whole(name)


def _layers(arrays: Arrays, named: dict[str, str], marks: np.ndarray, by: str, alone: bool) -> list[str]:
    """The names of the arrays with features: one, or for layers in a single file each matrix with a row a label."""
    name = arrays.find("features", named.get("features"))
    if name is not None:
        return [name]
    others = {arrays.find(role, named.get(role)) for role in ("labels", "W", "b", "epoch")}
    left = [one for one in arrays.names if one not in others]
    rows = [one for one in left if len(arrays.shape(one)) > 1 and arrays.shape(one)[0] == len(marks)]
    if by == "layer" and alone and rows:
        return rows
    if len(left) != 1:
        raise UsageError(
            f"{arrays.path} holds no array called features, but {', '.join(left) or 'labels alone'}: name it with "
            "arrays={'features': ...}, or --arrays features=NAME."
        )
    return left


def _epoch(arrays: Arrays, named: dict[str, str]) -> Any:
    found = _own(arrays, "epoch", named)
    if found is not None and found.size == 1:
        return int(found.item())
    numbers = re.findall(r"\d+", arrays.path.stem)
    return int(numbers[-1]) if numbers else None


def _classifier(arrays: Arrays, given: Any, named: dict[str, str]) -> tuple[Any, Any] | None:
    """W and b, b None if there is none; None without a classifier."""
    if given is None:
        W = _own(arrays, "W", named)
        return None if W is None else (W, _own(arrays, "b", named))
    if isinstance(given, str | Path):
        opened = open_arrays(given, "classifier")
        bias = opened.find("b")
        return _from(given, "W"), None if bias is None else opened.whole(bias)
    return (given[0], given[1]) if isinstance(given, tuple) and len(given) == 2 else (given, None)


def _classes(items: list[Item], classes: Any, ignore_label: Any) -> tuple[int | str, ...]:
    """The label values of all classes."""
    found: set[int | str] = set()
    for item in items:
        if not len(item.labels):
            raise UsageError(f"{item.arrays.path} holds no samples: give a row and a label for each.")
    for marks, item in {id(item.labels): (item.labels, item) for item in items}.values():
        with _in_file(item):
            found |= set(
                read_labels(marks, len(marks), classes, ignore_label, ordered=item.classifier is not None).classes
            )
    if classes is not None:
        return class_values(classes, ignore_label)[0]
    if len({isinstance(one, str) for one in found}) > 1:
        raise UsageError("labels are text in some files and numbers in others: give all alike.")
    if len(found) < 2:
        raise UsageError(
            f"labels hold only {shown(sorted(found))}, and collapse needs 2 classes: add samples of others."
        )
    return tuple(sorted(found))  # type: ignore[type-var]  # all of one kind


def _outside(ood: Any) -> Any:
    """Blocks of features outside the classes."""
    if not isinstance(ood, str | Path):
        return [ood]
    arrays = open_arrays(ood, "ood")
    name = arrays.find("features") or arrays.names[0]
    return list(arrays.blocks(name))


# ---- measuring


@contextlib.contextmanager
def _in_file(item: Item) -> Iterator[None]:
    """Errors in the body name the file."""
    path = item.arrays.path
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # each library raises its own kinds
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UsageError(f"{path} cannot be read to its end, {reason}: write it again.") from error


def _watched(items: list[Item], progress: bool, by: str) -> Iterable[Item]:
    if not progress or len(items) == 1:
        return items
    from tqdm import tqdm

    return tqdm(items, unit=f" {by}s", leave=False)


def _for(item: Item, items: list[Item], names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The requested metrics of an item: those of the classifier only where there is one, if any item has one."""
    if names is None or item.classifier is not None or all(one.classifier is None for one in items):
        return names
    return tuple(name for name in names if "classifier" not in (METRICS[name].of_features or ()))


def _measured(
    item: Item, classes: tuple[int | str, ...], ignore_label: Any, outside: Any, metrics: Any, two_passes: bool
) -> dict[str, Any]:
    """The metrics of one epoch or layer, and the counts of the classes."""
    with _in_file(item):
        accumulator = Accumulator(classes=classes, ignore_label=ignore_label)
        for block, marks in item.blocks():
            accumulator.update(block, marks)
        for block in outside or ():
            accumulator.update_ood(block)
        W, b = item.classifier or (None, None)
        if two_passes:
            for block, marks in item.blocks():
                accumulator.update_agreement(block, marks, W, b)
        if metrics is None:
            found = accumulator.result(W, b) | accumulator.result(W, b, metrics="nc1_class")
        else:
            found = accumulator.result(W, b, metrics=metrics)
        counts = accumulator.counts
    spread = {name: _over_all(value, counts) if METRICS[name].axes else value for name, value in found.items()}
    return spread | {"counts": counts, "num_features": accumulator.means.shape[1]}


def _over_all(values: Any, counts: np.ndarray) -> np.ndarray:
    """Values of the classes that occur, with NaN for the others."""
    full = np.full((len(counts),) * values.ndim, np.nan)
    full[np.ix_(*[np.flatnonzero(counts)] * values.ndim)] = values
    return full


def _dataset(items: list[Item], found: list[dict[str, Any]], classes: tuple[int | str, ...], by: str) -> xr.Dataset:
    names = list(dict.fromkeys(name for one in found for name in one))
    data: dict[str, Any] = {}
    for name in names:
        metric = METRICS.get(name)
        axes = ("class",) if name == "counts" else metric.axes if metric else ()
        empty = np.full((len(classes),) * len(axes), np.nan)
        values = np.array([one.get(name, empty) for one in found])
        if name in ("counts", "num_features"):
            said = {"counts": "samples of each class", "num_features": "features"}[name]
        else:
            said = METRICS[name].long_name
        data[name] = ((by, *axes), values, {"long_name": said, "units": "1"})
    coords = {by: [item.value for item in items], "class": list(classes)}
    if any("other" in values[0] for values in data.values()):
        coords["other"] = list(classes)
    attributes = {
        "title": "flowcollapse measurement",
        "files": json.dumps(list(dict.fromkeys(str(item.arrays.path) for item in items))),
        "versions": json.dumps(versions()),
        "num_classes": len(classes),
        "samples_per_class": json.dumps(found[-1]["counts"].tolist()),
        "precision": precision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return xr.Dataset(data, coords, attributes)

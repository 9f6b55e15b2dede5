"""A sweep on disk: a zarr store that any zarr reader opens. A lane counts as written only once its verdict exists.

The grid is cut into boxes, and each variable has one chunk per box. Chunks are written whole or not at all, with a
checksum, and the verdict comes last. A sweep grows by lengthening its arrays; the chunks keep their sides. The file
with the lengths is replaced last, so that a sweep has either grown or not. Nothing in a store is ever executed.
"""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import UsageError
from .._files import check_writable, local_path, parents_of
from ..results.labels import MISSING
from ..results.provenance import provenance
from .dataset import empty_dataset
from .grid import Task
from .identity import configuration
from .lane import Plan

if TYPE_CHECKING:
    import xarray as xr

GROUP = "zarr.json"
"""The file that says what a store holds, and how long its axes are."""

MARK = "verdict"
"""The variable whose chunks are written last: a lane is complete once it holds a code here."""

FORMAT = "flowcollapse sweep 2"

FORMATS = ("flowcollapse sweep 1", FORMAT)
"""Formats that can be read. Only the last one can be written."""

CHECKSUM = 4
"""Bytes that the checksum adds to a chunk."""


class Store:
    """A store opened for writing.

    Args:
        path: the folder, made by `create`.
    """

    def __init__(self, path: Path):
        import zarr

        self.path = path
        metadata = arrays_of(path)
        names = [name for name in attributes(path)["variables"] if name != MARK]
        with zarr.config.set({"array.write_empty_chunks": True}):
            self.arrays: dict[str, Any] = {name: _array(path, name, metadata[name]) for name in (*names, MARK)}
        self.sides = tuple(self.arrays[MARK].chunks)

    @staticmethod
    def create(path: Path, plan: Plan, sides: tuple[int, ...]) -> None:
        """Make an empty store of a sweep, whole or not at all.

        Raises:
            UsageError: if it cannot be written.
        """
        from zarr.codecs import Crc32cCodec

        dataset = empty_dataset(plan, sides)
        dataset.attrs = provenance(plan.grid.model, plan.grid.method, title="flowcollapse sweep") | {
            "format": FORMAT,
            "sweep": json.dumps(configuration(plan)),
            "variables": list(dataset.data_vars),
        }
        encoding = {
            name: {
                "chunks": tuple(max(1, side) for side in (*sides, *values.shape[len(sides) :])),
                "compressors": (Crc32cCodec(),),
                "fill_value": MISSING if values.dtype.kind == "i" else np.nan,
            }
            for name, values in dataset.data_vars.items()
        }
        with _told(path), parents_of(path):
            part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                with warnings.catch_warnings():  # consolidated metadata, so that xarray opens a store without a warning
                    warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
                    dataset.to_zarr(part, mode="w", compute=False, encoding=encoding, zarr_format=3, consolidated=True)
                part.chmod(0o777 & ~_umask())
                if path.is_dir():  # an empty folder: some systems refuse to replace it
                    path.rmdir()
                os.replace(part, path)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    @staticmethod
    def grow(path: Path, plan: Plan) -> None:
        """Make room for more values of the axes. If interrupted at any moment, the store has either grown or not.

        Args:
            path: the store, locked by this process.
            plan: the sweep that the store will hold; on each axis, the values already in the store come first.

        Raises:
            UsageError: if it cannot be written.
        """
        wanted = configuration(plan)
        group = _group(path)
        arrays, dataset = group["consolidated_metadata"]["metadata"], empty_dataset(plan, Store(path).sides)
        grown = {name: it for name, it in dataset.variables.items() if arrays[name]["shape"] != list(it.shape)}
        with _told(path):
            for name, values in grown.items():
                arrays[name]["shape"] = list(values.shape)
                if name in dataset.coords:  # beyond the old end, which readers still see until the last file changes
                    _array(path, name, arrays[name])[...] = values.values
            for name in grown:
                _replace(path / str(name) / GROUP, arrays[name])
            group["attributes"]["sweep"] = json.dumps(wanted)
            _replace(path / GROUP, group)

    def write(self, task: Task, variables: Mapping[str, np.ndarray]) -> None:
        """Write the variables of a task, keep the lanes that its chunks already hold, and write the mark last.

        Args:
            task: the task.
            variables: arrays by name, whose leading axis is the lanes in the order of the box.

        Raises:
            UsageError: if they cannot be written; the previous content stays.
        """
        begun = self._chunks(MARK, task)[0].exists()
        with _told(self.path):
            for name, array in self.arrays.items():
                if task.lanes is None:
                    put(array, task, variables[name])
                    continue
                fill = MISSING if array.dtype.kind == "i" else np.nan
                box = (*task.shape, *array.shape[len(task.shape) :])
                whole = self._held(name, task) if begun else np.full(box, fill, array.dtype)
                put(whole, Task(0, tuple(map(slice, [0] * len(task.shape), task.shape)), task.lanes), variables[name])
                array[task.box] = whole

    def _held(self, name: str, task: Task) -> np.ndarray:
        """The values of a box that are already on disk."""
        try:
            return self.arrays[name][task.box]
        except ValueError as error:  # the checksum does not match
            raise self._damage(self._chunks(name, task)[0], str(error), task) from None

    def _damage(self, chunk: Path, fault: str, task: Task) -> UsageError:
        return UsageError(
            f"{chunk} is damaged: {fault.rstrip('.')}. Delete {self._chunks(MARK, task)[0]} and run the same command "
            "again: it recomputes this chunk and keeps all others."
        )

    def missing(self, task: Task) -> np.ndarray:
        """Which lanes of a box have not been written, in the shape of the box.

        Raises:
            UsageError: if another variable's chunk is missing or does not have the length it was written with.
        """
        mark = self._chunks(MARK, task)[0]
        try:
            content = mark.read_bytes()
        except FileNotFoundError:
            return np.full(task.shape, True)
        for name, array in self.arrays.items():
            wanted = int(np.prod(array.chunks)) * array.dtype.itemsize + CHECKSUM
            chunks = self._chunks(name, task)
            for number, chunk in enumerate(chunks):
                found = chunk.stat().st_size if chunk.exists() else 0
                # The first chunk always exists; the others exist only if the box was written after the states grew.
                if found != wanted and (found or number == 0):
                    raise self._damage(chunk, f"it has {found} bytes, not {wanted}", task)
        codes = np.frombuffer(content[:-CHECKSUM], self.arrays[MARK].dtype).reshape(self.sides)
        return codes[tuple(map(slice, task.shape))] == MISSING

    def _chunks(self, name: str, task: Task) -> list[Path]:
        """The chunks of a variable that cover a box: several if the states have grown."""
        array = self.arrays[name]
        position = [side.start // length for side, length in zip(task.box, self.sides, strict=True)]
        parts = zip(array.shape[len(position) :], array.chunks[len(position) :], strict=True)
        tails = itertools.product(*(range(-(-length // side)) for length, side in parts))
        return [self.path.joinpath(name, "c", *map(str, (*position, *tail))) for tail in tails]


def put(array: Any, task: Task, values: np.ndarray) -> None:
    """Put the values of a task's lanes into their box of an array, padded with NaN to the array's shape."""
    axes = len(task.box)
    missing = [(0, whole - have) for whole, have in zip(array.shape[axes:], values.shape[1:], strict=True)]
    if any(after for _, after in missing):
        values = np.pad(values, [(0, 0), *missing], constant_values=np.nan)
    if task.lanes is None:
        array[task.box] = values.reshape(*task.shape, *values.shape[1:])
    else:
        places = np.unravel_index(task.lanes, task.shape)
        array[tuple(side.start + place for side, place in zip(task.box, places, strict=True))] = values


def check_place(path: Path) -> None:
    """Make sure that a sweep can be written to `path`: a new folder, an empty one, or the store of a sweep.

    Raises:
        UsageError: if it cannot.
    """
    if path.exists() and not _is_empty(path):
        check_layout(path)
    else:
        check_writable(path / GROUP if path.is_dir() else path)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store, or of a copy that xarray has written.

    Raises:
        UsageError: if it is not the store of a sweep.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist: give the path of a sweep's store.")
    if path.is_file():
        raise UsageError(f"{path} is a file, and the store of a sweep is a folder: open a netCDF file with xarray.")
    found = _group(path).get("attributes", {}) or _json(path / ".zattrs")
    if found.get("format") in FORMATS:
        return found
    if str(found.get("format")).startswith("flowcollapse sweep"):
        raise UsageError(f"{path} was written by {_version(found)}, which is newer: open it with that version.")
    raise UsageError(f"{path} is not the store of a flowcollapse sweep: give the path of one, or of a new folder.")


def _group(path: Path) -> dict[str, Any]:
    return _json(path / GROUP)


def _json(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing or holds anything else."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def _version(found: Mapping[str, Any]) -> str:
    try:
        return f"flowcollapse {json.loads(found['versions'])['flowcollapse']}"
    except (KeyError, ValueError, TypeError):
        return "another version of flowcollapse"


def arrays_of(path: Path) -> dict[str, Any]:
    """The consolidated metadata of a store's arrays; the files in the arrays' own folders do not count."""
    return _group(path).get("consolidated_metadata", {}).get("metadata", {})


def check_layout(path: Path) -> None:
    """Make sure that a store can be extended: this version can write it, and no other program has re-chunked it.

    Raises:
        UsageError: if it cannot.
    """
    found = attributes(path)
    if found["format"] != FORMAT:
        raise UsageError(
            f"{path} was written by {_version(found)}, in a format that fc.open_sweep can read but no sweep can "
            "extend: give a new store."
        )
    arrays = arrays_of(path)
    lengths = [len(values) for values in configuration_of(path)["axes"].values()]
    sides = {json.dumps(_chunks_of(arrays.get(name, {}))[: len(lengths)]) for name in found["variables"]}
    for name in found["variables"]:
        array = arrays.get(name, {})
        codecs = [codec["name"] for codec in array.get("codecs", [])]
        fill = MISSING if array.get("data_type", "").startswith("int") else "NaN"
        own = (
            codecs == ["bytes", "crc32c"] and array["fill_value"] == fill and array["shape"][: len(lengths)] == lengths
        )
        if not own or len(sides) > 1:
            raise UsageError(
                f"{path} is a copy that another program has re-chunked ({name} has other chunks or codecs): "
                "it can be read but not added to. Resume the original, or copy its folder as it is, as cp -r does."
            )


def configuration_of(path: Path) -> dict[str, Any]:
    """The configuration of the sweep that a store holds."""
    return json.loads(attributes(path)["sweep"])


def _array(path: Path, name: Any, metadata: dict[str, Any]) -> Any:
    """An array of a store, opened with this metadata rather than with the metadata in the array's folder."""
    from zarr import Array
    from zarr.storage import LocalStore, StorePath

    return Array.from_dict(StorePath(LocalStore(path), name), metadata)


def _chunks_of(array: Mapping[str, Any]) -> list[int]:
    return array.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", [])


def _replace(file: Path, content: Any) -> None:
    """Write a file as JSON, whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2))
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from writing to a store. The lock ends with the process, even after a crash.

    Raises:
        UsageError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / MARK / ".lock", timeout=0)  # here, programs that list the store's variables skip it
    with _told(path):
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{path} is being written to by another process: wait until it ends, or give another store."
            ) from None
    try:
        yield
    finally:
        lock.release()


def open_sweep(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Open the dataset of a sweep's store, finished or not.

    Values are read from disk when they are used.

    Args:
        path: the folder of the store.

    Returns:
        The Dataset that `fc.sweep` returns. Lanes that have not run are NaN, and -1 in integers; the verdict calls them
        `missing`.

    Raises:
        UsageError: if `path` does not exist or is not the store of a sweep.

    Example:
        >>> import tempfile, flowcollapse as fc
        >>> fc.enable_x64()
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = folder + "/a.zarr"
        ...     _ = fc.sweep(model, fc.Flow(), eps=[0.1], seeds=2, ts=2, metrics=["snc1"], store=path, progress=False)
        ...     int((fc.open_sweep(path).verdict == 0).sum())
        2
    """
    import xarray as xr

    path = local_path(path)
    attributes(path)
    consolidated = bool(arrays_of(path)) or (path / ".zmetadata").exists()
    dataset = xr.open_zarr(path, consolidated=consolidated)
    if MARK not in dataset:
        raise UsageError(f"{path} is a copy without the variable {MARK!r}, which says what has run: copy all of it.")
    complete = dataset[MARK] != MISSING
    believed = {
        name: values if name == MARK else values.where(complete, MISSING if values.dtype.kind == "i" else np.nan)
        for name, values in dataset.data_vars.items()
    }
    return dataset.assign(believed).drop_encoding()  # so that the dataset can be saved again in any format


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn failures of the file system into a `UsageError` that says which results are safe."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot write {path} ({reason}). All finished lanes are kept: make room, or give another place, and "
            "run the same command again."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

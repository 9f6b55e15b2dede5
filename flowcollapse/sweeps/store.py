"""A sweep on disk: a zarr store that opens anywhere, holds what has run, and is believed only where a mark says so.

Each task of a sweep is one chunk of each variable. Chunks are written whole or not at all, with a checksum, the verdict
last: its chunk is the mark that the task is complete. Nothing in a store is ever executed.
"""

import contextlib
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
from .._files import check_writable
from ..provenance import options, precision, provenance
from .grid import Task
from .lanes import MISSING, Plan, empty_dataset

if TYPE_CHECKING:
    import xarray as xr

MARK = "verdict"
"""The variable whose chunk, written last, says that a task is complete."""

FORMAT = "flowcollapse sweep 1"

CHECKSUM = 4
"""Bytes that the checksum adds to a chunk."""


class Store:
    """A store opened to be written to.

    Args:
        path: the folder, which `create` has made.
    """

    def __init__(self, path: Path):
        import zarr

        self.path = path
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(path, mode="r+")
            names = [name for name in group.attrs["variables"] if name != MARK]  # type: ignore[union-attr]
            self.arrays: dict[str, Any] = {name: group[name] for name in (*names, MARK)}
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
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                with warnings.catch_warnings():  # consolidated metadata, with which xarray opens a store without a word
                    warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
                    dataset.to_zarr(part, mode="w", compute=False, encoding=encoding, zarr_format=3, consolidated=True)
                part.chmod(0o777 & ~_umask())
                os.replace(part, path)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def write(self, task: Task, variables: Mapping[str, np.ndarray]) -> None:
        """The variables of a task, lanes in front in the box's order; the mark last.

        Raises:
            UsageError: if they cannot be written; what was there stays.
        """
        with _told(self.path):
            for name, array in self.arrays.items():
                put(array, task, variables[name])

    def is_complete(self, task: Task) -> bool:
        """Whether the mark of a task is there.

        Raises:
            UsageError: if it is, but a chunk of the task is missing or has another length than it was written with.
        """
        if not self._chunk(MARK, task).exists():
            return False
        for name, array in self.arrays.items():
            chunk = self._chunk(name, task)
            wanted = int(np.prod(array.chunks)) * array.dtype.itemsize + CHECKSUM
            found = chunk.stat().st_size if chunk.exists() else 0
            if found != wanted:
                raise UsageError(
                    f"{chunk} is damaged: it has {found} bytes, not {wanted}. Delete {self._chunk(MARK, task)} and run "
                    "the same command again: it computes this chunk anew, and keeps all others."
                )
        return True

    def _chunk(self, name: str, task: Task) -> Path:
        position = [side.start // length for side, length in zip(task.box, self.sides, strict=True)]
        position += [0] * (self.arrays[name].ndim - len(position))
        return self.path.joinpath(name, "c", *map(str, position))


def put(array: Any, task: Task, values: np.ndarray) -> None:
    """The values of a task's lanes into their box of an array; what is shorter than the array is filled up."""
    values = values.reshape(*task.shape, *values.shape[1:])
    missing = [
        (0, whole - have)
        for whole, have in zip(array.shape[len(task.box) :], values.shape[len(task.box) :], strict=True)
    ]
    if any(after for _, after in missing):
        values = np.pad(values, [(0, 0)] * len(task.box) + missing, constant_values=np.nan)
    array[task.box] = values


def configuration(plan: Plan) -> dict[str, Any]:
    """All that decides the numbers of a sweep, as plain values.

    Raises:
        UsageError: if it holds what has no name, so that another run could not know whether it is the same.
    """
    from ..descent import Descent

    method = plan.grid.method
    if isinstance(method, Descent) and not method.by_name:
        raise UsageError(
            f"{method.label} is a ready optimizer, which a store cannot describe: name it instead, as in "
            'fc.Descent("sgd", num_steps=1000, learning_rate=0.05).'
        )
    return {
        "model": options(plan.grid.model),
        "method": {"name": method.name} | options(method),
        "axes": {name: list(values) for name, values in plan.grid.axes.items()},
        "start": plan.start,
        "ts": plan.ts,
        "metrics": list(plan.metrics),
        "keep_final": plan.keep_final,
        "precision": precision(),
    }


def check_place(path: Path) -> None:
    """Make sure that a sweep can be written to `path`: a new folder, an empty one, or the store of a sweep.

    Raises:
        UsageError: if it cannot.
    """
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists():
        attributes(path)
    else:
        check_writable(path)


def check_same(path: Path, plan: Plan) -> None:
    """Make sure that a store was made for this sweep.

    Raises:
        UsageError: if it was not, with the differences.
    """
    found = json.loads(attributes(path)["sweep"])
    wanted = json.loads(json.dumps(configuration(plan)))
    differences = list(_differences("", found, wanted))
    if differences:
        raise UsageError(
            f"{path} holds another sweep: {'; '.join(differences)}. Give the same options to resume it, or a new store."
        )


def _differences(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _differences(f"{name}.{key}".lstrip("."), found.get(key), wanted.get(key))
    elif found != wanted:
        yield f"{name} is {_short(found)} there and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"


def attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store.

    Raises:
        UsageError: if it is not the store of a sweep.
    """
    try:
        found = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        found = {}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UsageError(f"{path} is not the store of a flowcollapse sweep: give the path of one, or of a new folder.")
    return found


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from writing to a store. The lock ends with the process, however that ends.

    Raises:
        UsageError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path / MARK / ".lock", timeout=0)  # where nothing that lists the store's variables stumbles over it
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


def open_sweep(path: str | Path) -> "xr.Dataset":
    """The dataset of a sweep's store, finished or not, read from disk only where it is used.

    Args:
        path: the folder of the store.

    Returns:
        The Dataset that `fc.sweep` returns. Lanes that have not run are NaN, and -1 in integers; the verdict calls them
        `missing`.

    Raises:
        UsageError: if `path` is not the store of a sweep.

    Example:
        >>> import tempfile, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = folder + "/a.zarr"
        ...     _ = fc.sweep(model, fc.Flow(), eps=[0.1], seeds=2, ts=2, metrics=["snc1"], store=path, progress=False)
        ...     int((fc.open_sweep(path).verdict == 0).sum())
        2
    """
    import xarray as xr

    path = Path(path)
    attributes(path)
    dataset = xr.open_zarr(path)
    complete = dataset[MARK] != MISSING
    believed = {
        name: values if name == MARK else values.where(complete, MISSING if values.dtype.kind == "i" else np.nan)
        for name, values in dataset.data_vars.items()
    }
    return dataset.assign(believed)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Failures of the file system as a `UsageError` that says what is kept."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot write {path}: {reason}. Whatever was finished is kept: make room, or give another place, and run "
            "the same command again."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

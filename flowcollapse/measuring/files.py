"""The arrays of a file, read block by block, so that files may be larger than memory. Nothing in a file is executed.

To read another kind of file, add a class to `FORMATS`.
"""

import abc
import functools
import importlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import UsageError, nearest
from .._files import local_path

BLOCK = 2**21
"""The most numbers in a block."""

ROLES = {
    "features": ("features", "embeddings", "activations", "h", "x"),
    "labels": ("labels", "label", "targets", "target", "y"),
    "W": ("w", "weight", "weights"),
    "b": ("b", "bias", "biases"),
    "epoch": ("epoch", "step"),
}
"""The names under which an array is recognised, without folders, prefixes and case."""

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib")
"""Files whose reading executes what they hold."""


class Arrays(abc.ABC):
    """The arrays of a file, by name. Rows are along the first axis."""

    def __init__(self, path: Path):
        self.path = path

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array."""

    @abc.abstractmethod
    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of an array."""

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """The rows of an array in order, at most `BLOCK` numbers at once."""
        shape = self.shape(name)
        height = height_of(shape)
        return (self.rows(name, start, min(start + height, shape[0])) for start in range(0, shape[0], height))

    def whole(self, name: str) -> np.ndarray:
        """An array as a whole."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0]) if shape else self.rows(name, 0, 1)

    def find(self, role: str, asked: str | None = None) -> str | None:
        """The name of the array for a role, or None if there is none.

        Args:
            role: a key of `ROLES`.
            asked: the name of the array, instead of the usual ones.

        Raises:
            UsageError: if the array that is asked for is not there, or several could be meant.
        """
        if asked is not None:
            if asked in self.names:
                return asked
            cure = f"name one of {', '.join(self.names)}{nearest(asked, self.names) or '.'}"
            raise UsageError(f"{self.path} holds no array {asked!r} for {role}: {cure}")
        for usual in ROLES[role]:
            found = [name for name in self.names if name.replace("/", ".").rpartition(".")[2].lower() == usual]
            if len(found) > 1:
                raise UsageError(
                    f"{self.path} holds several arrays that could be {role}, {', '.join(found)}: name one, as in "
                    f"arrays={{{role!r}: {found[0]!r}}} or --arrays {role}={found[0]}."
                )
            if found:
                return found[0]
        return None


def height_of(shape: tuple[int, ...]) -> int:
    """The number of rows in a block."""
    return max(1, BLOCK // max(1, math.prod(shape[1:])))


class Mapped(Arrays):
    """Arrays that are indexed where they are: those of `.npy`, HDF5, zarr and safetensors files."""

    arrays: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[name].shape)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self.arrays[name]
        return np.asarray(array[start:stop] if self.shape(name) else array[()])


class Npy(Mapped):
    """One array, mapped to memory."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False)}


class Hdf5(Mapped):
    """All datasets of an HDF5 file, in folders too."""

    def __init__(self, path: Path):
        import h5py

        super().__init__(path)
        found: dict[str, Any] = {}
        self.file = h5py.File(path, "r")
        self.file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        self.arrays = found

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        import h5py

        found = super().rows(name, start, stop)
        return found.astype(str) if h5py.check_string_dtype(self.arrays[name].dtype) else found


class Zarr(Mapped):
    """All arrays of a zarr store, in groups too."""

    def __init__(self, path: Path):
        import zarr

        super().__init__(path)
        store = zarr.open(path, mode="r")
        members = {path.stem: store} if isinstance(store, zarr.Array) else dict(store.members(max_depth=None))
        self.arrays = {name: item for name, item in members.items() if isinstance(item, zarr.Array)}


class Safetensors(Mapped):
    """All tensors of a safetensors file."""

    def __init__(self, path: Path):
        safetensors = needed("safetensors", path)
        super().__init__(path)
        file = safetensors.safe_open(path, "numpy")
        self.arrays = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[name].get_shape())


class Npz(Arrays):
    """The arrays of an archive, each unpacked from its beginning."""

    def __init__(self, path: Path):
        super().__init__(path)
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
        self._headers = {name.removesuffix(".npy"): self._header(name) for name in members}

    def _header(self, member: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
        """Shape, whether columns come first, type, and the length of the header in bytes."""
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise UsageError(
                    f"{self.path} holds Python objects in {member}, which reading would execute: save plain arrays of "
                    "numbers or text."
                )
            return shape, fortran and len(shape) > 1, dtype, file.tell()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][0]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as archive:
            return archive[name][start:stop] if self.shape(name) else archive[name]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        shape, fortran, dtype, skipped = self._headers[name]
        if fortran:
            yield from super().blocks(name)
            return
        height, width = height_of(shape), math.prod(shape[1:])
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            file.read(skipped)
            for start in range(0, shape[0], height):
                count = (min(start + height, shape[0]) - start) * width
                yield np.frombuffer(file.read(count * dtype.itemsize), dtype, count).reshape(-1, *shape[1:])


class Columns(Arrays):
    """A table whose columns are features, apart from one with labels."""

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""

    @functools.cached_property
    def label(self) -> str:
        """The column of the labels, or "" if there is none."""
        return next((name for name in self.columns if name.lower() in ROLES["labels"]), "")

    @property
    def names(self) -> tuple[str, ...]:
        return ("features", self.label) if self.label else ("features",)

    def find(self, role: str, asked: str | None = None) -> str | None:
        if role == "labels" and asked in self.columns:
            self.label = asked  # any column may hold the labels
        return super().find(role, asked)

    def _chosen(self, name: str) -> list[str]:
        return [name] if name == self.label else [one for one in self.columns if one != self.label]

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.length,) if name == self.label else (self.length, len(self._chosen(name)))

    @functools.cached_property
    @abc.abstractmethod
    def length(self) -> int:
        """The number of rows."""

    @abc.abstractmethod
    def frames(self, columns: list[str], height: int) -> Iterator[Any]:
        """Parts of the table as pandas DataFrames."""

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        chosen = self._chosen(name)
        for frame in self.frames(chosen, max(1, BLOCK // max(1, len(chosen)))):
            yield self._matrix(frame, name)

    def _matrix(self, frame: Any, name: str) -> np.ndarray:
        if name == self.label:
            return frame[name].to_numpy()
        wrong = [column for column in frame if frame[column].dtype.kind not in "iufb"]
        if wrong and len(frame.columns) == 1 and frame.dtypes.iloc[0].kind == "O":
            return np.stack(frame[wrong[0]].to_numpy())  # one column of lists
        if wrong:
            raise UsageError(
                f"{self.path} holds text or missing values in the column {wrong[0]!r}: remove it, or name the labels' "
                f"column, as in --arrays labels={wrong[0]}."
            )
        return frame.to_numpy()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.concatenate(list(self.blocks(name)))[start:stop]


class Csv(Columns):
    """A table as text. The first line names the columns, unless it holds numbers alone."""

    def __init__(self, path: Path):
        super().__init__(path)
        import pandas as pd

        first = pd.read_csv(path, nrows=0)
        names = [str(name) for name in first.columns]
        self._titled = not all(map(_is_number, names))
        self._columns = tuple(names) if self._titled else tuple(map(str, range(len(names))))

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    @functools.cached_property
    def length(self) -> int:
        return sum(map(len, self.frames([self._columns[0]], BLOCK)))

    def frames(self, columns: list[str], height: int) -> Iterator[Any]:
        import pandas as pd

        options: dict[str, Any] = {} if self._titled else {"header": None, "names": list(self._columns)}
        parts: Any = pd.read_csv(self.path, usecols=columns, chunksize=height, **options)
        with parts:
            yield from parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Parquet(Columns):
    """A table in columns; the features may also be one column of lists."""

    def __init__(self, path: Path):
        parquet = needed("pyarrow.parquet", path)
        super().__init__(path)
        self._file = parquet.ParquetFile(path)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for name in self._file.schema_arrow.names if not name.startswith("__index"))

    @functools.cached_property
    def length(self) -> int:
        return self._file.metadata.num_rows

    def frames(self, columns: list[str], height: int) -> Iterator[Any]:
        for batch in self._file.iter_batches(batch_size=height, columns=columns):
            yield batch.to_pandas()


FORMATS: dict[str, type[Arrays]] = {
    ".npz": Npz,
    ".npy": Npy,
    ".csv": Csv,
    ".parquet": Parquet,
    ".h5": Hdf5,
    ".hdf5": Hdf5,
    ".zarr": Zarr,
    ".safetensors": Safetensors,
}
"""The kinds of files, by their suffixes."""


def open_arrays(place: Any, argument: str = "files") -> Arrays:
    """The arrays of a file.

    Args:
        place: its path.
        argument: the argument it was given for, for messages.

    Raises:
        UsageError: if the file does not exist, is of a kind that is not read, or is damaged.
    """
    path = local_path(place, argument)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UsageError(
            f"{path} can hold a pickle, and reading one executes it: convert the file where you trust it, as in "
            f'`data = torch.load("{path.name}", weights_only=True)` and `numpy.savez("{path.stem}.npz", '
            "features=data.numpy(), labels=labels.numpy())`."
        )
    if suffix not in FORMATS:
        raise UsageError(f"{path} does not end in {', '.join(FORMATS)}: convert it to one of these.")
    if not path.exists():
        raise UsageError(f"{path} does not exist: give the path of a file with features.")
    try:
        arrays = FORMATS[suffix](path)
        found = arrays.names
    except UsageError:
        raise
    except Exception as error:  # each library raises its own kinds
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UsageError(f"{path} cannot be read as {suffix[1:]}, {reason}: write it again.") from error
    if not found:
        raise UsageError(f"{path} holds no arrays: write features and labels into it.")
    return arrays


def needed(module: str, path: Path) -> Any:
    """An optional module that a kind of file needs.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(f"{path} needs {package}: pip install 'flowcollapse[files]'.") from None

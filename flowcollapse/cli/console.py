"""The output of a command: its text, and the files it writes at the end."""

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

    from .._files import Labelled

SUFFIXES = (".nc", ".zarr", ".csv", ".parquet")
"""The file formats for results."""

TABLES = (".csv", ".parquet")
"""The formats that hold one table, with a row for each run and time."""

UNTOLD = ("quiet", "config", "cache")
"""Flags that do not affect results."""

STATE = ("H", "W", "b")


@dataclasses.dataclass
class Console:
    """Standard output, and the progress bars on standard error.

    If the reader closes the pipe, as `head` does, only the printing stops: the work continues, files are written, and
    the exit code does not change. Any other failure, such as a full disk, is recorded in `failure`.
    """

    quiet: bool = False
    closed: bool = False
    failure: str = ""

    def say(self, text: str) -> None:
        """Print a text, unless the command is quiet or nobody reads its output."""
        if self.quiet or self.closed:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self.closed = True
        except OSError as error:
            self.closed, self.failure = True, error.strerror or str(error)

    @property
    def bars(self) -> bool:
        """Whether to show progress bars: only on a terminal, so that log files stay clean."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()


def without_colors() -> bool:
    """Whether the user wants no colours: the variable NO_COLOR is set and not empty (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def check_output(path: Path | None, *, states: str = "") -> None:
    """Make sure that results can be written to `path`, in the format that its suffix names.

    Args:
        path: the file, or None.
        states: the flag that keeps H, W and b, if it is given: a table cannot hold them.

    Raises:
        UsageError: if they cannot.
    """
    from .._files import check_writable

    if path is None:
        return
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"out {path} does not end in {', '.join(SUFFIXES)}: use the ending of the format you want.")
    if suffix in TABLES and states:
        raise UsageError(f"out {path} is a table, which cannot hold H, W and b: end it in .nc, or drop {states}.")
    if suffix == ".parquet" and not any(map(importlib.util.find_spec, ("pyarrow", "fastparquet"))):
        raise UsageError(f"out {path} needs pyarrow or fastparquet: pip install pyarrow, or end it in .nc or .csv.")
    if suffix == ".zarr" and path.exists():
        raise UsageError(f"out {path} exists already: give another name, or remove it.")
    check_writable(path)


def check_json_file(path: Path | None) -> None:
    """Make sure that JSON can be written to `path`, if it is given.

    Raises:
        UsageError: if it cannot.
    """
    from .._files import check_writable

    if path is not None:
        if path.suffix.lower() != ".json":
            raise UsageError(f"json {path} does not end in .json: give the file this ending.")
        check_writable(path)


def check_folder_name(path: Path) -> None:
    """Raise `UsageError` for a folder with the name of a file, which would hide what the command writes there."""
    from .._files import FILMS, PICTURES

    if path.suffix.lower() in (*SUFFIXES, *PICTURES, *FILMS, ".json", ".toml"):
        raise UsageError(f"out {path} is a folder for several files here: give it a name without {path.suffix}.")


def check_picture_file(path: Path | None) -> None:
    """Make sure that a picture can be written to `path`, if it is given.

    Raises:
        UsageError: if it cannot.
    """
    from .._files import check_picture, check_writable

    if path is not None:
        check_picture(path)
        check_writable(path)


def check_apart(**places: Path | None) -> None:
    """Raise `UsageError` if a command would write two outputs to the same place."""
    given = [(name, place.absolute()) for name, place in places.items() if place is not None]
    for i, (name, place) in enumerate(given):
        for other, there in given[:i]:
            if place == there:
                raise UsageError(f"{other} and {name} are both {places[name]}: give them different names.")


def write(dataset: "xr.Dataset | Labelled", path: Path) -> None:
    """Write the results in the format that the suffix names, completely or not at all.

    Raises:
        UsageError: if they cannot be written.
    """
    from .._files import Labelled, replacing, write_netcdf

    suffix = path.suffix.lower()
    if suffix == ".nc":
        write_netcdf(dataset, path)
        return
    if isinstance(dataset, Labelled):
        dataset = dataset.to_xarray()
    with replacing(path) as part:
        try:
            if suffix == ".zarr":
                dataset.drop_encoding().to_zarr(part, mode="w", zarr_format=2, consolidated=True)
            elif suffix == ".csv":
                table(dataset).to_csv(part, index=False)
            else:
                table(dataset).to_parquet(part, index=False)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def table(dataset: "xr.Dataset") -> Any:
    """The results as one pandas table, with a row for each run and time and the values of all axes."""
    from ..results.tables import label

    texts = {}
    for name in map(str, dataset.variables):
        axis = name.removesuffix("_values")
        if axis != name and axis in dataset.dims:  # a value of several numbers becomes one text
            texts[axis] = [label(dataset.isel({axis: i}), axis) for i in range(dataset.sizes[axis])]
    parts = [f"{axis}_values" for axis in texts]
    return dataset.drop_vars(parts).assign_coords(texts).to_dataframe().reset_index()


def options_of(command: Any) -> str:
    """The flags of a command as text for a file's attributes."""
    told = dataclasses.asdict(command)
    return json.dumps({name: value for name, value in told.items() if name not in UNTOLD}, default=str)


def draw_without_a_window() -> None:
    """Make matplotlib draw to files only."""
    import matplotlib

    matplotlib.use("Agg")


def flush() -> str:
    """Flush standard output, or drop the buffer if nobody reads it. Returns the reason of any other failure."""
    if sys.stdout is None:
        return ""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        return "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
    return ""

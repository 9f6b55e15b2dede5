"""The output of a command: its text, and the files that it writes at its end."""

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
"""The forms that results are written in."""

TABLES = (".csv", ".parquet")
"""Those that are one table, a row for each run and time."""

UNTOLD = ("quiet", "config", "cache")
"""Flags that results do not depend on."""

STATE = ("H", "W", "b")


@dataclasses.dataclass
class Console:
    """Standard output, and the bars on standard error.

    A reader that has gone, as `head` has after its lines, ends the printing and nothing else: the work goes on, files
    are written, and the exit code is the true one. Another failure, such as a full disk, is kept in `failure`.
    """

    quiet: bool = False
    closed: bool = False
    failure: str = ""

    def say(self, text: str) -> None:
        """Print a text, unless nothing is to be printed or nobody reads any more."""
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
        """Whether to show bars: on a terminal only, so that none goes into a log file."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty()


def check_output(path: Path | None, *, states: str = "") -> None:
    """Make sure that results can be written to `path`, in the form that its suffix names.

    Args:
        path: the file, or None.
        states: the flag that keeps H, W and b, if it is given: a table has no place for these.

    Raises:
        UsageError: if they cannot.
    """
    from .._files import check_writable

    if path is None:
        return
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"out {path} does not end in {', '.join(SUFFIXES)}: choose one of these, which says in which form to write."
        )
    if suffix in TABLES and states:
        raise UsageError(f"out {path} is a table, which has no place for H, W and b: end it in .nc, or drop {states}.")
    if suffix == ".parquet" and not any(map(importlib.util.find_spec, ("pyarrow", "fastparquet"))):
        raise UsageError(f"out {path} needs pyarrow or fastparquet: pip install pyarrow, or end it in .nc or .csv.")
    if suffix == ".zarr" and path.exists():
        raise UsageError(f"out {path} exists already: give another name, or remove it.")
    check_writable(path)


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
    """Raise `UsageError` if two of the places that a command writes to are one."""
    given = [(name, place.absolute()) for name, place in places.items() if place is not None]
    for i, (name, place) in enumerate(given):
        for other, there in given[:i]:
            if place == there:
                raise UsageError(f"{other} and {name} are both {places[name]}: give them different names.")


def write(dataset: "xr.Dataset | Labelled", path: Path) -> None:
    """The results in the form that the suffix names; written whole or not at all.

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
    """The results as one table of pandas: a row for each run and time, with the values of all axes."""
    from ..results.tables import label

    texts = {}
    for name in map(str, dataset.variables):
        axis = name.removesuffix("_values")
        if axis != name and axis in dataset.dims:  # several numbers a value: one text
            texts[axis] = [label(dataset.isel({axis: i}), axis) for i in range(dataset.sizes[axis])]
    parts = [f"{axis}_values" for axis in texts]
    return dataset.drop_vars(parts).assign_coords(texts).to_dataframe().reset_index()


def options_of(command: Any) -> str:
    """The flags of a command as text for a file's attributes."""
    told = dataclasses.asdict(command)
    return json.dumps({name: value for name, value in told.items() if name not in UNTOLD}, default=str)


def draw_without_a_window() -> None:
    """Pictures go to files only."""
    import matplotlib

    matplotlib.use("Agg")


def flush() -> str:
    """Empty the buffer of standard output, or drop it where nobody reads it. Returns a failure but that."""
    if sys.stdout is None:
        return ""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)
    return ""

"""Writing files whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import UsageError

if TYPE_CHECKING:
    import xarray as xr


PICTURES = (".png", ".pdf", ".svg")


def check_picture(path: Path) -> None:
    """Raise `UsageError` unless the name ends as a picture's does."""
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path} does not end in {', '.join(PICTURES)}: give the picture one of these endings.")


def check_writable(path: Path) -> None:
    """Make sure that a file can be written at `path`, whose folder need not exist yet. Leaves nothing behind.

    Raises:
        UsageError: if it cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refusal(path, error) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, in a folder that exists by then; what was written takes the place of `path`
    only when all went well.

    Raises:
        UsageError: if the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise _refusal(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_netcdf(dataset: "xr.Dataset", path: Path) -> None:
    """The Dataset as a compressed netCDF-4 file, written whole or not at all.

    Raises:
        UsageError: if the file cannot be written.
    """
    encoding = {name: {"zlib": True} for name, values in dataset.data_vars.items() if values.ndim > 0}
    with replacing(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf", encoding=encoding)


def _refusal(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(f"cannot write {path}: {reason}; choose another place for it.")

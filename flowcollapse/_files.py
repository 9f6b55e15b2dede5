"""Turns users' texts into paths, and writes files completely or not at all."""

import contextlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._errors import UsageError

if TYPE_CHECKING:
    import xarray as xr


REMOTE = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z][a-z0-9+.-]+)*:/", re.IGNORECASE)
"""The beginning of an address, such as `s3://`, even if `pathlib` has removed its second slash."""


def local_path(place: Any, name: str = "path") -> Path:
    """The local path that a user's text or path names, with `~` and `$NAME` expanded.

    Args:
        place: text, or any `os.PathLike`.
        name: the argument or flag it was given for, for messages.

    Raises:
        UsageError: for anything else, for an address of another machine or kind of storage, and for unset variables.

    Example:
        >>> from flowcollapse._files import local_path
        >>> local_path("runs/a.zarr").parts
        ('runs', 'a.zarr')
    """
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UsageError(f"{name} must be the path of a file or folder, got {place!r}: give a text or a pathlib.Path.")
    if REMOTE.match(text):
        raise UsageError(
            f"{name} {text!r} is an address, and only paths of this machine are read and written: give one, and copy "
            "what was written there afterwards."
        )
    expanded = os.path.expandvars(os.path.expanduser(text))
    unset = re.search(r"^~[^/\\]*|\$\w+|\$\{[^}]*\}", expanded)
    if unset:
        raise UsageError(f"{name} {text!r} holds {unset[0]!r}, which is not known here: write it out.")
    return Path(expanded)


PICTURES = (".png", ".pdf", ".svg")


def check_picture(path: Path) -> None:
    """Raise `UsageError` unless the name has the ending of a picture."""
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path} does not end in {', '.join(PICTURES)}: give the picture one of these endings.")


FILMS = (".gif", ".mp4")


def check_film(path: Path) -> None:
    """Raise `UsageError` unless the name has the ending of a film that can be written on this machine."""
    suffix = path.suffix.lower()
    if suffix not in FILMS:
        raise UsageError(f"{path} does not end in {', '.join(FILMS)}: give the film one of these endings.")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise UsageError(f"{path} needs ffmpeg, which is not found: end the name in .gif, or install ffmpeg.")


def check_writable(path: Path) -> None:
    """Make sure that a file can be written at `path`; its folder need not exist yet. Leaves nothing behind.

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
    """A temporary path next to `path` to write to. The new file replaces `path` only if everything succeeds.

    Folders that do not exist yet are made.

    Raises:
        UsageError: if the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with parents_of(path):
            try:
                yield part
                os.replace(part, path)
            finally:
                with contextlib.suppress(OSError):
                    part.unlink()
    except OSError as error:
        raise _refusal(path, error) from None


@contextlib.contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Make the parent folders of `path`; remove the new ones again if the body fails."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:  # innermost first; `rmdir` stops at a folder that is not empty
                folder.rmdir()
        raise


class Labelled(NamedTuple):
    """The parts of an `xarray.Dataset`: files written from them need no xarray, whose import takes most of a second.

    Each entry of `data` and `coords` is `(dimensions, array, attributes)`. A coordinate has the name of its dimension.
    """

    data: dict[str, tuple[Any, ...]]
    coords: dict[str, tuple[Any, ...]]
    attributes: dict[str, Any]

    def to_xarray(self) -> "xr.Dataset":
        """The same data as a Dataset."""
        import xarray as xr

        return xr.Dataset(*self)


def write_netcdf(dataset: "xr.Dataset | Labelled", path: Path) -> None:
    """Write the Dataset as a compressed netCDF-4 file, completely or not at all.

    Raises:
        UsageError: if the file cannot be written.
    """
    if isinstance(dataset, Labelled):
        with replacing(path) as part:
            _write_labelled(dataset, part)
        return
    encoding = {name: {"zlib": True} for name, values in dataset.data_vars.items() if values.ndim > 0}
    with replacing(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf", encoding=encoding)


def _write_labelled(labelled: Labelled, path: Path) -> None:
    """Write the file that xarray would write."""
    import h5netcdf

    variables = [(name, *parts) for name, parts in (labelled.coords | labelled.data).items()]
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {
            dim: size for _, dims, values, _ in variables for dim, size in zip(dims, values.shape, strict=True)
        }
        file.attrs.update(labelled.attributes)
        for name, dims, values, attributes in variables:
            options = {"compression": "gzip"} if dims and name in labelled.data else {}
            missing = {"fillvalue": math.nan} if values.dtype.kind == "f" else {}
            variable = file.create_variable(name, dims, values.dtype, data=values, **options, **missing)
            variable.attrs.update(attributes)


def _refusal(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or str(error)
    return UsageError(f"cannot write {path}: {reason}; choose another place for it.")

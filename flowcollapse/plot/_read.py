"""Reads the source of a picture: a Dataset, a `Trajectory`, or the file or store that holds one."""

from pathlib import Path
from typing import Any, TypeAlias

import xarray as xr

from .._errors import UsageError, nearest
from .._files import local_path
from ..measuring.table import AXES

Source: TypeAlias = Any
"""An `xarray.Dataset`, a `Trajectory`, or the path of the file or store that holds one."""

TABLES = (".csv", ".parquet")
"""Formats that the command line writes for other programs."""

CURES = {
    "run": "one run: draw it with fc.plot.path",
    "sweep": "a sweep: draw it with fc.plot.sweep",
    "comparison": "a comparison: draw it with fc.plot.comparison",
    "measurement": "a measurement: draw it with fc.plot.measurement",
    "picture": "a picture of the gallery: draw it with fc.gallery.draw",
    "figures": "the runs of the paper's figures: draw them with fc.plot.figure1 or fc.plot.figure2",
}
"""The kinds of Datasets that this package writes, and the functions that draw them."""


def read_many(source: Any) -> xr.Dataset:
    """The Dataset of a source that holds several runs.

    Raises:
        UsageError: for the reasons `read` has, and for a single run.
    """
    dataset = read(source)
    if kind_of(dataset) == "run":
        raise UsageError(f"dataset has neither eps nor seeds; it is {CURES['run']}.")
    return dataset


def read(source: Any) -> xr.Dataset:
    """The Dataset of a source: the source itself, or the Dataset of a `Trajectory` or of a local file or store.

    Raises:
        UsageError: for anything else, and for files that cannot be read.
    """
    if isinstance(source, xr.Dataset):
        return source
    if isinstance(source, str | Path):
        return _open(source)
    from ..results.trajectory import Trajectory

    if isinstance(source, Trajectory):
        return source.to_xarray()
    cure = "pass an xarray.Dataset, a Trajectory, or the path of a file or store"
    if isinstance(source, xr.DataArray):
        cure = "pass the Dataset that it is part of, or source.to_dataset(name=...)"
    raise UsageError(f"dataset must be what fc.simulate, fc.sweep or fc.compare returns, got {short(source)}: {cure}.")


def short(value: Any) -> str:
    """A value on one line of bounded length."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text}" if len(text) <= 80 else f"{type(value).__name__} {text[:77]}..."


def _open(path: str | Path) -> xr.Dataset:
    place = local_path(path, "dataset")
    if not place.exists():
        raise UsageError(f"{place} does not exist: give the file of a run, a sweep or a comparison, or a store.")
    if place.suffix.lower() in TABLES:
        raise UsageError(f"{place} is a table, which lacks the model of its runs: give a .nc file or a .zarr store.")
    if place.is_dir():
        return _open_folder(place)
    try:
        return xr.open_dataset(place, engine="h5netcdf")
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UsageError(f"{place} is not a netCDF file: {reason}; give a .nc file or a .zarr store.") from None


def _open_folder(place: Path) -> xr.Dataset:
    from ..sweeps.store import open_sweep

    try:
        return open_sweep(place)
    except UsageError as refusal:
        if not any((place / name).exists() for name in (".zgroup", ".zmetadata", "zarr.json")):
            raise
        try:  # any other Dataset written as zarr, for example by --out run.zarr
            found = xr.open_zarr(place, chunks=None)
        except (OSError, ValueError, KeyError):
            raise refusal from None
        return found


def kind_of(dataset: xr.Dataset) -> str:
    """The kind of a Dataset, a key of `CURES`, or `""`."""
    if "picture" in dataset.attrs:
        return "picture"
    if {*AXES} & {*dataset.dims}:
        return "measurement"
    if "method" in dataset.dims:
        return "comparison" if "distance_to_flow" in dataset else "figures"
    if {"seed", "eps"} & {*dataset.dims, *dataset.coords}:  # one run selected from a sweep is drawn as a sweep
        return "sweep"
    return "run" if any(values.dims == ("time",) for values in dataset.data_vars.values()) else ""


def another_picture(dataset: xr.Dataset, *kinds: str) -> str:
    """The ending of an error about a Dataset for another function: `; it is one run: draw it with fc.plot.path`."""
    kind = kind_of(dataset)
    return f"; it is {CURES[kind]}" if kind and kind not in kinds else ""


def known_name(name: Any, known: list[str], argument: str = "metric") -> str:
    """The known name that equals `name`, ignoring case.

    Raises:
        UsageError: if there is none.
    """
    if isinstance(name, str):
        for one in (name, name.lower()):
            if one in known:
                return one
    cure = f"choose from {', '.join(known)}" if known else "save some first, as it has none over time"
    raise UsageError(f"{argument} {name!r} is not in the dataset: {cure}{nearest(str(name).lower(), known) or '.'}")

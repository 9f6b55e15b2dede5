"""The labelled dataset that the lanes of a sweep fill."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from ..results.labels import MISSING, attributes, axis_coordinates, dimensions
from .lane import Plan

if TYPE_CHECKING:
    import xarray as xr


def empty_dataset(plan: Plan, chunks: Sequence[int] | None = None) -> "xr.Dataset":
    """The dataset of a sweep before any lane has run: floats are NaN, integers and the verdict are -1.

    Args:
        plan: the sweep.
        chunks: lengths of the chunks along the grid's axes, for arrays that will only exist on disk; by default the
            arrays are in memory.
    """
    import xarray as xr

    grid, outcomes = plan.grid, plan.outcomes
    axes = tuple(grid.axes)
    data: dict[str, Any] = {}
    for name in outcomes[0]:
        parts = [outcome[name] for outcome in outcomes]
        tail = tuple(map(max, *(part.shape for part in parts))) if len(parts) > 1 else parts[0].shape
        fill = np.nan if jnp.issubdtype(parts[0].dtype, jnp.floating) else MISSING
        values = _filled((*grid.shape, *tail), fill, parts[0].dtype, None if chunks is None else (*chunks, *tail))
        data[name] = ((*axes, *dimensions(name)), values, attributes(name))
    coords = axis_coordinates(grid.axes)
    if not isinstance(plan.ts, int):
        coords["time"] = ("time", np.asarray(plan.ts, float), {"long_name": grid.method.time_name, "units": "1"})
    return xr.Dataset(data, coords)


def _filled(shape: tuple[int, ...], fill: int | float, dtype, chunks: tuple[int, ...] | None) -> Any:
    if chunks is None:
        return np.full(shape, fill, dtype)
    import dask.array

    return dask.array.full(shape, fill, dtype=dtype, chunks=tuple(max(1, side) for side in chunks))

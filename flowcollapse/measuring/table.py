"""A measurement as text and as JSON."""

from typing import Any

import numpy as np
import xarray as xr

from ..results.tables import aligned

SHOWN = ("nc1", "nc1_trace", "nc2_etf_h", "nc2_norm_h", "nc2_angle_h", "nc3", "nc4", "ncc_error", "cdnv")
"""The columns of the table of several epochs or layers, as far as they were measured."""


AXES = ("epoch", "layer")
"""The axes that a measurement can have."""


def axis_of(dataset: xr.Dataset) -> str:
    """The axis of a measurement: `"epoch"` or `"layer"`."""
    return next(axis for axis in AXES if axis in dataset.dims)


def scalars(dataset: xr.Dataset) -> list[str]:
    """The metrics with one number for each epoch or layer."""
    return [
        str(name)
        for name, values in dataset.data_vars.items()
        if values.dims == (axis_of(dataset),) and name != "num_features"
    ]


def table(dataset: xr.Dataset) -> str:
    """A measurement as text: every metric of one epoch or layer, or the main metrics of several."""
    axis = axis_of(dataset)
    names = scalars(dataset)
    counts = dataset["counts"].values
    sizes = int(counts[-1].sum()), int(np.count_nonzero(counts[-1])), _several(dataset["num_features"])
    head = "{} samples, {} classes, {} features".format(*sizes)
    if dataset.sizes[axis] == 1:
        rows = [(name, f"{dataset[name].item():.6g}", dataset[name].attrs["long_name"]) for name in names]
        return "\n".join([head, *aligned(rows)])
    columns = [name for name in SHOWN if name in names] or names
    cells = [
        (str(value), *("-" if np.isnan(number) else f"{number:.4g}" for number in numbers))
        for value, *numbers in zip(dataset[axis].values, *(dataset[name].values for name in columns), strict=True)
    ]
    return "\n".join([head, *aligned([(axis, *columns), *cells])])


def _several(values: xr.DataArray) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def as_json(dataset: xr.Dataset) -> dict[str, Any]:
    """A measurement as numbers, texts and lists; NaN becomes null."""
    found = {str(name): _plain(values.values) for name, values in dataset.variables.items()}
    return found | {"attributes": dataset.attrs}


def _plain(values: np.ndarray) -> Any:
    listed = values.tolist()
    if values.dtype.kind != "f":
        return listed

    def finite(part: Any) -> Any:
        if isinstance(part, list):
            return [finite(one) for one in part]
        return part if np.isfinite(part) else None

    return finite(listed)

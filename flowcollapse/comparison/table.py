"""A comparison as a short table for people."""

from typing import TYPE_CHECKING

import numpy as np

from ..results.tables import aligned, label, verdicts

if TYPE_CHECKING:
    import xarray as xr

SHOWN = ("snc1", "snc2", "snc3", "relative_distance", "balancedness", "risk")

MOST_ROWS = 60

OVER = ("seed", "lane")
"""The axes whose medians are shown."""


def table(dataset: "xr.Dataset") -> str:
    """The end of each method for each combination of the axes: medians over the starts.

    Args:
        dataset: what `fc.compare` returns.

    Example:
        >>> import xarray
        >>> from flowcollapse.comparison.table import table
        >>> ends = {"verdict": 0, "steps": 30, "max_distance_to_flow": 0.0}
        >>> data = xarray.Dataset({name: ("method", [value]) for name, value in ends.items()}, {"method": ["flow"]})
        >>> print(table(data.assign_coords(time=[1.0])))
        At time 1:
        method  to flow   steps  verdicts
        flow    0.00e+00  30     1 plateau
    """
    axes = [str(axis) for axis in dataset["verdict"].dims if axis not in OVER]
    starts = [axis for axis in dataset["verdict"].dims if axis in OVER]
    axes = [*axes[1:], axes[0]]  # the methods side by side
    names = [name for name in SHOWN if name in dataset]
    names = names or [str(n) for n in dataset if "time" in dataset[n].dims and n not in ("t", "distance_to_flow")][:4]
    ends = (
        dataset[names]
        .isel(time=-1, missing_dims="ignore")
        .assign({name: dataset[name] for name in ("max_distance_to_flow", "steps")})
    )
    middle = ends.median(starts) if starts else ends
    rows = [(*axes, *names, "to flow", "steps", "verdicts")]
    shape = [dataset.sizes[axis] for axis in axes]
    for place in list(np.ndindex(*shape))[:MOST_ROWS]:
        which = dict(zip(axes, place, strict=True))
        one, codes = middle.isel(which), dataset["verdict"].isel(which)
        values = (f"{float(one[name]):.2e}" for name in (*names, "max_distance_to_flow"))
        labels = (label(dataset.isel(which), axis) for axis in axes)
        rows.append((*labels, *values, f"{float(one['steps']):g}", verdicts(codes.values)))
    count = int(np.prod([dataset.sizes[axis] for axis in starts]))
    lines = [f"At time {float(dataset['time'][-1]):.4g}{f', medians over {count} starts' if count > 1 else ''}:"]
    lines += aligned(rows)
    if int(np.prod(shape)) > MOST_ROWS:
        lines.append(f"... and {int(np.prod(shape)) - MOST_ROWS} more rows")
    lines += [dataset.attrs["precision_note"]] if "precision_note" in dataset.attrs else []
    return "\n".join(lines)

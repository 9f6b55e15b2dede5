"""A sweep as a short table."""

from typing import TYPE_CHECKING

import numpy as np

from ..results.tables import aligned, label, verdicts

if TYPE_CHECKING:
    import xarray as xr

SHOWN = ("snc1", "snc2", "snc3", "distance", "risk")

MOST_ROWS = 24


def summary(dataset: "xr.Dataset") -> str:
    """Sizes, speed, verdicts, and the medians over seeds at the last time, for each combination of the other axes."""
    axes = [str(axis) for axis in dataset["verdict"].dims]
    over = [axis for axis in axes if axis != "seed"]
    names = [name for name in SHOWN if name in dataset] or [str(n) for n in dataset if "time" in dataset[n].dims][:5]
    sizes = " x ".join(f"{dataset.sizes[axis]} {axis}" for axis in axes)
    about = dataset.attrs
    lines = [f"{dataset['verdict'].size} lanes ({sizes}), {verdicts(dataset['verdict'].values)}"]
    if about.get("lanes_computed"):
        lines.append(
            f"{about['lanes_computed']} computed now, {about['lanes_per_second']:.4g} per second, "
            f"lane efficiency {about['lane_efficiency']:.2f}"
        )
    lines += [about["precision_note"]] if "precision_note" in about else []
    rows = [(*over, *names, "verdicts")]
    end = dataset[names].isel(time=-1).compute().median("seed")
    shape = [dataset.sizes[axis] for axis in over]
    for place in list(np.ndindex(*shape))[:MOST_ROWS]:
        which = dict(zip(over, place, strict=True))
        one = dataset.isel(which)
        labels = (label(one, axis) for axis in over)
        values = (f"{float(end[name].isel(which)):.2e}" for name in names)
        rows.append((*labels, *values, verdicts(one["verdict"].values)))
    lines += ["Medians over the seeds at the last time:"]
    lines += aligned(rows)
    if int(np.prod(shape)) > MOST_ROWS:
        lines.append(f"... and {int(np.prod(shape)) - MOST_ROWS} more rows")
    return "\n".join(lines)

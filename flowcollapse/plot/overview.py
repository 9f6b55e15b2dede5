"""All pictures of a sweep in one figure."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from ._read import Source, read_many
from ._select import ends, having, metric_of, metrics_of, several
from ._style import panels
from .sweeps import bands, codes_of, draw_verdicts, heatmap, limit


def sweep(dataset: Source, name: str | None = None) -> np.ndarray:
    """Plot a sweep in one figure: `bands`, `limit`, `heatmap` and `verdicts`, as far as its axes allow.

    Args:
        dataset: a sweep, see `fc.sweep`, or its file or store.
        name: the metric. Default: `snc1`, or the first metric in the Dataset.

    Returns:
        An array of the axes: curves along eps (or along the first axis, if there is one eps), the limit against eps if
        there are several eps, a heat map over the first two axes with several values, and verdicts along the axis of
        the curves. If a panel cannot show an axis, it shows the last value with the most finished runs, and names it.
        The verdicts count all runs.

    Raises:
        UsageError: for an unknown metric, or a Dataset without eps, seeds or times.

    Example:
        >>> import numpy, xarray, flowcollapse as fc
        >>> errors = numpy.exp(-numpy.arange(12.0)).reshape(2, 3, 2)
        >>> sweep = xarray.Dataset({"snc1": (("eps", "seed", "time"), errors)}, {"eps": [1.0, 0.1], "time": [0.0, 1.0]})
        >>> fc.plot.sweep(sweep).shape
        (2,)
    """
    dataset = read_many(dataset)
    known = metrics_of(dataset)
    first = next(iter([key for key in known if key == "snc1"] + known), "snc1")
    name = metric_of(dataset, first if name is None else name)
    final = ends(dataset, name)
    axes = several(final)
    along = axes[0] if axes and "eps" not in axes else "eps"
    having(final, along, "seed")
    pictures: list[Callable[[Axes], Axes]] = [
        lambda ax: bands(_fullest(dataset, final, along), name, ax, along=along),
    ]
    if "eps" in axes:
        pictures.append(lambda ax: limit(_fullest(dataset, final, "eps"), name, ax))
    if len(axes) > 1:
        pictures.append(lambda ax: heatmap(_fullest(dataset, final, *axes[:2]), name, ax))
    if "verdict" in dataset:
        codes, names = codes_of(dataset)
        pictures.append(lambda ax: draw_verdicts(having(codes, along), names, along, ax))
    rows = 2 if len(pictures) == 4 else 1
    with panels(None, len(pictures), (4.6 * len(pictures) / rows, 3.7 * rows), rows) as all_axes:
        for ax, draw in zip(all_axes, pictures, strict=True):
            draw(ax)
    return all_axes


def _fullest(dataset: xr.Dataset, final: xr.DataArray, *drawn: str) -> xr.Dataset:
    """The Dataset at one value of each axis that is not drawn: the last value with the most finished runs."""
    hidden = [axis for axis in several(final) if axis not in drawn]
    if not hidden:
        return dataset
    backwards = {axis: slice(None, None, -1) for axis in hidden}
    done: Any = np.isfinite(final.isel(backwards))
    best = done.sum([axis for axis in final.dims if axis not in hidden]).argmax(hidden)
    return dataset.isel(backwards).isel({axis: int(best[axis]) for axis in hidden})

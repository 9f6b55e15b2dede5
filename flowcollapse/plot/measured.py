"""Figure of the metrics of a network's features against epochs or layers."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from .._errors import UsageError
from ..measuring.table import AXES
from ._read import Source, known_name, read
from ._style import OKABE_ITO, log_scale, panels

GROUPS: dict[str, Sequence[str]] = {
    "NC1: within-class variability": ("nc1", "nc1_trace", "cdnv"),
    "NC2: simplex of class means (h) and classifier (w)": (
        "nc2_norm_h",
        "nc2_angle_h",
        "nc2_etf_h",
        "nc2_norm_w",
        "nc2_angle_w",
        "nc2_etf_w",
    ),
    "NC3: duality": ("nc3", "nc3_etf", "unc3"),
    "NC4: share of samples": ("nc4", "ncc_error"),
}
"""The panels, and the metrics in each."""

MARKS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)), (0, (1, 1)))


def measurement(dataset: Source, ax=None, *, name: str | None = None) -> np.ndarray:
    """Plot a measurement: the metrics of neural collapse against epochs or layers, one panel for each property.

    Args:
        dataset: the Dataset of `fc.measure`, or its file.
        ax: as many axes as panels to draw on. Default: a new figure.
        name: the only metric to draw. Default: NC1 to NC4, as far as they were measured.

    Returns:
        An array of the axes. Colours, line styles and marks all differ, so that curves can be told apart in grey too.
        Shares of samples are on a linear axis, everything else is on a logarithmic one.

    Raises:
        UsageError: if the Dataset is no measurement, or lacks the metric.

    Example:
        >>> import xarray, flowcollapse as fc
        >>> found = xarray.Dataset({"nc1": ("epoch", [1.0, 0.1]), "nc3": ("epoch", [1.0, 0.5])}, {"epoch": [1, 2]})
        >>> fc.plot.measurement(found).shape
        (2,)
    """
    dataset = read(dataset)
    axis = next((one for one in AXES if one in dataset.dims), None)
    curves = [str(one) for one, values in dataset.data_vars.items() if axis and values.dims == (axis,)]
    if axis is None or not curves:
        raise UsageError("dataset holds no metric over epochs or layers: pass what fc.measure returns.")
    groups = {title: [one for one in names if one in curves] for title, names in GROUPS.items()}
    groups = {title: names for title, names in groups.items() if names}
    if name is not None or not groups:
        chosen = [known_name(name, curves)] if name is not None else [one for one in curves if one != "num_features"]
        groups = {"": chosen}
    rows = 2 if len(groups) == 4 else 1
    with panels(ax, len(groups), (4.4 * len(groups) / rows, 3.2 * rows), rows) as all_axes:
        for one, (title, names) in zip(all_axes, groups.items(), strict=True):
            _panel(one, dataset, axis, title, names)
    return all_axes


def _panel(ax: Axes, dataset: xr.Dataset, axis: str, title: str, names: Sequence[str]) -> None:
    values = dataset[axis].values
    numbers = values.dtype.kind in "iuf"
    places = values if numbers else np.arange(len(values))
    for i, name in enumerate(names):
        ax.plot(
            places,
            dataset[name],
            color=OKABE_ITO[i % len(OKABE_ITO)],
            ls=DASHES[i % len(DASHES)],
            marker=MARKS[i % len(MARKS)],
            ms=4,
            markevery=max(1, len(values) // 12),
            label=name,
        )
    ax.set_title(title)
    ax.set_xlabel(axis)
    if not numbers:
        ax.set_xticks(places, [str(value) for value in values], rotation=30 if len(values) > 4 else 0)
    drawn = np.concatenate([dataset[name].values for name in names])
    if names[0] in GROUPS["NC4: share of samples"]:
        ax.set_ylim(0, max(1e-3, 1.05 * np.nanmax(drawn)))
    elif np.any(drawn > 0):
        log_scale(ax, "y")
    ax.legend(
        frameon=False, fontsize="small", ncols=min(3, len(names)), loc="upper center", bbox_to_anchor=(0.5, -0.18)
    )

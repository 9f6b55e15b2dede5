"""Names, units and dimensions of everything in a Dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..endings.verdict import Verdict
from ..metrics.registry import METRICS

STATS = ("taken", "accepted", "rejected", "evaluations")
"""What `stats` may hold, in the order of tables."""

STATE_VARIABLES = (
    ("H", ("feature", "sample"), "features"),
    ("W", ("class", "feature"), "classifier"),
    ("b", ("class",), "bias"),
)
"""The parts of a state as variables of a Dataset: name, dimensions, long name."""


def verdict_attributes() -> dict[str, Any]:
    """CF attributes that explain the verdict's codes."""
    return {
        "long_name": "how the run ended",
        "flag_values": np.array([int(v) for v in Verdict], dtype=np.int8),
        "flag_meanings": " ".join(v.name for v in Verdict),
    }


def metric_attributes(name: str) -> dict[str, Any]:
    """Long name, units, and the formula if the metric has one."""
    metric = METRICS[name]
    about = {"long_name": metric.long_name, "units": "1"}
    return about | ({"symbol": metric.symbol} if metric.symbol else {})


MISSING = -1
"""What integers hold where a lane has not run yet; floats hold NaN."""

AXES = {
    "num_classes": "number of classes C",
    "samples_per_class": "samples per class N",
    "num_features": "number of features p",
    "weight_decay": "L2 decay of W, H and b",
    "eps": "norm of H0 and of W0",
    "seed": "seed of the start's random key",
    "rtol": "relative tolerance",
    "atol": "absolute tolerance",
    "t1": "time at the end",
    "learning_rate": "learning rate",
    "lane": "number of the start",
}
"""Long names of the axes; others are numbers of the method and go by their own name."""


def axis_coordinates(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The values of the axes as coordinates of a Dataset."""
    coords: dict[str, Any] = {}
    for name, values in axes.items():
        about = {"long_name": AXES.get(name, name.replace("_", " ")), "units": "1"}
        parts = [value if isinstance(value, tuple) else (value,) for value in values]
        if all(len(part) == 1 for part in parts):
            coords[name] = (name, np.asarray([part[0] for part in parts]), about)
        else:  # three decays, or counts that differ between the classes: rows of a table, filled up with NaN
            table = np.full((len(parts), max(map(len, parts))), np.nan)
            for row, part in zip(table, parts, strict=True):
                row[: len(part)] = part
            coords[f"{name}_values"] = ((name, f"{name}_part"), table, about)
    return coords


def dimensions(name: str) -> tuple[str, ...]:
    """The dimensions that a variable has beyond the axes of the grid."""
    states = {state: over for state, over, _ in STATE_VARIABLES}
    return states.get(name, ("time",) if name in METRICS or name == "t" else ())


def attributes(name: str) -> dict[str, Any]:
    """Long name and units of a variable; the meanings of the verdict's codes."""
    if name == "verdict":
        about = verdict_attributes()
        values = np.concatenate([np.array([MISSING], np.int8), about["flag_values"]])
        return about | {"flag_values": values, "flag_meanings": "missing " + about["flag_meanings"]}
    if name in METRICS:
        return metric_attributes(name)
    states = {state: f"{what} at the end" for state, _, what in STATE_VARIABLES}
    known = states | {"t": "time", "t_end": "time at the end"}
    return {"long_name": known.get(name, name.replace("_", " ")), "units": "1"}

"""Small Datasets for the trial calls of `wrong_kinds.py`, one of each kind that the package draws."""

import json
from typing import Any

import numpy as np
import xarray as xr
from wrong_values import SIZES

TIMES = [0.0, 1.0]


def sweep_dataset() -> xr.Dataset:
    shape, axes = (2, 2, 2), ("eps", "seed", "time")
    data: dict[str, Any] = {name: (axes, np.full(shape, 0.5)) for name in ("snc1", "snc2", "snc3", "relative_distance")}
    flags = {"flag_values": [0, 2], "flag_meanings": "plateau time_limit"}
    data["verdict"] = (axes[:2], np.zeros((2, 2), np.int8), flags)
    return xr.Dataset(data, {"eps": [1.0, 0.1], "seed": [0, 1], "time": [0.0, 1.0]})


def stability_dataset() -> xr.Dataset:
    names, shape = ("learning_rate", "eps", "seed", "time"), (2, 1, 1, 1)
    coords = {"learning_rate": [0.1, 0.2], "eps": [0.1], "seed": [0], "time": [1.0]}
    attributes = {"model": json.dumps(SIZES), "method": json.dumps({"name": "descent", "optimizer": "sgd"})}
    flags = {"flag_values": [0, 4], "flag_meanings": "plateau non_finite"}
    verdicts = (names[:3], np.zeros(shape[:3], np.int8), flags)
    return xr.Dataset({"snc1": (names, np.full(shape, 0.5)), "verdict": verdicts}, coords, attributes)


def comparison_dataset() -> xr.Dataset:
    names, shape = ("method", "eps", "seed", "time"), (2, 2, 2, 2)
    both = dict.fromkeys(("snc1", "relative_distance", "distance_to_flow", "t"), (names, np.full(shape, 0.5)))
    flags = {"flag_values": [0, 2], "flag_meanings": "plateau time_limit"}
    ends = {"verdict": (names[:3], np.zeros(shape[:3], np.int8), flags), "steps": (names[:3], np.ones(shape[:3], int))}
    ends["max_distance_to_flow"] = names[:3], np.full(shape[:3], 0.5)
    return xr.Dataset(both | ends, {"method": ["flow", "sgd"], "eps": [0.1, 0.2], "seed": [0, 1], "time": TIMES})


def run_dataset() -> xr.Dataset:
    names = ("snc1", "snc2", "snc3", "distance", "relative_distance", "risk")
    return xr.Dataset({name: ("time", [0.5, 0.4]) for name in names}, {"time": TIMES})


def picture_dataset() -> xr.Dataset:
    """The Dataset of a picture with one class."""
    data: dict[str, Any] = {
        "classifier_square": (("time", "class"), [[0.0], [1.0]]),
        "predicted_time": ("class", [0.5]),
    }
    about = {"picture": "order-of-learning", "title": "a picture", "sources": "a paper"}
    return xr.Dataset(data, {"time": TIMES, "count": ("class", [1])}, about)


def measured_curves() -> dict[str, np.ndarray]:
    """The log of a run of three classes of three samples, over epochs."""
    epochs = np.arange(40.0)
    return {"epoch": epochs, "risk": 3.0 / (1.0 + np.exp(0.4 * (epochs - 20.0))) ** 2}

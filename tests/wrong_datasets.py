"""Small Datasets for the trial calls of `wrong_kinds.py`, one of each kind that the package draws, and accumulators."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from wrong_values import SIZES

import flowcollapse as fc

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


def film_dataset() -> xr.Dataset:
    """A run with states."""
    shapes = {"H": ("time", "feature", "sample"), "W": ("time", "class", "feature")}
    states = {"H": (shapes["H"], np.ones((2, 4, 9))), "W": (shapes["W"], np.ones((2, 3, 4)))}
    return xr.Dataset({"risk": ("time", [0.5, 0.4])} | states, {"time": TIMES})


def measurement_dataset() -> xr.Dataset:
    return xr.Dataset({"nc1": ("epoch", [0.5, 0.4])}, {"epoch": [1, 2]})


def picture_dataset() -> xr.Dataset:
    """The Dataset of a picture with one class."""
    data: dict[str, Any] = {
        "classifier_square": (("time", "class"), [[0.0], [1.0]]),
        "predicted_time": ("class", [0.5]),
    }
    about = {"picture": "order-of-learning", "title": "a picture", "sources": "a paper"}
    return xr.Dataset(data, {"time": TIMES, "count": ("class", [1])}, about)


def features_file() -> str:
    """A file with features of two classes."""
    np.savez("features.npz", features=np.eye(3), labels=[0, 0, 1])
    return "features.npz"


def filled() -> Any:
    """An accumulator of samples of two classes."""
    return fc.metrics.Accumulator(2).update(np.eye(3), [0, 0, 1])


def saved() -> str:
    """A file with an accumulator."""
    filled().save("saved.npz")
    return "saved.npz"


# fmt: off
ACCUMULATOR: dict[str, Callable[[], dict[str, Any]]] = {
    "metrics.Accumulator": lambda: {
        "num_classes": 2, "classes": None, "num_features": 3, "scatter": True, "ignore_label": None,
    },
    "metrics.Accumulator.update": lambda: {"features": np.eye(3), "labels": [0, 0, 1]},
    "metrics.Accumulator.update_ood": lambda: {"features": np.eye(3)},
    "metrics.Accumulator.update_agreement": lambda: {"features": np.eye(3), "labels": [0, 0, 1], "W": None, "b": None},
    "metrics.Accumulator.result": lambda: {"W": np.ones((2, 3)), "b": np.zeros(2), "metrics": ["nc1"]},
    "metrics.Accumulator.merge": lambda: {"other": filled()},
    "metrics.Accumulator.save": lambda: {"path": "accumulator.npz"},
    "metrics.Accumulator.load": lambda: {"path": saved()},
    "plot.beside.beside": lambda: {
        "dataset": measured_curves(), "fit": fc.fit(measured_curves(), num_classes=3, samples_per_class=3)
    },
}
# fmt: on
"""The trial calls of the accumulator and its methods."""


def methods() -> dict[str, Callable]:
    """The accumulator, and its methods, each of an accumulator that the others do not touch."""
    names = ("update", "update_ood", "update_agreement", "result", "merge", "save", "load")
    made = {f"metrics.Accumulator.{name}": getattr(filled(), name) for name in names}
    return {"metrics.Accumulator": fc.metrics.Accumulator} | made


def measured_curves() -> dict[str, np.ndarray]:
    """The log of a run of three classes of three samples, over epochs."""
    epochs = np.arange(40.0)
    return {"epoch": epochs, "risk": 3.0 / (1.0 + np.exp(0.4 * (epochs - 20.0))) ** 2}

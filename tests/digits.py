"""The features of a small network with kept weights, for tests: every machine computes the same numbers."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

WEIGHTS = Path(__file__).parent / "data" / "digits_network.npz"
"""A classifier of scikit-learn's digits with hidden layers of 32 and 16 neurons, its weights rounded to float16."""


class Digits(NamedTuple):
    """Features of the digits and of their mirror images (which are no digits), labels, and the last layer."""

    features: np.ndarray
    labels: np.ndarray
    W: np.ndarray
    b: np.ndarray
    mirrored: np.ndarray


def digits() -> Digits:
    """The penultimate layer of the network."""
    found: Any = load_digits()
    pixels, labels = found.data, found.target
    network = {name: array.astype(float) for name, array in np.load(WEIGHTS).items()}

    def penultimate(images):
        layer = images / 16
        for i in range(2):
            layer = np.maximum(layer @ network[f"weights_{i}"] + network[f"bias_{i}"], 0)
        return layer

    mirrored = pixels.reshape(-1, 8, 8).transpose(0, 2, 1).reshape(pixels.shape)
    return Digits(penultimate(pixels), labels, network["weights_2"].T, network["bias_2"], penultimate(mirrored))

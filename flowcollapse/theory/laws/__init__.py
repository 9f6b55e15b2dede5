"""The laws of the model. Each is a function that compares the theory with simulations or gradients."""

from . import (
    collapse as collapse,
    curvature as curvature,
    ends as ends,
    escape as escape,
    frames as frames,
    imbalance as imbalance,
    logits as logits,
    margin as margin,
    paths as paths,
)
from .registry import LAWS as LAWS, Law as Law, law as law

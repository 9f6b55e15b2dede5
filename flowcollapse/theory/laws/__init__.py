"""The laws of the model, one function each: what the theory says against what simulations and gradients show."""

from . import collapse as collapse, curvature as curvature, ends as ends, escape as escape, paths as paths
from .registry import LAWS as LAWS, Law as Law, law as law

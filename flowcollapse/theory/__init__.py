"""Results about the model that need no run: its invariant subspace, paths in closed form, limits of small starts,
learning curves and predictions, the landscape, and the certificate that measures all these laws."""

from . import (
    certificate as certificate,
    exact as exact,
    imbalance as imbalance,
    landscape as landscape,
    max_margin as max_margin,
    riccati as riccati,
    subspace as subspace,
)
from .frames import Transition as Transition, transition as transition
from .minima import Minimiser as Minimiser, minimiser as minimiser
from .optimality import Optimality as Optimality, certify as certify
from .small_starts import curves as curves, limits as limits, prediction as prediction, scaling as scaling

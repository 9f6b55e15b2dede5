"""What is known of the model without a simulation: its invariant subspace, paths in closed form, limits, landscape."""

from . import (
    certificate as certificate,
    curves as curves,
    exact as exact,
    landscape as landscape,
    limits as limits,
    prediction as prediction,
    subspace as subspace,
)

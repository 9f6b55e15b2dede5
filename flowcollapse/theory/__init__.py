"""What is known of the model without a simulation: its invariant subspace, paths in closed form, limits, landscape."""

from . import exact as exact, landscape as landscape, subspace as subspace

"""What is known of the model without a simulation: the invariant subspace, and paths in closed form."""

from . import exact as exact, subspace as subspace

"""How far a state is from strong neural collapse, and from the invariant subspace S."""

import functools

import jax.numpy as jnp

from .._linalg.algebra import root
from .view import Metric, View, _or_nan


def _snc1(view: View):
    size, shift, _, _ = view.target
    C = view.problem.model.num_classes
    frame = jnp.eye(C, dtype=view.B.dtype) - shift / C
    return jnp.sqrt(jnp.sum((view.classifier.gram - size * frame) ** 2))


def _snc2(view: View):
    return jnp.sqrt((view.L_square + view.unduality_square(view.target.ratio)) / _or_nan(view.X_square))


def _snc3(view: View):
    return root(jnp.sum((view.point.b - view.target.bias) ** 2))  # always 0 without a bias


def _relative_distance(view: View):
    state_square = view.classifier.total + view.X_square + jnp.sum(view.point.b**2)
    return view.distance / jnp.sqrt(_or_nan(state_square))


_to_target = functools.partial(Metric, equal_counts=True, target=True)
_to_subspace = functools.partial(Metric, equal_counts=True, squared_error=True)

METRICS = {
    "snc1": _to_target(
        _snc1,
        "strong collapse of the classifier",
        "SNC1 error",
        r"$\|W W^{\top} - \sqrt{N}\,(I - \frac{1}{C}\,\mathbf{1}\mathbf{1}^{\!\top})\|_F$",
    ),
    "snc2": _to_target(
        _snc2,
        "strong collapse of the features, relative",
        "SNC2 error",
        r"$\|H - \frac{1}{\sqrt{N}}\,(W \otimes \mathbf{1}_N)^{\!\top}\|_F \,/\, \|H\|_F$",
    ),
    "snc3": _to_target(_snc3, "strong collapse of the bias", "SNC3 error", r"$\|b - \frac{1}{C}\,\mathbf{1}\|_2$"),
    "distance": _to_subspace(lambda v: v.distance, "distance to the invariant subspace S"),
    "relative_distance": _to_subspace(
        _relative_distance,
        "distance to S over the norm of the state",
        r"relative distance to $S$",
        r"$\|Z - \Pi_S Z\|_E \,/\, \|Z\|_E$",
    ),
}

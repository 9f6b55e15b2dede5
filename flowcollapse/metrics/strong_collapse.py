"""How far a state is from strong neural collapse, and from the invariant subspace S."""

import functools

import jax.numpy as jnp

from .view import Metric, View, _or_nan


def _snc1(view: View):
    C = view.problem.model.num_classes
    frame = jnp.eye(C, dtype=view.B.dtype) - (1 / C if view.problem.model.use_bias else 0)
    return jnp.sqrt(jnp.sum((view.classifier.gram - view.root_n * frame) ** 2))


def _snc2(view: View):
    return jnp.sqrt((view.L_square + view.unduality_square) / _or_nan(view.X_square))


def _snc3(view: View):
    model = view.problem.model
    return jnp.sqrt(jnp.sum((view.point.b - (1 / model.num_classes if model.use_bias else 0.0)) ** 2))


def _relative_distance(view: View):
    state_square = view.classifier.total + view.X_square + jnp.sum(view.point.b**2)
    return view.distance / jnp.sqrt(_or_nan(state_square))


_metric = functools.partial(Metric, equal_counts=True, squared_error=True)

METRICS = {
    "snc1": _metric(
        _snc1,
        "strong collapse of the classifier",
        "SNC1 error",
        r"$\|W W^{\top} - \sqrt{N}\,(I - \frac{1}{C}\,\mathbf{1}\mathbf{1}^{\!\top})\|_F$",
    ),
    "snc2": _metric(
        _snc2,
        "strong collapse of the features, relative",
        "SNC2 error",
        r"$\|H - \frac{1}{\sqrt{N}}\,(W \otimes \mathbf{1}_N)^{\!\top}\|_F \,/\, \|H\|_F$",
    ),
    "snc3": _metric(_snc3, "strong collapse of the bias", "SNC3 error", r"$\|b - \frac{1}{C}\,\mathbf{1}\|_2$"),
    "distance": _metric(lambda v: v.distance, "distance to the invariant subspace S"),
    "relative_distance": _metric(
        _relative_distance,
        "distance to S over the norm of the state",
        r"relative distance to $S$",
        r"$\|Z - \Pi_S Z\|_E \,/\, \|Z\|_E$",
    ),
}

"""How far a state is from strong neural collapse, and from the invariant subspace S."""

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


METRICS = {
    "snc1": Metric(_snc1, "strong collapse of the classifier", equal_counts=True),
    "snc2": Metric(_snc2, "strong collapse of the features, relative", equal_counts=True),
    "snc3": Metric(_snc3, "strong collapse of the bias", equal_counts=True),
    "distance": Metric(lambda v: v.distance, "distance to the invariant subspace S", equal_counts=True),
    "relative_distance": Metric(_relative_distance, "distance to S over the norm of the state", equal_counts=True),
}

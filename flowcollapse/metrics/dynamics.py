"""Metrics of a run's dynamics: the risk, its gradient, the conserved imbalance, the sharpness."""

import jax.numpy as jnp

from ..curvature.hessian import largest_eigenvalue
from .view import Metric, View, _or_nan


def _risk(view: View):
    return view.problem.risk(view.point, view.logits)


def _grad_norm(view: View):
    return jnp.sqrt(sum(jnp.sum(part**2) for part in view.problem.field(view.point, view.logits)))


def _balancedness(view: View):
    if view.start is None:
        return 0.0 / _or_nan(view.X_square)
    return view.start.drift(view.point) / _or_nan(view.start.X_square)


def _sharpness(view: View):
    """The same in all coordinates: hidden directions are never more curved than the visible ones."""
    return largest_eigenvalue(view.problem, view.point)


METRICS = {
    "risk": Metric(_risk, "risk"),
    "grad_norm": Metric(_grad_norm, "norm of the risk's gradient"),
    "balancedness": Metric(_balancedness, "drift of W^T W - H H^T over the squared norm of H at the start"),
    "sharpness": Metric(_sharpness, "largest eigenvalue of the Hessian", costly=True),
}

"""Metrics of the margins, of the logits, and of the residual that certifies a minimum."""

import functools

import jax.numpy as jnp

from ..endings.margin import margins
from ..endings.modes import target_modes
from ..endings.stationary import residual_norm
from .view import Metric, View, _or_nan, _square


def _norm_square(view: View):
    """`||W||^2 + ||H||^2`."""
    return _or_nan(view.classifier.total + view.X_square)


def _margin(view: View):
    return jnp.min(margins(view.problem, view.logits))


def _normalised_margin(view: View):
    return _margin(view) / (0.5 * _norm_square(view))


def _smoothed_margin(view: View):
    """`-ln(e^R - 1)` from `ln R`, so that it is exact where R or `e^R` is no number any more."""
    log_sum = view.problem.model.loss.log_value(view.logits, *view.problem.data(view.logits))
    R = jnp.exp(log_sum)
    small = R < 1
    inside, above = jnp.where(small & (R > 0), R, 1.0), jnp.where(small, 1.0, R)
    # For small R, `ln(e^R - 1) = ln R + ln((e^R - 1) / R)`, whose last part vanishes with R.
    below_one = log_sum + jnp.where(R > 0, jnp.log(jnp.expm1(inside) / inside), 0.0)
    log_excess = jnp.where(small, below_one, above + jnp.log(-jnp.expm1(-above)))
    return -log_excess / _norm_square(view)


def _logit_spread(view: View):
    """The target of every sample is its column of P, so for all counts the collapsed logits are multiples of P Y."""
    logits, (labels, _) = view.logits, view.problem.data(view.logits)
    Z, Y = logits - jnp.mean(logits, axis=0), labels - jnp.mean(labels, axis=0)
    rho = jnp.sum(Z * Y) / _square(Y)
    return jnp.sqrt(_square(Z - rho * Y) / _or_nan(_square(Z)))


def _alignment(view: View):
    U, _, V = (jnp.asarray(part, view.B.dtype) for part in target_modes(view.problem.model))
    of_W, of_B = view.W.T @ U, view.B @ V
    return jnp.sqrt(_square(of_W / jnp.sqrt(_or_nan(_square(of_W))) - of_B / jnp.sqrt(_or_nan(_square(of_B)))))


def _residual_norm(view: View):
    return residual_norm(view.problem.residual(view.point, view.logits))


_of_softmax = functools.partial(Metric, shift_invariant=True)

METRICS = {
    "margin": _of_softmax(
        _margin,
        "smallest margin of a sample",
        "margin",
        r"$\min_i\,(z_{y_i} - \max_{j \neq y_i} z_j)$",
        samples=True,
    ),
    "normalised_margin": _of_softmax(
        _normalised_margin,
        "smallest margin over half the squared norm of W and H",
        "normalised margin",
        r"$2\,\min_i\,(z_{y_i} - \max_{j \neq y_i} z_j) \,/\, (\|W\|_F^2 + \|H\|_F^2)$",
        samples=True,
    ),
    "smoothed_margin": _of_softmax(
        _smoothed_margin,
        "smoothed margin over the squared norm of W and H",
        "smoothed margin",
        r"$-\ln(e^R - 1) \,/\, (\|W\|_F^2 + \|H\|_F^2)$",
    ),
    "logit_spread": _of_softmax(
        _logit_spread,
        "relative distance of the logits to the collapsed ones",
        "spread of the logits",
        r"$\min_\rho \|P Z - \rho P Y\|_F \,/\, \|P Z\|_F$",
    ),
    "alignment": _of_softmax(
        _alignment,
        "self-duality along the modes of the targets",
        "misalignment",
        r"$\|W^{\top} U/\|W^{\top} U\| - B V/\|B V\|\,\|_F$",
    ),
    "residual_norm": Metric(
        _residual_norm,
        "largest singular value of the residual",
        "residual norm",
        r"$\|\partial R / \partial Z\|_{\mathrm{op}}$",
        costly=True,
    ),
}

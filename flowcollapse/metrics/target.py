"""The state that strong collapse is measured against: that of the paper, or the balanced minimum of another loss."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.problem import Point, Problem
from ..model.requirements import known_decays
from ..model.ufm import UFM


class Target(NamedTuple):
    """`W W^T = size (I - shift / C)`, `B = ratio W^T` with `B = Hbar diag(sqrt n)`, and a constant bias.

    For the squared error it is that of the paper, whatever the decay. For a loss that only differences of logits matter
    to, it is the collapsed minimum with decay included: logits `rho P` with `sqrt N pull(rho) = sqrt(lam_W lam_H)`,
    `size = rho sqrt(N lam_H / lam_W)` and `ratio = sqrt(lam_W / lam_H)`, which is 1 without decay (derived here). Where
    there is no such minimum, the numbers are NaN.
    """

    size: Float[Array, ""] | float
    shift: int
    ratio: Float[Array, ""] | float
    bias: Float[Array, ""] | float

    @classmethod
    def of(cls, problem: Problem, point: Point) -> "Target":
        model, dtype = problem.model, point.W.dtype
        C, s = model.num_classes, model.counts[0] ** 0.5
        if model.loss.squared_error:
            return cls(s, int(model.use_bias), 1.0, 1 / C if model.use_bias else 0.0)
        lam_W, lam_H, lam_b = problem.decays(dtype)
        decayed, free = (lam_W > 0) & (lam_H > 0), lam_W + lam_H == 0
        product, quotient = (jnp.where(decayed, x, y) for x, y in ((lam_W * lam_H, 1.0), (lam_W / lam_H, 1.0)))
        rho = problem.loss.collapsed_logit(jnp.where(decayed, jnp.sqrt(product), 0.0) / s, C)
        ratio = jnp.sqrt(quotient)
        bias = jnp.where(lam_b > 0, 0.0, jnp.mean(point.b))
        there = decayed | (free & model.loss.attained)
        size, ratio, bias = (jnp.where(there, x, jnp.nan) for x in (s * rho / ratio, ratio, bias))
        return cls(size, 1, ratio, bias)


def lack_of_target(model: UFM) -> str:
    """The reason why a model has no finite target, with a cure; empty if it has one, or if traced decays decide it."""
    if model.loss.squared_error:
        return ""
    name = repr(model.loss.text)
    if not model.loss.shift_invariant:
        return (
            "measures against the collapse of the squared error or of a loss of the softmax, and the loss is "
            f"{name}: leave it out, or use a metric that starts with nc"
        )
    decays = known_decays(model)
    if decays is None or min(decays[:2]) > 0 or (model.loss.attained and max(decays[:2]) == 0):
        return ""
    cure = "set both or neither" if model.loss.attained else "set both, or use margin"
    return (
        f"measures against the minimum, which the loss {name} lacks with weight decay {decays[0]:g} of W and "
        f"{decays[1]:g} of H: {cure}"
    )

"""Whether a state is a global minimum of the risk: a bound by convex duality, for any convex loss.

With `mu = sqrt(lam_W lam_H)`, a state has at least the risk `f(W H + b 1^T) + mu ||W H||_* + lam_b/2 |b|^2`, where f is
the loss. For any logits A0 with the residual `G = f'(A0)`, and any theta from 0 to 1, convexity and `f >= f_inf` give

    f(A) >= theta (f(A0) + <G, A - A0>) + (1 - theta) f_inf.

If `theta ||G||_op <= mu`, then `theta <G, Z> + mu ||Z||_* >= 0`, so no state has a lower risk than

    theta (f(A0) - <G, A0>) + (1 - theta) f_inf - theta^2 |G 1|^2 / (2 lam_b)

(derived here). It takes one singular value decomposition of G, holds for any number of features, and is sharp: at a
critical point with `||G||_op <= mu` it equals the risk. The bias of A0 may differ from that of the state; it is
moved to where it is best, which without decay of b is the only place with a bound, `G 1 = 0`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import Number, check_positive
from .._errors import UsageError
from .._linalg.algebra import lu_factor, lu_solve, singular_values
from ..losses.base import AbstractLoss
from ..model.batch import of_states
from ..model.problem import Point, Problem, problem_of
from ..model.requirements import check_model, check_state
from ..model.state import State
from ..model.ufm import UFM

NEWTON_STEPS = 16
LENGTHS = np.append(2.0 ** -np.arange(8), 0.0)
"""The lengths among which each Newton step chooses."""


class Optimality(NamedTuple):
    """How far a state can be from a global minimum.

    - `residual_norm`: `||G||_op`, the largest singular value of the derivative of the loss in the logits.
    - `bound`: `mu = sqrt(lam_W lam_H)`. At a global minimum `residual_norm` is at most that.
    - `gradient`: the norm of the gradient of the risk, over the sum of the norms of its parts from loss and decay; 0 if
      only rounding is left.
    - `excess`: no state has a risk lower than that of this state by more than this.
    - `is_global`: whether the excess is negligible, so that the state is a global minimum.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4, weight_decay=0.1)
        >>> bool(fc.theory.certify(model, fc.theory.minimiser(model).state).is_global)
        True
    """

    residual_norm: Float[Array, "*batch"]
    bound: Float[Array, "*batch"]
    gradient: Float[Array, "*batch"]
    excess: Float[Array, "*batch"]
    is_global: Bool[Array, "*batch"]


def certify(model: UFM, state: State, *, rtol: Number | None = None) -> Optimality:
    """The certificate of a state: how far its risk can be above the global minimum.

    Args:
        model: the model, with a convex loss; any counts, decays and number of features.
        state: a state of it, with any leading axes.
        rtol: `is_global` asks that the excess is at most `rtol` times the risk; without decay of both W and H, times
            the risk of the origin. Default: the square root of the rounding of the state's precision.

    Returns:
        The `Optimality`. A state that fails may still be a global minimum if p is smaller than the rank of the best
        logits, because the bound holds for any number of features.

    Raises:
        UsageError: for a loss that is not convex, a state that does not fit the model, or an rtol that is not positive.

    Source: derived here from the dual of the nuclear norm; the global certificate of cross-entropy is in Zhu et al.
    2021 (arXiv 2105.02375).

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4, weight_decay=0.1, loss="cross-entropy")
        >>> bool(fc.theory.certify(model, fc.initial.sphere(model, 1.0, key=jax.random.key(0))).is_global)
        False
    """
    check_model(model)
    if not model.loss.convex:
        raise UsageError(
            f"loss is {model.loss.text!r}, which is not convex, so no state can be certified: use a convex loss such "
            'as loss="cross-entropy", or fc.hessian_spectrum for a local minimum.'
        )
    check_positive("rtol", rtol)
    check_state(model, state)
    rtol = jnp.sqrt(jnp.finfo(state.W.dtype).eps) if rtol is None else rtol
    return of_states(_certify, model, state, jnp.asarray(rtol, state.W.dtype))


def _certify(model: UFM, state: State, rtol: Float[Array, ""]) -> Optimality:
    problem, point = problem_of(model, state)
    lam_W, lam_H, lam_b = problem.decays(point.X.dtype)
    mu, logits = jnp.sqrt(lam_W * lam_H), problem.logits(point)
    G, risk = problem.residual(point, logits), problem.risk(point, logits)

    free = (lam_b == 0) & model.use_bias
    targets, ones = problem.data(logits)
    anchor = logits
    if model.use_bias:
        b = best_bias(problem, logits - point.b[:, None] * ones, point.b, lam_b)
        anchor = logits + (b - point.b)[:, None] * ones
    slope = problem.loss.gradient(anchor, targets, ones)
    mean = slope @ ones
    # Without decay of b nothing but rounding is left of the mean, or no bound is known.
    fitted = jnp.linalg.norm(mean) <= 1e3 * jnp.finfo(mean.dtype).eps * jnp.linalg.norm(ones) * (
        jnp.linalg.norm(slope) + model.scale * jnp.linalg.norm(targets)
    )
    slope = jnp.where(free, slope - jnp.outer(mean, ones) / jnp.sum(ones**2), slope)
    size = singular_values(slope)[0]
    theta = jnp.minimum(1.0, jnp.where(size > 0, mu / jnp.where(size > 0, size, 1.0), 1.0))
    of_bias = jnp.sum(mean**2) / (2 * jnp.where(lam_b > 0, lam_b, 1.0)) * (lam_b > 0) * model.use_bias
    below = theta * (problem.loss.value(anchor, targets, ones) - jnp.sum(slope * anchor)) - theta**2 * of_bias
    below += (1 - theta) * _infimum(problem.loss, targets, ones)
    excess = jnp.where(free & ~fitted, jnp.inf, jnp.maximum(risk - below, 0.0))

    scale = jnp.where(mu > 0, risk, problem.loss.value(jnp.zeros_like(logits), targets, ones))
    return Optimality(
        residual_norm=singular_values(G)[0],
        bound=mu,
        gradient=_relative_gradient(problem, point, G),
        excess=excess,
        is_global=excess <= rtol * scale,
    )


def _relative_gradient(problem: Problem, point: Point, G: Float[Array, "C n"]) -> Float[Array, ""]:
    W, X, _ = point
    lams = problem.decays(X.dtype)
    of_b = problem.columns.times_ones(G) * problem.model.use_bias
    of_loss = (G @ X.T, W.T @ G, of_b)
    of_decay = tuple(lam * part for lam, part in zip(lams, point, strict=True))

    def size(parts) -> Float[Array, ""]:
        return jnp.sqrt(sum(jnp.sum(part**2) for part in parts))

    total = size(of_loss) + size(of_decay)
    both = size([one + other for one, other in zip(of_loss, of_decay, strict=True)])
    rounding = 64 * jnp.finfo(X.dtype).eps * jnp.linalg.norm(G) * problem.model.num_samples**0.5
    return jnp.where(both > rounding, both / jnp.where(total > 0, total, 1.0), 0.0)


def best_bias(
    problem: Problem, logits: Float[Array, "C n"], b: Float[Array, " C"], lam_b: Float[Array, ""]
) -> Float[Array, " C"]:
    """The bias of least risk beside the features' logits, by Newton's method from b. Without decay its mean stays."""
    targets, ones = problem.data(logits)
    loss, C = problem.loss, len(logits)

    def slope(b):
        return loss.gradient(logits + b[:, None] * ones, targets, ones) @ ones + lam_b * b

    def step(_, b):
        matrix = jax.jacfwd(slope)(b)
        if loss.shift_invariant:  # no curvature along 1, and no slope
            matrix = matrix + jnp.where(lam_b > 0, 0.0, jnp.trace(matrix) / C**2)
        full = lu_solve(lu_factor(matrix), slope(b))
        choices = b - jnp.asarray(LENGTHS, b.dtype)[:, None] * full
        sizes = jnp.linalg.norm(jax.vmap(slope)(choices), axis=1)
        return choices[jnp.argmin(jnp.where(jnp.isfinite(sizes), sizes, jnp.inf))]

    return jax.lax.fori_loop(0, NEWTON_STEPS, step, b)


def _infimum(loss: AbstractLoss, targets: Float[Array, "C n"], ones: Float[Array, " n"]) -> Float[Array, ""] | float:
    """A number that the loss nowhere falls below: its minimum if that is known, otherwise 0."""
    if not (loss.contrastive and loss.attained):
        return 0.0
    C = len(targets)
    rho = loss.collapsed_logit(jnp.zeros((), targets.dtype), C)
    return loss.value(rho * (targets - jnp.mean(targets, axis=0)), targets, ones)

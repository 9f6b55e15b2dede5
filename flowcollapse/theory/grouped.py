"""The global minimum of a convex loss with decay, by a small numerical minimisation over groups of equal classes.

With decay of W and H and enough features, the least risk is `min a f(Z + b u^T) + mu ||Z||_* + lam_b/2 |b|^2` over
logits of class means in the columns `B = Hbar diag(sqrt n)`, `u = sqrt n`, `mu = sqrt(lam_W lam_H)`: by convexity, the
features of a minimiser are equal inside each class. If the loss treats classes alike, the mean over all permutations of
classes with equal counts is at least as good. So with G groups of k_g classes,

    Z = sum_g x_g (I_g - 1_g 1_g^T / k_g) + sum_gh M_gh 1_g 1_h^T / sqrt(k_g k_h),
    ||Z||_* = sum_g (k_g - 1) |x_g| + ||M||_*

(derived here): one class per group stands for all, and the size of the problem is G and not C. The norms are replaced
by factors, `x_g = v_g^2` and `M = A B^T` with square A and B, which adds no local minimum (Burer and Monteiro 2005).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from ..model.columns import within_class_basis
from ..model.ufm import UFM

LBFGS_STEPS = 2000
NEWTON_STEPS = 6
CG_STEPS = 400
LARGEST_START = 1e3
"""The largest logit of the start; the logits of a minimum are larger only if the decay is below e^-1000."""


class Groups(NamedTuple):
    """Classes with equal counts: the group of each class, the k_g, the n_g, and one class of each group."""

    of_class: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(cls, model: UFM) -> "Groups":
        """The groups of a model. If its loss may treat classes differently, each class is a group."""
        n = np.array(model.counts)
        if not (model.loss.contrastive or model.loss.squared_error):
            places = np.arange(len(n))
            return cls(places, np.ones_like(n), n, places)
        counts, chosen, of_class, sizes = np.unique(n, return_index=True, return_inverse=True, return_counts=True)
        return cls(of_class, sizes, counts, chosen)


class Factors(NamedTuple):
    """The unknowns of the module's description, and the bias of each group."""

    v: Float[Array, " G"]
    A: Float[Array, "G G"]
    B: Float[Array, "G G"]
    b: Float[Array, " G"]


def objective(model: UFM, factors: Factors) -> Float[Array, ""]:
    """The risk of a model with the sum over the samples, if both decays were mu, as a function of the factors."""
    groups, dtype = Groups.of(model), factors.v.dtype
    v, A, B, b = _existing(model, groups, factors)
    k, roots = jnp.asarray(groups.sizes, dtype), jnp.asarray(np.sqrt(groups.counts), dtype)
    lam_W, lam_H, lam_b = (lam.astype(dtype) for lam in model.decays)
    own = jnp.asarray(groups.of_class[:, None] == np.arange(len(k)), dtype)
    label = jnp.zeros_like(own).at[groups.chosen, np.arange(len(k))].set(1.0)
    shared = (A @ B.T / jnp.sqrt(k)[:, None] / jnp.sqrt(k))[groups.of_class]
    logits = (v**2 * (label - own / k) + shared) / roots + b[groups.of_class][:, None]
    ones = roots * jnp.sqrt(k)
    norms = jnp.sum((k - 1) * v**2) + (jnp.sum(A**2) + jnp.sum(B**2)) / 2
    value = model.loss.value(ones * logits, ones * label, ones)
    return value + jnp.sqrt(lam_W * lam_H) * norms + lam_b / 2 * jnp.sum(k * b**2)


def _existing(model: UFM, groups: Groups, factors: Factors) -> Factors:
    """The factors without those that the model does not have: `x_g` of single classes, and the bias."""
    several = jnp.asarray(groups.sizes > 1, factors.v.dtype)
    return factors._replace(v=factors.v * several, b=factors.b * model.use_bias)


def solve(model: UFM) -> tuple[Float[Array, "C C"], Float[Array, "C C"], Float[Array, " C"]]:
    """Square factors `(W, B)` of the best logits, with `W^T W = B B^T`, and the bias.

    The model must have the sum over the samples, and decay of both W and H. Derivatives are those of the equation
    `gradient = 0`.
    """
    groups = Groups.of(model)
    first, unravel = ravel_pytree(_start(model, groups))
    fixed = jax.lax.stop_gradient(model)

    def risk(model: UFM) -> Callable:
        return lambda x: objective(model, unravel(x))

    gradient = jax.grad(risk(fixed))

    lam_W, lam_H, _ = (lam.astype(first.dtype) for lam in fixed.decays)
    mu = jnp.sqrt(lam_W * lam_H)  # curvatures are multiples of it; rotations of the factors have none

    def newton(x, g, damping):
        return x - cg(lambda v: jax.jvp(gradient, (x,), (v,))[1] + damping * mu * v, g, tol=1e-14, maxiter=CG_STEPS)[0]

    def better(_, x):
        g = gradient(x)
        moved = newton(x, g, damping=1e-6)
        return jnp.where(jnp.linalg.norm(gradient(moved)) < jnp.linalg.norm(g), moved, x)

    x = _lbfgs(risk(fixed), first)
    x = jax.lax.stop_gradient(jax.lax.fori_loop(0, NEWTON_STEPS, better, x))
    last = jax.grad(risk(model))(x)
    x = newton(
        x, last - jax.lax.stop_gradient(last), damping=1e-12
    )  # moves nothing, and has the derivatives of the minimum
    return _assembled(groups, _existing(model, groups, unravel(x)))


def _assembled(groups: Groups, factors: Factors) -> tuple[Array, Array, Array]:
    """The factors for all classes: columns within each group, then those of the means of the groups."""
    v, A, B, b = factors
    dtype, order = v.dtype, np.argsort(groups.of_class, kind="stable")
    place = np.argsort(order, kind="stable")
    within = within_class_basis(tuple(map(int, groups.sizes)), dtype)[place]
    within = within * v[np.repeat(np.arange(len(v)), groups.sizes - 1)]
    roots = jnp.asarray(np.sqrt(groups.sizes), dtype)[:, None]
    W, columns = (jnp.concatenate([within, (part / roots)[groups.of_class]], axis=1) for part in (A, B))
    return W, columns.T, b[groups.of_class]


def _start(model: UFM, groups: Groups) -> Factors:
    """Each group at the logits that it would have among equals."""
    dtype = jnp.result_type(float)
    lam_W, lam_H, _ = (lam.astype(dtype) for lam in model.decays)
    roots = jnp.asarray(np.sqrt(groups.counts), dtype)
    rho = model.loss.collapsed_logit(jnp.sqrt(lam_W * lam_H) / roots, model.num_classes)
    v = jnp.sqrt(0.1 + roots * jnp.clip(rho, 0.0, LARGEST_START))
    return Factors(v, jnp.diag(v), 0.9 * jnp.diag(v), jnp.zeros_like(v))


def _lbfgs(function: Callable, x: Float[Array, " m"]) -> Float[Array, " m"]:
    """A point near the minimum of a function, by L-BFGS with the line search of optax."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(function)
    least = jnp.finfo(x.dtype).eps ** 0.6

    def step(carry):
        x, state, count, _ = carry
        value, grad = value_and_grad(x, state=state)
        updates, state = solver.update(grad, state, x, value=value, grad=grad, value_fn=function)
        return x + updates, state, count + 1, jnp.linalg.norm(updates) > least * jnp.linalg.norm(x)

    begin = (x, solver.init(x), 0, jnp.asarray(True))
    return jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < LBFGS_STEPS), step, begin)[0]

"""The stiff part of the flow: the mean residual, which is the only fast variable and relaxes linearly."""

from typing import Any, cast

import diffrax as dfx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import beside, times
from ..endings.choice import ending_of
from ..model.columns import Columns
from ..model.problem import Point, Problem, products
from ..programs import called

FIRST_STEP = 3.0
"""The first step times the fastest rate, over `rtol^(1/order)`. Of 1, 2, 3 and 5, the value 3 took the fewest steps."""


def first_step(problem: Problem, rtol: Float[Array, ""], solver: dfx.AbstractSolver) -> Float[Array, ""]:
    """A first step that resolves the transient of the mean residual. A much larger step would be rejected."""
    order = solver.order(cast(Any, None)) or 1
    _, lam_H, _ = problem.decays(rtol.dtype)
    fastest = stiff_rate(problem, rtol.dtype) + lam_H + problem.model.scale * max(problem.model.counts) ** 0.5
    return FIRST_STEP * rtol ** (1 / order) / fastest


def longest_step(problem: Problem, solver: dfx.AbstractSolver, t1: Float[Array, ""]) -> Float[Array, ""] | None:
    """The longest stable step of the solver up to t1, or None if its stability or the fastest decay is not known."""
    stable = getattr(solver, "real_stability", None)
    fastest = ending_of(problem).fastest_rate(t1)
    return None if stable is None or fastest is None else stable / fastest


def stiff_rate(problem: Problem, dtype) -> Float[Array, ""]:
    """The rate `a n_tot + lam_b` at which the mean residual decays, where the risk is `a` times the sum of the loss.

    Without a bias, the residual does not decay.
    """
    return (problem.model.scale * problem.model.num_samples if problem.model.use_bias else 0) + problem.decays(dtype)[2]


def to_mean_residual(problem: Problem, point: Point) -> Float[Array, " C"]:
    """`e = (W X u + a b - T u) / a`: the residual averaged over the samples, one number per class."""
    return bias_free_residual(problem, point.W, point.X) + point.b


def from_mean_residual(
    problem: Problem, W: Float[Array, "C p"], X: Float[Array, "p n"], e: Float[Array, " C"]
) -> Point:
    """The point whose mean residual is e: `b = e - (W X u - T u) / a`."""
    if not problem.model.use_bias:
        return Point(W, X, jnp.zeros_like(e))
    return Point(W, X, e - bias_free_residual(problem, W, X))


def bias_free_residual(problem: Problem, W: Float[Array, "C p"], X: Float[Array, "p n"]) -> Float[Array, " C"]:
    """`(W X u - T u) / a`, computed with vectors only."""
    counts = jnp.asarray(problem.model.counts, X.dtype)
    return (W @ problem.columns.times_ones(X) - counts) / problem.model.num_samples


def mean_residual_field(
    problem: Problem, W: Float[Array, "C p *lanes"], X: Float[Array, "p n *lanes"], e: Float[Array, "C *lanes"]
) -> tuple[Float[Array, "C p *lanes"], Float[Array, "p n *lanes"], Float[Array, "C *lanes"]]:
    """The flow in `(W, X, e)`: `(W', X', g)` with `e' = -(a + lam_b) e + g`. Lanes, if any, come last.

    With `m = (W X - T) u / a`, the residual is `G = W X - T + (e - m) u^T`, `W' = -G X^T - lam_W W`,
    `X' = -W^T G - lam_H X`, and `g = lam_b m + (W' X u + W X' u) / a` needs only vectors, because
    `X' u = -a W^T e - lam_H X u`. Without a bias, `G = W X - T` and e is constant. This takes three matrix products,
    `6 C p n` operations (derived here). If the loss is averaged, G has the factor `1 / a`.
    """
    decays, scale = problem.decays(X.dtype), problem.model.scale
    if not problem.model.use_bias:
        G = _residual(problem.columns, W, X, None)
        return *_velocities(decays, W, X, G if scale == 1 else scale * G), jnp.zeros_like(e)
    Xu, m = _vectors(problem.columns, W, X)
    G = _residual(problem.columns, W, X, e - m)
    W_velocity, X_velocity = _velocities(decays, W, X, G if scale == 1 else scale * G)
    return W_velocity, X_velocity, _mean_forcing(problem.model.num_samples, scale, decays, W, W_velocity, Xu, m, e)


@called
def _vectors(columns: Columns, W, X):
    Xu = columns.times_ones(X)
    return Xu, (times(W, Xu) - beside(columns.counts, X[0, 0])) / columns.num_samples


@called
def _residual(columns: Columns, W, X, mean):
    n, dtype = X.shape[1], X.dtype
    M = times(W, X) - beside(columns.targets(n, dtype), X[0, 0])
    return M if mean is None else M + mean[:, None] * beside(columns.ones(n, dtype), X[0, 0])


@called
def _velocities(decays, W, X, G):
    lam_W, lam_H, _ = decays
    of_W, of_X = products(W, X, G)
    return -of_W - lam_W * W, -of_X - lam_H * X


@called
def _mean_forcing(a: int, scale: float, decays, W, W_velocity, Xu, m, e):
    _, lam_H, lam_b = decays
    drift = scale * a * times(jnp.swapaxes(W, 0, 1), e) + lam_H * Xu
    return lam_b * m + (times(W_velocity, Xu) - times(W, drift)) / a

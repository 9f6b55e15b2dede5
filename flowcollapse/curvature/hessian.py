"""The Hessian of the risk: its products with vectors, its trace, and its largest eigenvalue (the sharpness)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._checks import check_integer
from .._errors import UsageError
from .._linalg.lanczos import Apply, dominant, krylov
from ..model.batch import floating, is_small, over_batch
from ..model.coordinates import enter
from ..model.problem import Point, Problem, problem_of
from ..model.requirements import check_one, check_state, require
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program

ITERATIONS = 32
"""The default number of Lanczos steps."""


def hessian_vector_product(model: UFM, state: State, direction: State) -> State:
    """The Hessian of the risk times a direction, by one derivative of the flow's field and without forming a matrix.

    Args:
        model: the model.
        state: one state of it (use `jax.vmap` for more).
        direction: H, W and b of the direction, in the same columns.

    Raises:
        UsageError: if the state or the direction does not fit the model, or the two differ in their columns.

    Source: derived here; the Jacobian of the gradient flow's field is minus the Hessian.

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.curvature import hessian_vector_product
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
        >>> state = fc.initial.collapsed(model, key=jax.random.key(0))
        >>> along_b = fc.State(H=0 * state.H, W=0 * state.W, b=state.b)
        >>> bool(abs(hessian_vector_product(model, state, along_b).b - 9 * state.b).max() < 1e-6)
        True
    """
    check_state(model, state)
    check_state(model, direction, "direction")
    check_one(state, "state")
    check_one(direction, "direction")
    if direction.X.shape != state.X.shape or direction.coordinates != state.coordinates:
        raise UsageError(
            f"direction has {direction.coordinates} columns of shape {direction.X.shape} but the state has "
            f"{state.coordinates} columns of shape {state.X.shape}: give both in the same columns."
        )
    model, state = floating(model, state)
    W, X, b = _product(model, state, direction, quick=is_small(state))
    return State(X=X, W=W, b=b, columns=state.columns)


@Program
def _product(model: UFM, state: State, direction: State) -> Point:
    problem, point = problem_of(model, state)
    return _times(problem, *_of_one_precision(point, problem_of(model, direction)[1]))


def sharpness(model: UFM, state: State, *, iterations: int = ITERATIONS) -> Float[Array, "*batch"]:
    """The largest eigenvalue of the Hessian of the risk, by the Lanczos method in the cheapest exact coordinates.

    Args:
        model: the model.
        state: a state of it, with any leading axes (time, lanes).
        iterations: steps of the Lanczos method; each takes one product with the Hessian.

    Returns:
        The sharpness, one number for each leading index. It is a lower bound that improves with more iterations. Its
        derivative is the derivative of the Rayleigh quotient at a fixed vector (Hellmann and Feynman), so the
        iterations are not differentiated. If the eigenvalue is not simple, this is one of several one-sided
        derivatives.

    Raises:
        UsageError: if the state does not fit the model, or iterations is not a positive integer.

    Source: Lanczos 1950; the coordinates are derived here. At strong collapse the sharpness is `C N + sqrt N`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.curvature import sharpness
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5)
        >>> round(float(sharpness(model, fc.initial.collapsed(model, key=jax.random.key(0)))), 4)
        14.0
    """
    iterations = check_integer("iterations", iterations)
    check_state(model, state)
    model, state = floating(model, state)
    return _sharpness(model, state, iterations, quick=is_small(state))


@Program
def _sharpness(model: UFM, state: State, iterations: int) -> Float[Array, "*batch"]:
    def of_one(one: State) -> Float[Array, ""]:
        frame, problem, point = enter(*jax.lax.stop_gradient((model, one)), "auto")
        away = frame.leave(_top_vector(problem, point, iterations))
        X = away.X if one.columns.reduced else away.H
        return _quotient(*problem_of(model, one), Point(away.W, X, away.b))

    return over_batch(of_one, state)


def largest_eigenvalue(problem: Problem, point: Point, iterations: int = ITERATIONS) -> Float[Array, ""]:
    """The largest eigenvalue of the Hessian in the problem's coordinates; all coordinates share it, see `sharpness`."""
    return _quotient(problem, point, _top_vector(*jax.lax.stop_gradient((problem, point)), iterations))


def hessian_trace(model: UFM, state: State) -> Float[Array, "*batch"]:
    """The trace of the Hessian, the sum of all its eigenvalues, in closed form.

    `C ||H||^2 + n_tot ||W||^2 + C n_tot` (the last with a bias) `+ lam_W C p + lam_H p n_tot + lam_b C`: the residual
    enters the Hessian only off the diagonal (derived here).

    Args:
        model: the model.
        state: a state of it, with any leading axes.

    Raises:
        UsageError: if the state does not fit the model, or the loss is not the squared error.

    Source: derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.curvature import hessian_trace
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5)
        >>> round(float(hessian_trace(model, fc.initial.collapsed(model, key=jax.random.key(0)))), 3)
        96.0
    """
    require(model)
    check_state(model, state)
    C, p, num_samples = model.num_classes, model.num_features, model.num_samples
    lam_W, lam_H, lam_b = (decay.astype(state.W.dtype) for decay in model.decays)
    trace = C * jnp.sum(state.X**2, axis=(-2, -1)) + num_samples * jnp.sum(state.W**2, axis=(-2, -1))
    return trace + C * p * lam_W + p * num_samples * lam_H + (C * (num_samples + lam_b) if model.use_bias else 0)


def operator(problem: Problem, point: Point) -> tuple[Apply, Callable[[Float[Array, " size"]], Point], int]:
    """The Hessian as a function of flat vectors, the map from such a vector to a point, and the size of the vectors.

    Without a bias, the vectors have no part for b.
    """
    moving = 3 if problem.model.use_bias else 2
    flat, unravel = ravel_pytree(tuple(point)[:moving])
    # Linearised once, so that terms depending only on the point are not recomputed for every vector.
    _, push = jax.linearize(problem.field, point)

    def as_point(vector: Float[Array, " size"]) -> Point:
        return Point(*(*unravel(vector), jnp.zeros_like(point.b))[:3])

    def apply(vector: Float[Array, " size"]) -> Float[Array, " size"]:
        return -ravel_pytree(tuple(push(as_point(vector)))[:moving])[0]

    return apply, as_point, flat.size


def _of_one_precision(*points: Point) -> list[Point]:
    """The points in the widest precision among them."""
    dtype = jnp.result_type(*jax.tree.leaves(points))
    return [jax.tree.map(lambda x: jnp.asarray(x, dtype), point) for point in points]


def _times(problem: Problem, point: Point, direction: Point) -> Point:
    return Point(*(-part for part in jax.jvp(problem.field, (point,), (direction,))[1]))


def _quotient(problem: Problem, point: Point, direction: Point) -> Float[Array, ""]:
    """The Rayleigh quotient of the Hessian for a direction."""
    flat, image = (ravel_pytree(tuple(of))[0] for of in (direction, _times(problem, point, direction)))
    return jnp.vdot(flat, image) / jnp.vdot(flat, flat)


def _top_vector(problem: Problem, point: Point, iterations: int) -> Point:
    """The eigenvector of the largest eigenvalue, from a fixed random start."""
    apply, as_point, size = operator(problem, point)
    start = jax.random.normal(jax.random.key(0), (size, 1), point.X.dtype)
    Q, T = krylov(apply, start, min(iterations, size))
    return as_point(Q @ dominant(T))

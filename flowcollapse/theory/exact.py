"""Paths of the flow and of descent in closed form, at any time, without integration.

| function | holds on | gives |
|---|---|---|
| `subspace_flow` | the invariant subspace S, equal decay of W and H, any decay of b | the state |
| `subspace_descent` | the same, any step size | the state |
| `balanced_flow` | `W^T W - H H^T = lam I`, no bias or one that does not interact | the state, features rotated |
| `second_phase` | class means fitted, within-class part orthogonal to them | the state, samples rotated |
| `half_time` | one mode on S | the time at which the mode is half grown |

For a start outside these sets, the error of a formula is of the order of the start's distance from the set; such a
start is refused if its values are known. Growing factors are divided out before they are formed, so that the formulas
are accurate at any time.

`s = sqrt N`, `P = I - 1 1^T / C`. Times are a list `ts`, and states have a leading axis of times. Use `jax.vmap` for
several starts. All functions can be differentiated in the decays and in times above 0; those on S also in the start.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import Number, check_integer, check_number, is_traced, real_numbers, shown
from .._errors import UsageError
from ..endings.modes import Growth, growing_part, target_modes
from ..model.batch import is_small
from ..model.problem import problem_of
from ..model.requirements import require
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program
from ..simulation import as_arrays, checked_start
from .bias import Times, bias, bias_rate, checked_times, integral, least
from .riccati import balanced_flow as balanced_flow, second_phase as second_phase
from .subspace import EQUAL_COUNTS, check_on_subspace, point_with

__all__ = ["balanced_flow", "half_time", "second_phase", "subspace_descent", "subspace_flow"]


def subspace_flow(model: UFM, start: State, ts: Times, *, rtol: Number | None = None) -> State:
    """The gradient flow on the invariant subspace S.

    Args:
        model: the model, with balanced classes and equal decay of W and H, which may be below, at or above `sqrt N`.
        start: a state on S, in any columns, without leading axes.
        ts: times of at least 0, shape (time,).
        rtol: how far the start may be off S, see `fc.theory.subspace.contains`.

    Returns:
        The states, with a leading axis of times, in the start's columns.

    Raises:
        UsageError: for a start off S, imbalanced classes, unequal decay of W and H, or negative times.

    Source: the paper's flow on S, `W' = -(W W^T - r P) W`, `r = s - lam`. It keeps the singular vectors of W, each
    squared singular value follows `mu' = 2 mu (r - mu)`, and the bias relaxes to `N / (C N + lam_b)` at the rate
    `C N + lam_b`. A mode that W lacks (up to rounding) stays zero here; in a simulated run, rounding grows it by
    `t ~ 36/r`.

    Example:
        >>> import jax, jax.numpy as jnp, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.on_subspace(model, eps=1e-3, key=jax.random.key(0))
        >>> states = fc.theory.exact.subspace_flow(model, start, [0.0, 1.0, 1e4])
        >>> states.H.shape, bool(jnp.max(fc.risk(model, states)[-1]) < 1e-8)
        ((3, 15, 9), True)
    """
    start = checked_start(model, start)
    ts = checked_times(ts, start.W.dtype)
    _check_start(model, start, rtol)
    return _subspace_flow(as_arrays(model, ts.dtype), start, ts, quick=is_small(start))


@Program
def _subspace_flow(model: UFM, start: State, ts: Float[Array, " time"]) -> State:
    left, sigma, right, r = _subspace_modes(model, start)
    slow = jnp.where(r < 0, -r, r)  # |r|, but with the derivative of the branch that is used at r = 0
    decayed = jnp.exp(-slow * ts)[:, None]
    shrink, floor = jnp.where(r < 0, decayed, 1.0), jnp.where(r < 0, 1.0, jnp.maximum(decayed, least(ts.dtype)))
    sigmas = sigma * shrink / jnp.sqrt(floor**2 + 2 * sigma**2 * integral(2 * slow, ts[:, None]))
    return _on_subspace(model, start, left, sigmas, right, bias(model, jnp.mean(start.b), ts))


def subspace_descent(
    model: UFM,
    start: State,
    steps: Sequence[int] | Int[np.ndarray, " kept"],
    *,
    learning_rate: Number,
    rtol: Number | None = None,
) -> State:
    """Gradient descent on the invariant subspace S, by one scalar recursion per mode.

    Args:
        model: the model, with balanced classes and equal decay of W and H.
        start: a state on S, in any columns, without leading axes.
        steps: the numbers of steps after which states are wanted, 0 or more each, shape (kept,).
        learning_rate: the step size; it may be so large that descent does not follow the flow.
        rtol: how far the start may be off S, see `fc.theory.subspace.contains`.

    Returns:
        The states, with a leading axis of `len(steps)`, in the start's columns.

    Raises:
        UsageError: for a start off S, imbalanced classes, unequal decay of W and H, steps that are not integers of at
            least 0, or a learning rate that is not positive.

    Source: S is invariant under descent too, by the paper; on it a singular value of W obeys
    `sigma <- sigma (1 + eta (r - sigma^2))`, `r = s - lam`, and the bias
    `beta <- beta - eta (C N (beta - 1/C) + lam_b beta)` (derived here).

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.on_subspace(model, eps=0.1, key=jax.random.key(0))
        >>> fc.theory.exact.subspace_descent(model, start, [0, 10, 1000], learning_rate=0.05).W.shape
        (3, 3, 15)
    """
    start = checked_start(model, start)
    _check_start(model, start, rtol)
    check_number("learning_rate", learning_rate)
    given = real_numbers(list(steps) if isinstance(steps, Sequence) else steps)
    if given is None or given.ndim != 1:
        raise UsageError(f"steps must be a list of numbers of steps, got {shown(steps)}: give one, such as [0, 100].")
    steps = [check_integer("steps", k, least=0) for k in given]
    model, eta = as_arrays((model, learning_rate), start.W.dtype)
    kept, last = jnp.asarray(steps, int), int(max(steps, default=0))
    return _subspace_descent(model, start, eta, kept, last, quick=is_small(start))


@Program
def _subspace_descent(model: UFM, start: State, eta, steps: Int[Array, " kept"], num_steps: int) -> State:
    left, sigma, right, r = _subspace_modes(model, start)
    rate = bias_rate(model, sigma.dtype)

    def step(modes, _):
        sigma, beta = modes
        after = sigma * (1 + eta * (r - sigma**2)), beta - eta * (rate * beta - model.counts[0] * model.use_bias)
        return after, after

    first = sigma, jnp.mean(start.b)
    _, rest = jax.lax.scan(step, first, None, num_steps)
    sigmas, betas = (jnp.concatenate([one[None], more])[steps] for one, more in zip(first, rest, strict=True))
    return _on_subspace(model, start, left, sigmas, right, jnp.repeat(betas[:, None], model.num_classes, axis=1))


def half_time(model: UFM, mu: Float[Array | np.ndarray, "*shape"] | Number) -> Float[Array, "*shape"]:
    """The time at which a mode on S, an eigenvalue `mu` of `W W^T`, reaches half of its limit.

    Args:
        model: the model, with balanced classes and equal decay of W and H.
        mu: eigenvalues at time 0, between 0 and their limit `r = sqrt N - lam`. Any shape.

    Returns:
        Times; negative if a mode is already more than half grown.

    Raises:
        UsageError: for a mode outside 0 to r, imbalanced classes or unequal decay of W and H.

    Source: `ln((r - mu) / mu) / (2 r)`, from the logistic law of `subspace_flow`.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=15)
        >>> float(fc.theory.exact.half_time(model, 1.0))
        0.0
    """
    require(model, balanced=EQUAL_COUNTS)
    _check_decay(model)
    if not is_traced(mu) and real_numbers(mu) is None:
        raise UsageError(f"mu must hold numbers, got {shown(mu)}: give eigenvalues of W W^T.")
    mu = jnp.asarray(mu if is_traced(mu) else real_numbers(mu))
    mu = mu.astype(jnp.result_type(mu, float))
    r = _subspace_rate(model, mu.dtype)
    inside = (mu > 0) & (mu < r)
    if not is_traced(inside) and not bool(jnp.all(inside)):
        raise UsageError(
            f"mu must lie between 0 and {float(r):g}, the limit of a mode, got {mu}: leave out the others."
        )
    return jnp.log1p((r - 2 * mu) / mu) / (2 * r)


def _subspace_rate(model: UFM, dtype) -> Float[Array, ""]:
    """`r = s - lam`: the limit of the eigenvalues of `W W^T` on S, and half their initial growth rate."""
    return model.counts[0] ** 0.5 - model.decays[0].astype(dtype)


def _subspace_modes(model: UFM, start: State):
    """A start on S as `W = left diag(sigma) right`, and `r`.

    Rounding errors would grow to full size. The decomposition therefore uses the modes of the targets, which removes
    `1^T W`, and sets singular values below the rounding of W to zero.
    """
    problem, point = problem_of(model, start)
    r = _subspace_rate(model, point.W.dtype)
    frame = jnp.asarray(target_modes(model)[0], point.W.dtype)
    left, sigma, right = jnp.linalg.svd(growing_part(problem, point).T, full_matrices=False)
    sigma = jnp.where(Growth.of(problem, point).values > 0, sigma, 0.0)
    return frame @ left, sigma, right, r


def _on_subspace(model: UFM, start: State, left, sigmas, right, b: Float[Array, "time C"]) -> State:
    """The states of S with the given singular values."""
    problem, _ = problem_of(model, start)
    W = (left * sigmas[:, None, :]) @ right
    W, X, b = jax.vmap(lambda W, b: point_with(problem, W, b, start.X.shape[-1]))(W, b)
    return State(X=X, W=W, b=b, columns=start.columns)


def _check_decay(model: UFM) -> None:
    """Raise `UsageError` unless the flow of the model stays on S."""
    require(model, equal_decay="with unequal decay the flow leaves S: make them equal")


def _check_start(model: UFM, start: State, rtol: Number | None) -> None:
    """Raise `UsageError` if the paths on S do not apply."""
    check_on_subspace(model, start, rtol)
    _check_decay(model)

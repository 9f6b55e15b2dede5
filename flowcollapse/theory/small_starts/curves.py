"""Learning curves of small starts in closed form: modes, bias and risk as functions of time, for flow and descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import Number, check_flag, check_integer, check_number
from ...model.batch import is_small
from ...model.state import State
from ...model.ufm import UFM
from ...programs import Program
from ..bias import checked_times
from .escape import Escape, check_small_start

__all__ = ["LearningCurve", "descent_curve", "learning_curve", "mean_modes"]


class LearningCurve(NamedTuple):
    """A learning curve: the squared singular values `mu` of W, the mean `beta` of the bias, and the `risk` at `ts`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> curve = fc.theory.curves.learning_curve(model, start, [0.0, 20.0])
        >>> curve.mu.shape, curve.beta.round(3).tolist()
        ((2, 2), [0.0, 0.333])
    """

    ts: Float[Array, " time"]
    mu: Float[Array, "time k"]
    beta: Float[Array, " time"]
    risk: Float[Array, " time"]


def learning_curve(model: UFM, start: State, ts: Any, *, corrected: bool = True) -> LearningCurve:
    """The learning curve of the flow from a small start: the flow on S from the growing part of the start.

        mu_i(t) = s mu_i e^{2st} / (s + mu_i (e^{2st} - 1)),    beta(t) = 1/C + (beta0 - 1/C) e^{-CNt},
        R(t) = 1/2 sum_i (mu_i(t) - s)^2 + N/2 (1 - C beta0)^2 e^{-2CNt},

    where `mu_i(0)` are the eigenvalues of `V0 V0^T`, `V0 = P (W0 + B0^T)/2`. If p < C - 1, the sum includes zero modes.

    Args:
        model: the model: balanced, without decay.
        start: one small state with `b0 = beta0 1`.
        ts: times, shape (time,).
        corrected: use `V0 (I - t K2) V0^T` instead, `K2 = L0 L0^T + u u^T + v v^T / (C s + 1)`, to first order: the
            rest of the start slows the growth. The error of the risk is then O(eps^2) of the risk at the start, instead
            of O(eps^2 ln 1/eps).

    Raises:
        UsageError: for a model with decay or unequal counts, a start that is neither small (see `fc.predict`) nor on S,
            or invalid times.

    Source: on S the curve is exact at any size (the paper's flow `W' = -(W W^T - s P) W`); that a small start shadows
    it, and K2, are derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> fc.theory.curves.learning_curve(model, start, [0.0, 3.0, 12.0]).risk.round(2).tolist()
        [4.5, 2.99, 0.0]
    """
    check_flag("corrected", corrected)
    check_small_start(model, start)
    return _learning_curve(model, start, checked_times(ts, start.X.dtype), bool(corrected), quick=is_small(start))


@Program
def _learning_curve(model: UFM, start: State, ts: Float[Array, " time"], corrected: bool) -> LearningCurve:
    escape = Escape.of(model, start)
    mu = escape.s * jax.vmap(lambda t: escape.modes(t, corrected).x)(ts)
    return _curve(escape, ts, mu, jnp.exp(-model.num_samples * ts))


def descent_curve(model: UFM, start: State, learning_rate: Number, num_steps: int) -> LearningCurve:
    """The learning curve of gradient descent from a small start, step by step: that of descent on S, from `V0`.

        mu_i <- mu_i (1 + eta (s - mu_i))^2,    beta <- beta - eta C N (beta - 1/C)

    Args:
        model: the model: balanced, without decay.
        start: one small state with `b0 = beta0 1`.
        learning_rate: eta.
        num_steps: the number of steps; the curve has one more point, the start.

    Returns:
        The curve, with `ts = eta k`.

    Raises:
        UsageError: for the reasons `learning_curve` has, and for a learning rate that is not positive.

    Source: on S the curve is exact at any size, by the paper; that a small start shadows it is derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> fc.theory.curves.descent_curve(model, start, 0.05, 300).risk[::50].round(2).tolist()
        [4.5, 3.0, 0.76, 0.0, 0.0, 0.0, 0.0]
    """
    check_number("learning_rate", learning_rate)
    num_steps = check_integer("num_steps", num_steps)
    check_small_start(model, start)
    return _descent_curve(model, start, jnp.asarray(learning_rate, start.X.dtype), num_steps, quick=is_small(start))


@Program
def _descent_curve(model: UFM, start: State, eta: Float[Array, ""], num_steps: int) -> LearningCurve:
    escape = Escape.of(model, start)

    def advance(now, _):
        mu, fast = now
        return (mu * (1 + eta * (escape.s - mu)) ** 2, fast * (1 - eta * model.num_samples)), now

    _, (mu, fast) = jax.lax.scan(advance, (escape.sigma**2, jnp.ones_like(eta)), None, num_steps + 1)
    return _curve(escape, eta * jnp.arange(num_steps + 1), mu, fast)


def mean_modes(model: UFM, start: State, ts: Any) -> tuple[Float[Array, "time p"], Float[Array, "time p"]]:
    """The mean modes `u = W^T 1/sqrt C` and `v = B 1/sqrt C`, `B = sqrt N Hbar`, of the flow from a small start.

    While the bias relaxes, they turn hyperbolically by the angle `c (1 - e^{-CNt})` with `c = (1 - C beta0)/(C s)`:

        (u, v) = (u0 cosh + v0 sinh, v0 cosh + u0 sinh).

    As the modes escape, u loses its part in their span, and v keeps `2F1(1/2, -1/2; (1 + C s)/2; mu/s)` of its part.

    Args:
        model: the model: balanced, without decay.
        start: one small state with `b0 = beta0 1`.
        ts: times, shape (time,).

    Returns:
        `(u, v)`, each of shape (time, p); zero without a bias.

    Raises:
        UsageError: for the reasons `learning_curve` has.

    Source: derived here.

    Example:
        >>> import jax, jax.numpy as jnp, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=2)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> u, v = fc.theory.curves.mean_modes(model, start, [2.0, 20.0])
        >>> bool(jnp.linalg.norm(u[1]) < 1e-9), round(float(jnp.linalg.norm(v[1]) / jnp.linalg.norm(v[0])), 3)
        (True, 0.909)
    """
    ts = check_small_start(model, start, checked_times(ts, jnp.result_type(float)))
    return _mean_modes(model, start, ts, quick=is_small(start))


@Program
def _mean_modes(model: UFM, start: State, ts: Float[Array, " time"]):
    parts = jax.vmap(Escape.of(model, start).at)(ts)
    return parts.u, parts.v


def _curve(escape: Escape, ts, mu, fast) -> LearningCurve:
    """The curve, where `fast` is the remaining fraction of the bias's distance to 1/C."""
    C, N, s, beta0 = escape.model.num_classes, escape.model.counts[0], escape.s, escape.beta
    missing = escape.basis.shape[1] - mu.shape[1]
    risk = 0.5 * jnp.sum((mu - s) ** 2, axis=1) + 0.5 * N * (missing + (1 - C * beta0) ** 2 * fast**2)
    beta = 1 / C + (beta0 - 1 / C) * fast
    return LearningCurve(ts, mu, beta if escape.model.use_bias else jnp.zeros_like(beta), risk)

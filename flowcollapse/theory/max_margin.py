"""Losses without a minimum and without decay: the direction of the flow, its margin, and its motion along the frame.

Once the classes are separated, the direction of the flow of cross-entropy converges to a critical point of the problem
`min ||W||^2 + ||H||^2` subject to margins of at least 1 (Lyu and Li 2020; Ji et al. 2022, arXiv 2110.02796). Its global
solution has the logits `P Y` for any counts (SELI; Thrampoulidis et al. 2022, arXiv 2208.05512). For balanced classes
it is the simplex frame, and on the frame the logits are `rho P (x) 1_N^T` with `rho' = 2 a s rho pull(rho)`, so

    2 a s C t = Ei(rho) - Ei(rho0) + (C - 1) ln(rho / rho0)

for cross-entropy (derived here). Times are those of `fc.Flow(clock="log")`, `l = ln(1 + t)`, so e^1000 is no limit.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expi
from jaxtyping import Array, Float

from .._checks import Number, as_array, check_number, is_traced, real_numbers, shown
from .._errors import UsageError
from ..endings.modes import margin_modes
from ..losses.cross_entropy import CrossEntropy
from ..model.batch import floating
from ..model.columns import ClassMeanColumns
from ..model.problem import problem_of
from ..model.requirements import check_model, check_one, check_state, require
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program
from .needs import require_balanced_contrastive, require_features

__all__ = ["Powers", "logit_on_ray", "margin", "memory", "powers", "seli", "time_on_ray"]

DECAY_CURE = "with decay the flow comes to rest and its margin stays bounded: use none, or fc.theory.minimiser"
LARGE, SMALL = 50.0, 1.0
"""Logits above and below which the exponential integral is computed from a series."""
ITERATIONS = 60


class Powers(NamedTuple):
    """Powers of time t by which the features of a class approach their mean, `||h - mu|| ~ t^power` up to logarithms.

    - `own`: along the direction of the class in the row space of W.
    - `other`: along the other directions of the row space, which exist for at least three classes; otherwise None.
    - `outside`: outside the row space, which exists for p > C - 1; otherwise None. There the deviation freezes, so NC1
      falls only as the norms grow, like `1 / ln t`.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=4, samples_per_class=3, num_features=3, loss="cross-entropy")
        >>> fc.theory.max_margin.powers(model)
        Powers(own=-0.5, other=-0.125, outside=None)
    """

    own: float
    other: float | None
    outside: float | None


def margin(model: UFM) -> Float[Array, ""]:
    """The largest margin in units of `(||W||^2 + ||H||^2 + |b|^2)/2`: `1 / ||P diag(sqrt n)||_*`.

    It is `1 / (s (C - 1))` for balanced classes. A margin is the logit of the own class minus another.

    Args:
        model: the model: a loss without minimum, such as cross-entropy, no decay, and `p >= C - 1`. With a bias, its
            classes must be balanced.

    Raises:
        UsageError: for decay, a loss with a minimum, fewer features, or a bias with imbalanced classes.

    Source: Ji et al. 2022 (arXiv 2110.02796) for balanced classes, Thrampoulidis et al. 2022 (arXiv 2208.05512) for
    any counts. That the flow of imbalanced classes reaches this margin is observed, not proved: its direction converges
    to a critical point of the problem (Lyu and Li 2020).

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, loss="cross-entropy")
        >>> round(float(fc.theory.max_margin.margin(model)), 6)
        0.25
    """
    _require_separable(model)
    return jnp.asarray(1 / margin_modes(model.counts)[1].sum())


def seli(model: UFM) -> State:
    """The state of least norm whose margins are all at least 1: its logits are `P Y`, and all its margins are 1.

    W and the class means are the two halves of the singular value decomposition of `P diag(sqrt n)`.

    Args:
        model: as for `margin`.

    Returns:
        The state, in class-mean columns, without a bias. Other solutions are rotations of its features.

    Raises:
        UsageError: for the reasons `margin` has.

    Source: Thrampoulidis et al. 2022 (arXiv 2208.05512), the simplex-encoded labels interpolation.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=(4, 1, 2), num_features=5, loss="cross-entropy",
        ...                use_bias=False)
        >>> state = fc.theory.max_margin.seli(model)
        >>> [round(x, 3) for x in (state.W @ state.H)[:, 0].tolist()]
        [0.667, -0.333, -0.333]
    """
    _require_separable(model)
    U, sizes, V = margin_modes(model.counts)
    roots, padding = np.sqrt(sizes), np.zeros((len(U), model.num_features - len(sizes)))
    W, B = (jnp.asarray(np.hstack([part * roots, padding])) for part in (U, V))
    return State(X=B.T, W=W, b=jnp.zeros(len(U), W.dtype), columns=ClassMeanColumns(model.counts))


def powers(model: UFM) -> Powers:
    """The powers of time by which the within-class part of the features falls, once the class means form the frame.

    On the frame the part along a class's own direction falls as `e^{-rho/2}`, the rest of the row space as
    `e^{-rho/(2C)}`, and `t ~ e^rho / rho`.

    Args:
        model: the model: balanced, cross-entropy, no decay, and `p >= C - 1`.

    Raises:
        UsageError: for imbalanced classes, decay, another loss, or fewer features.

    Source: derived here from the Hessian at the frame.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=3, num_features=2, loss="cross-entropy")
        >>> fc.theory.max_margin.powers(model)
        Powers(own=-0.5, other=None, outside=0.0)
    """
    _require_frame(model, "the power of time")
    C, p = model.num_classes, model.num_features
    return Powers(-1 / 2, -1 / (2 * C) if C > 2 else None, 0.0 if p > C - 1 else None)


def memory(model: UFM, start: State) -> Float[Array, ""]:
    """The constant of a start that NC3 remembers: `rho ||W/||W|| - B^T/||B|| ||_F -> ||K0||_F / (2 s sqrt(C - 1))`.

    Here W and B are centred over the classes, and K0 is the traceless part of the conserved
    `K = W^T W - H H^T - W^T 1 1^T W / C`. As `rho ~ ln t`, NC3 falls like `1 / ln t`, with a constant that is known at
    the start.

    Args:
        model: the model: balanced, cross-entropy, no decay, no bias, and p = C - 1.
        start: a state of it, without leading axes.

    Raises:
        UsageError: for another loss, decay, a bias, another number of features, or a start that does not fit.

    Source: derived here from the conserved imbalance of the layers.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=4, samples_per_class=3, num_features=3, use_bias=False,
        ...                loss="cross-entropy")
        >>> start = fc.initial.sphere(model, eps=1.0, key=jax.random.key(0))
        >>> fc.theory.max_margin.memory(model, start).shape
        ()
    """
    _require_frame(model, "the memory of the start")
    if model.num_features > model.num_classes - 1:
        raise UsageError(
            f"num_features is {model.num_features}, but the memory of the start is known for p = C - 1 only: use "
            f"num_features={model.num_classes - 1}."
        )
    if model.use_bias:
        raise UsageError(
            "use_bias is True, but a bias takes over a part of the mean that depends on the path: use use_bias=False."
        )
    check_state(model, start, "start")
    check_one(start)
    model, start = floating(model, start)
    with jax.default_matmul_precision("highest"):
        _, (W, X, _) = problem_of(model, start)
        C = model.num_classes
        centred = W - jnp.mean(W, axis=0)
        K = centred.T @ centred - X @ X.T
        K = K - jnp.trace(K) / (C - 1) * jnp.eye(C - 1, dtype=K.dtype)
        return jnp.linalg.norm(K) / (2 * math.sqrt(model.counts[0] * (C - 1)))


def time_on_ray(model: UFM, rho: Number, rho0: Number) -> Float[Array, "*shape"]:
    """The time, on the log clock, at which the logits on the frame have grown from rho0 to rho.

    The start is balanced, `W W^T = s rho0 P`, `H = (W (x) 1_N)^T/s`, and all later states have the same form.

    Args:
        model: the model: balanced, cross-entropy, no decay, and `p >= C - 1`.
        rho: the later logits, any shape, at least rho0. The logits are `rho P`.
        rho0: the logits at time 0, above 0.

    Returns:
        `l = ln(1 + t)` in the shape of rho, where t is the time of the flow: `t = expm1(l)`.

    Raises:
        UsageError: for another loss, decay, imbalanced classes, fewer features, or logits that are not above 0 or fall.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, loss="cross-entropy")
        >>> round(float(fc.theory.max_margin.time_on_ray(model, 1000.0, 0.1)), 2)
        990.61
    """
    _require_frame(model, "the time on the frame")
    check_number("rho0", rho0)
    rho = _checked_logits("rho", rho, rho0)
    dtype = jnp.result_type(float)
    return _log_clocks(model, jnp.asarray(rho, dtype), jnp.asarray(rho0, dtype), quick=True)


@Program
def _log_clocks(model: UFM, rho: Float[Array, "*shape"], rho0: Float[Array, ""]) -> Float[Array, "*shape"]:
    return jnp.vectorize(lambda r: _log_clock(model, r, rho0))(rho)


def logit_on_ray(model: UFM, log_time: Number, rho0: Number) -> Float[Array, "*shape"]:
    """The logits on the frame at a time on the log clock: the inverse of `time_on_ray`.

    Args:
        model: the model: balanced, cross-entropy, no decay, and `p >= C - 1`.
        log_time: `l = ln(1 + t)`, any shape, at least 0. Times far beyond e^1000 are fine.
        rho0: the logits at time 0, above 0.

    Returns:
        rho, in the shape of `log_time`. For late times `rho = ln t + ln ln t + ln(2 a s C) + o(1)`.

    Raises:
        UsageError: for another loss, decay, imbalanced classes, fewer features, a negative time, or a rho0 of 0.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, loss="cross-entropy")
        >>> round(float(fc.theory.max_margin.logit_on_ray(model, 1000.0, 0.1)), 3)
        1009.401
    """
    _require_frame(model, "the time on the frame")
    check_number("rho0", rho0)
    times = as_array("log_time", log_time) if not isinstance(log_time, int | float) else log_time
    known = real_numbers(times) if not is_traced(times) else None
    if not is_traced(times) and (known is None or not np.all((known >= 0) & np.isfinite(known))):
        raise UsageError(f"log_time must be finite and not below 0, got {shown(log_time)}: give times from 0 on.")
    dtype = jnp.result_type(float)
    return _logits(model, jnp.asarray(times, dtype), jnp.asarray(rho0, dtype), quick=True)


@Program
def _logits(model: UFM, log_time: Float[Array, "*shape"], rho0: Float[Array, ""]) -> Float[Array, "*shape"]:
    return jnp.vectorize(lambda time: _logit(model, time, rho0))(log_time)


def _require_separable(model: UFM) -> None:
    check_model(model)
    if model.loss.attained or not model.loss.contrastive:
        raise UsageError(
            f"loss is {model.loss.text!r}, but only the flow of a loss without minimum grows along a direction: "
            'use loss="cross-entropy" or "focal:2".'
        )
    require(model, squared_error=False, no_decay=DECAY_CURE)
    if model.use_bias and not model.balanced:
        raise UsageError(
            f"samples_per_class={model.samples_per_class} is imbalanced and use_bias is True, but with a bias the "
            "largest margin is known for equal counts: use use_bias=False."
        )
    require_features(model, model.num_classes - 1, "the largest margin")


def _require_frame(model: UFM, what: str) -> None:
    check_model(model)
    if not isinstance(model.loss, CrossEntropy) or model.loss.attained:
        raise UsageError(
            f'loss is {model.loss.text!r}, but {what} is known for plain cross-entropy: use loss="cross-entropy".'
        )
    require(model, squared_error=False, no_decay=DECAY_CURE)
    require_balanced_contrastive(model, what)
    require_features(model, model.num_classes - 1, what)


def _checked_logits(name: str, rho: Any, least: Number) -> Any:
    if is_traced(rho):
        return rho
    numbers = real_numbers(rho)
    lowest = 0.0 if is_traced(least) else float(least)
    if numbers is None or not np.all((numbers >= lowest) & (numbers > 0) & np.isfinite(numbers)):
        raise UsageError(f"{name} must be finite and at least rho0, got {shown(rho)}: give logits from {lowest:g} on.")
    return numbers


def _log_clock(model: UFM, rho: Float[Array, ""], rho0: Float[Array, ""]) -> Float[Array, ""]:
    """`ln(1 + t)`. `Ei(x) = gamma + ln x + S(x)` with a power series S, so t adds two parts that do not cancel."""
    C = model.num_classes
    grown, at_start = _log_series(rho), _log_series(rho0)
    # ln(S(rho) - S(rho0)), and ln(C ln(rho / rho0))
    ratio = jnp.minimum(at_start - grown, 0.0)
    series = grown + jnp.log(jnp.where(ratio < 0, -jnp.expm1(jnp.where(ratio < 0, ratio, -1.0)), 0.0))
    logs = jnp.log(C * jnp.log1p(jnp.maximum(rho - rho0, 0.0) / rho0))
    log_t = jnp.logaddexp(series, logs) - jnp.log(2 * C * math.sqrt(model.counts[0]) * model.scale)
    return jnp.where(rho > rho0, jnp.logaddexp(0.0, log_t), 0.0)


def _log_series(x: Float[Array, ""]) -> Float[Array, ""]:
    """`ln S(x)` with `S(x) = sum_k x^k / (k k!) = Ei(x) - gamma - ln x`, for any x > 0."""
    small, large = jnp.minimum(x, SMALL), jnp.maximum(x, LARGE)
    middle = jnp.clip(x, SMALL, LARGE)
    near, far = jnp.ones_like(x), jnp.ones_like(x)
    for k in range(18, 1, -1):  # S(x)/x, Horner's scheme
        near = 1 + near * small * (k - 1) / k**2
    for k in range(32, 0, -1):  # the asymptotic series of Ei(x) x e^-x, whose terms fall up to k = x
        far = 1 + far * k / large
    inside = jnp.log(expi(middle) - np.euler_gamma - jnp.log(middle))
    outside = large - jnp.log(large) + jnp.log(far)
    return jnp.where(x < SMALL, jnp.log(x) + jnp.log(near), jnp.where(x > LARGE, outside, inside))


def _logit(model: UFM, log_time: Float[Array, ""], rho0: Float[Array, ""]) -> Float[Array, ""]:
    """The root of `_log_clock`, by bisection. Derivatives are those of the root, by one step of Newton's method."""

    def halved(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        later = _log_clock(model, middle, rho0) < log_time
        return jnp.where(later, middle, low), jnp.where(later, high, middle)

    C, s = model.num_classes, math.sqrt(model.counts[0])
    # t >= (rho - rho0) (e^rho0 + C - 1)/(2 a s C rho), and t > e^(rho/2)/(2 a s C) for rho > 2 rho0 + 9.
    highest = 2 * rho0 + 20 + 2 * log_time + 2 * math.log(2 * s * C)
    low, high = jax.lax.fori_loop(0, ITERATIONS, halved, (rho0, highest))
    root = jax.lax.stop_gradient((low + high) / 2)
    slope = jax.lax.stop_gradient(jax.grad(lambda r: _log_clock(model, r, rho0))(root))
    moved = root - (_log_clock(model, root, rho0) - log_time) / jnp.where(slope > 0, slope, 1.0)
    return jnp.where(log_time > 0, moved, rho0)

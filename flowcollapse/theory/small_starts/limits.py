"""Where and when small starts end: the plateau of a start, and the limits under imbalance and weight decay.

The plateau is the state of the flow after the escape and long before times of order 1/eps^2, the time scale of the slow
motion of u and L (which exists if p > C - 1 and N > 1). The notation is that of `escape.py`: `s = sqrt N`,
`B = s Hbar`, `P = I - 11^T/C`. Limits are for eps -> 0 and derived here.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import Number, check_number, is_traced
from ..._errors import UsageError
from ...endings import plateau as ending
from ...endings.modes import Growth, target_modes
from ...endings.plateau import DECAY
from ...metrics.registry import METRICS
from ...model.batch import floating, is_small
from ...model.problem import problem_of
from ...model.requirements import check_model, check_one, check_state, require
from ...model.state import State
from ...model.ufm import UFM
from ...programs import Program
from ...results.views import table
from .escape import Escape, Parts, check_small_start
from .scaling import kappa as kappa, powers as powers, rms as rms

__all__ = [
    "Limit",
    "Plateau",
    "decay_limit",
    "imbalanced_limit",
    "kappa",
    "plateau",
    "plateau_steps",
    "plateau_time",
    "powers",
    "rms",
]


class Plateau(NamedTuple):
    """The plateau that a start leads to.

    - `state`: the predicted state in class-mean columns, its class means `state.B` and within-class part `state.L`.
    - `u`, `v`: its mean modes `W^T 1/sqrt C` and `B 1/sqrt C`, zero without a bias.
    - `metrics`: the leading order of each metric, by the names of `fc.metrics`; zero if the metric decays to zero.
      Unlike the metrics of `state`, these values keep all digits at any eps.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> end = fc.theory.limits.plateau(model, fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0)))
        >>> end.state.W.shape, end.u.shape
        ((3, 15), (15,))
    """

    state: State
    u: Float[Array, " p"]
    v: Float[Array, " p"]
    metrics: dict[str, Float[Array, ""]]

    def _repr_html_(self) -> str | None:
        """The metrics as a table, for notebooks."""
        if any(is_traced(value) or jnp.ndim(value) for value in self.metrics.values()):
            return None
        rows = [(name, f"{float(value):.6g}", METRICS[name].long_name) for name, value in self.metrics.items()]
        return table("Plateau, to leading order in eps", rows, ("metric", "value", ""))


class Limit(NamedTuple):
    """The limit of every generic small start: `gram` is `W W^T`, `b` the bias, `mean` is x in `gram`'s `x 11^T/C`.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=4, num_features=5)
        >>> fc.theory.limits.imbalanced_limit(model).gram.round(3).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """

    gram: Float[Array, "C C"]
    b: Float[Array, " C"]
    mean: Float[Array, ""]


def plateau(model: UFM, start: State) -> Plateau:
    """The plateau that a small start leads to.

        W = sqrt(s) polar(V0) + 1 u^T/sqrt C,    B = sqrt(s) polar(V0)^T + v 1^T/sqrt C,    b = 1/C - W v / (s sqrt C),
        u = Pi_ u0,    v = Pi_ v0 + kappa Pi v0,    L = Pi_ L0,

    with `V0 = P (W0 + B0^T)/2`, Pi the projector on its rows and `Pi_ = I - Pi`; u0 and v0 are taken after the turn by
    `(1 - C beta0)/(C s)` that the bias gives them. With `O = polar(V0)` and `X = O (W0^T W0 - H0 H0^T + v v^T)`, W and
    B^T also include the next order, `+- X (Pi/4 + Pi_/2)/sqrt s`, which SNC1 needs. Hence, with `k = min(C - 1, p)`,

        SNC1^2 = N (C-1-k) + ||X O^T||^2/4 + |u|^4         SNC2^2 = (||L||^2 + |u - v|^2 + d^2) / (s k)
        SNC3^2 = |Pi v|^2/(s C)                            dist^2 = ||L||^2 + |u|^2 + |v|^2 + SNC3^2 + d^2/2
        NC1 = ||X L||^2/(s C N)  (pseudo-inverse)          NC1 = ||L||^2/(s k)  (traces)
        NC3^2 = (|u|^2 + d^2 - (tr X O^T)^2/(4 s k)) / (s k)    risk = |L^T u|^2/2 + N (C-1-k)/2
        |grad|^2 = |L L^T u|^2 + |u|^2 |L^T u|^2           CDNV = ||L||^2/(2 s C)

    where `d^2 = ||B - W^T||^2` without the mean modes is `(||X O^T||^2/4 + ||X Pi_||^2)/s`. If p <= C - 1, u and L
    vanish; if p < C - 1, the missing modes add to the risk. Without a bias the same holds with `P = I`, C modes and no
    u, v, b.

    Args:
        model: the model: balanced, without decay.
        start: one small state with `b0 = beta0 1`.

    Returns:
        The `Plateau`. Its metrics are `snc1`, `snc2`, `snc3`, `distance`, `relative_distance`, `nc1_trace`, `cdnv`,
        `risk`, and with a bias also `nc1`, `nc3`, `grad_norm`, and `nc2_etf_h`, `nc2_etf_w` if p >= C - 1.

    Raises:
        UsageError: for a model with decay or unequal counts, or a start that does not fit it or is not small.

    Source: derived here. The relative error is O(eps^2 ln 1/eps) for each metric.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> path = fc.simulate(model, start, fc.Flow(), metrics=["snc1"])
        >>> end = fc.theory.limits.plateau(model, start)
        >>> bool(abs(end.metrics["snc1"] / path.metrics["snc1"][-1] - 1) < 1e-3)
        True
    """
    check_small_start(model, start)
    return _plateau(model, start, quick=is_small(start))


@Program
def _plateau(model: UFM, start: State) -> Plateau:
    escape = Escape.of(model, start)
    # So late that everything that decays has vanished, even in double precision.
    parts = escape.at(jnp.asarray(400 / escape.s, escape.sigma.dtype), drift=False)
    return Plateau(escape.state(parts.point), parts.u, parts.v, _leading_metrics(escape, parts))


def _leading_metrics(escape: Escape, parts: Parts) -> dict[str, Float[Array, ""]]:
    """The metrics at the plateau, from its parts: `X O^T = 4 sqrt(s) Y` and `X Pi_ = 2 sqrt(s) Y_off`."""
    model, s = escape.model, escape.s
    C, N, (K, k) = model.num_classes, model.counts[0], escape.left.shape
    (u, v, L, Y, off), missing = (parts.u, parts.v, parts.L, parts.Y, parts.Y_off), K - k

    def norm(*squares):
        return jnp.sqrt(sum(squares))

    uneven = Y - jnp.eye(k) * jnp.trace(Y) / k
    LL, uu, Lu, YY, off2, uneven2 = (jnp.sum(x**2) for x in (L, u, L.T @ u, Y, off, uneven))
    d2 = 4 * (YY + off2)
    snc3 = jnp.linalg.norm(escape.right @ v) / math.sqrt(s * C)
    distance = norm(LL, uu, v @ v, snc3**2, d2 / 2)
    metrics = {
        "snc1": norm(N * missing, 4 * s * YY, uu**2),
        "snc2": norm(LL, jnp.sum((u - v) ** 2), d2) / math.sqrt(s * k),
        "snc3": snc3,
        "distance": distance,
        "relative_distance": distance / math.sqrt(2 * s * k + (1 / C if model.use_bias else 0)),
        "nc1_trace": LL / (s * min(k, C - 1)),
        "cdnv": LL / (2 * s * C),
        "risk": 0.5 * (Lu + N * missing),
    }
    if model.use_bias:
        metrics["nc1"] = 4 * jnp.sum((off @ L) ** 2) / (C * N)
        metrics["nc3"] = norm(uu, 4 * (uneven2 + off2)) / math.sqrt(s * k)
        metrics["grad_norm"] = norm(jnp.sum((L @ (L.T @ u)) ** 2), uu * Lu)
    if model.use_bias and missing == 0:
        metrics["nc2_etf_h"] = norm(4 * s * uneven2) / (s * math.sqrt(k))
        metrics["nc2_etf_w"] = norm(4 * s * uneven2, uu**2) / (s * math.sqrt(k))
    return metrics


def imbalanced_limit(model: UFM) -> Limit:
    """The limits of `W W^T` and b from a small start, for any counts: `W W^T = (Z Z^T)^{1/2}`, `b = n / n_tot`.

    Here `Z = diag(sqrt n)(I - sqrt(n) sqrt(n)^T / n_tot)`. For equal counts the limits are `sqrt(N) P` and `1/C`.
    Without a bias, `Z = diag(sqrt n)` and b = 0.

    Args:
        model: the model, without decay, with as many features as Z has modes: `p >= C - 1`, or C without a bias.

    Raises:
        UsageError: for a model with decay or fewer features, or another loss than the squared error.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=(5, 1, 3), num_features=4)
        >>> fc.theory.limits.imbalanced_limit(model).b.round(3).tolist()
        [0.556, 0.111, 0.333]
    """
    require(model, no_decay="this limit has none: use fc.theory.limits.decay_limit")
    U, strengths, _ = target_modes(model)
    require(model, modes=len(strengths))
    n = np.array(model.counts)
    b = n / n.sum() if model.use_bias else np.zeros(len(n))
    return Limit(jnp.asarray((U * strengths) @ U.T), jnp.asarray(b), jnp.zeros(()))


def decay_limit(model: UFM) -> Limit:
    """The limits of `W W^T` and b from a small start with weight decay `(lam_W, lam_H, lam_b)`, for equal counts.

        W W^T = sqrt(lam_H/lam_W) [max(0, s - g) P + x 11^T/C],    g = sqrt(lam_W lam_H),
        x = max(0, s - g - C N g/lam_b),    b = min(N/(C N + lam_b), s g/lam_b)

    with x = 0 and `b = N/(C N + lam_b)` if lam_b = 0 or p = C - 1. The features are `B^T = sqrt(lam_W/lam_H) W`, and
    L = 0. If `g >= s`, no collapse remains. If x > 0, the features take over the mean from the bias (towards an
    orthogonal frame), and S is a saddle. Without a bias, P is the identity, and x and b are zero.

    Args:
        model: the model: balanced, `p >= C - 1` (or C without a bias); both W and H decay, or neither.

    Raises:
        UsageError: for unequal counts, fewer features, a decay of only one of W and H, or another loss.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, weight_decay=(0.5, 0.5, 0.0))
        >>> fc.theory.limits.decay_limit(model).gram.round(3).tolist()[0]
        [1.0, -0.5, -0.5]
    """
    check_model(model)
    require(
        model,
        balanced="decay_limit is known for equal counts: use equal counts, or fc.simulate",
        modes=model.num_classes - 1 if model.use_bias else model.num_classes,
    )
    lam_W, lam_H, _ = model.decays
    if not (is_traced(lam_W) or is_traced(lam_H)) and (float(lam_W) > 0) != (float(lam_H) > 0):
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}: with a decay of only one of W and H the other grows without "
            "bound; give both, or neither."
        )
    return _decay_limit(jax.tree.map(jnp.asarray, model), quick=True)


@Program
def _decay_limit(model: UFM) -> Limit:
    C, N, use_bias = model.num_classes, model.counts[0], model.use_bias
    lam_W, lam_H, lam_b = model.decays
    s, g = math.sqrt(N), jnp.sqrt(lam_W * lam_H)
    ratio = jnp.where(g > 0, jnp.sqrt(lam_H / jnp.where(g > 0, lam_W, 1.0)), 1.0)
    decays, b = lam_b > 0, N / (C * N + lam_b)
    per_bias = g / jnp.where(decays, lam_b, 1.0)
    room = decays & use_bias & (model.num_features >= C)
    x = jnp.where(room, jnp.maximum(0.0, s - g - C * N * per_bias), 0.0)
    b = jnp.where(room, jnp.minimum(b, s * per_bias), b) * use_bias
    mean = jnp.full((C, C), 1 / C) if use_bias else jnp.zeros((C, C))
    gram = ratio * (jnp.maximum(0.0, s - g) * (jnp.eye(C) - mean) + x * mean)
    return Limit(gram, jnp.broadcast_to(b, (C,)), x)


def plateau_time(model: UFM, start: State, decay: float = DECAY) -> Float[Array, ""]:
    """The time by which every mode of a start has escaped and the decaying parts have fallen by `e^-decay`.

    `T = (ln(sqrt s/sigma_min) + 20)/s`, where `sigma_min` is the smallest growing singular value of `V0`. If weight
    decay or unequal counts change the rates, the model's rates are used. NC1 by the pseudo-inverse, of order eps^6,
    needs an exponent of 30.

    Args:
        model: the model.
        start: one state of it.
        decay: the exponent, 20 by default.

    Raises:
        UsageError: if the start does not fit the model, or the loss is not the squared error.

    Source: derived here. It is where `fc.simulate` ends by default.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> bool(fc.theory.limits.plateau_time(model, start) == fc.simulate(model, start, fc.Flow(rtol=1e-3)).t_end)
        True
    """
    require(model)
    check_state(model, start)
    check_number("decay", decay)
    check_one(start)
    model, start = floating(model, start)
    return _plateau_time(model, start, jnp.asarray(decay, start.W.dtype), quick=is_small(start))


@Program
def _plateau_time(model: UFM, start: State, decay: Float[Array, ""]) -> Float[Array, ""]:
    return ending.plateau_time(*problem_of(model, start), decay)


def plateau_steps(model: UFM, start: State, learning_rate: Number, decay: float = DECAY) -> Float[Array, ""]:
    """The number of gradient descent steps to the plateau, to within one:
    `ln(sqrt s/sigma_min) / ln(1 + eta s) + 20 / (-ln|1 - eta s|)`.

    Args:
        model: the model: balanced, without decay.
        start: one small state.
        learning_rate: eta, below `2/(C N + s)`; above that, collapse is unstable under descent.
        decay: the exponent, 20 by default.

    Returns:
        The number of steps, a whole number as a float.

    Raises:
        UsageError: for a learning rate out of range, decay or unequal counts, or a start that does not fit.

    Source: derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> int(fc.theory.limits.plateau_steps(model, start, 0.05))
        323
    """
    check_small_start(model, start)
    check_number("learning_rate", learning_rate)
    check_number("decay", decay)
    highest = 2 / (model.num_samples + math.sqrt(model.counts[0]))
    if not is_traced(learning_rate) and np.any(np.asarray(learning_rate) >= highest):
        raise UsageError(
            f"learning_rate is {learning_rate!r}, but collapse attracts descent only below {highest:.6g}: lower it."
        )
    model, start = floating(model, start)
    numbers = (jnp.asarray(number, start.X.dtype) for number in (learning_rate, decay))
    return _plateau_steps(model, start, *numbers, quick=is_small(start))


@Program
def _plateau_steps(model: UFM, start: State, eta: Float[Array, ""], decay: Float[Array, ""]) -> Float[Array, ""]:
    s = math.sqrt(model.counts[0])
    sigma = Growth.of(*problem_of(model, start)).values
    smallest = jnp.min(jnp.where(sigma > 0, sigma, jnp.inf))
    growing = jnp.where(smallest < math.sqrt(s), jnp.log(math.sqrt(s) / smallest), 0.0)
    return jnp.ceil(growing / jnp.log1p(eta * s) - decay / jnp.log(jnp.abs(1 - eta * s)))

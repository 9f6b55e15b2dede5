"""Unequal counts: which classes are learned first, how, and which vanish under weight decay.

`n_k` are the counts, `M = sum n_k`, and `B = Hbar diag(sqrt n)` holds the class means. `a` is 1 for the sum over the
samples and `1/M` for their mean, and `mu = sqrt(lam_W lam_H)`. In both, the small classes vanish or merge first:

- the squared error without a bias learns class k at the rate `a sqrt n_k`, and never if `mu >= a sqrt n_k`;
- with a free bias, `b = n/M` and the singular values of `Y (I - 1 1^T/M)` are lowered by `mu/a`;
- cross-entropy keeps the classes of a group of equal counts n apart only if `mu < a sqrt n` (minority collapse), and
  everything vanishes from `mu = a ||P diag(sqrt n)||_op` on.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_traced
from .._errors import UsageError
from .._linalg.algebra import triangle
from ..endings.modes import target_modes
from ..model.batch import floating
from ..model.coordinates import to_class_means
from ..model.requirements import check_model, check_one, check_state, known_decays, require
from ..model.state import State
from ..model.ufm import UFM
from .bias import Times, checked_times
from .minima import origin_threshold

__all__ = ["FreeBias", "class_thresholds", "free_bias", "gram", "learning_times", "vanishing_threshold"]


class FreeBias(NamedTuple):
    """The minimum of the squared error with a bias that does not decay.

    - `b`: the bias, `n / M`, shape (C,).
    - `singular_values`: those of `W H`, largest first, shape (C - 1,).
    - `class_means`: `W Hbar`, the logits of the class means without the bias, shape (C, C).

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=(3, 1), num_features=2, weight_decay=(0.5, 0.5, 0.0))
        >>> fc.theory.imbalance.free_bias(model).b.tolist()
        [0.75, 0.25]
    """

    b: Float[Array, " C"]
    singular_values: Float[Array, " modes"]
    class_means: Float[Array, "C C"]


def class_thresholds(model: UFM) -> Float[Array, " C"]:
    """For each class, the `mu = sqrt(lam_W lam_H)` from which on the minimum does not learn it.

    For the squared error without a bias it is `a sqrt n_k`: from there on, `w_k = 0` and `h_k = 0`. For cross-entropy
    it is `a (1 - eps) sqrt n_k` with the label smoothing eps, for each class that shares its count with another: from
    there on, all classes of that count have the same features, weights and logits, which is minority collapse. In
    terms of the decays this is `n_k <= lam_W lam_H` for the sum over the samples, whatever the other counts are, and
    `sqrt n_k / M <= mu` for their mean, where the ratio of the counts enters. Inside such a group,
    `p_on - p_off = max(0, 1 - mu / (a sqrt n_k))`.

    Args:
        model: the model. The squared error without a bias, or a convex loss of the kind of cross-entropy with
            `p >= C - 1`. The decay does not matter.

    Returns:
        The thresholds, shape (C,). With cross-entropy, a class whose count no other class has gets NaN: it has no
        threshold that depends on its count alone.

    Raises:
        UsageError: for the squared error with a bias, or another loss.

    Source: Dang et al. 2023 (arXiv 2301.00437) for the squared error; Fang et al. 2021 name minority collapse, and Hong
    and Ling 2023 (arXiv 2309.09725) have its threshold; the law inside a group is derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=4, samples_per_class=(9, 9, 4, 4), num_features=4, loss="cross-entropy")
        >>> fc.theory.imbalance.class_thresholds(model).tolist()
        [3.0, 3.0, 2.0, 2.0]
    """
    check_model(model)
    counts = np.array(model.counts)
    roots = model.scale * jnp.asarray(np.sqrt(counts))
    if model.loss.squared_error and not model.use_bias:
        return roots
    if not (model.loss.contrastive and model.loss.convex):
        raise UsageError(
            f"loss is {model.loss.text!r} and use_bias is {model.use_bias}, but a threshold of each class is known for "
            'the squared error without a bias and for cross-entropy: use use_bias=False, or loss="cross-entropy".'
        )
    shared = np.array([np.sum(counts == n) > 1 for n in counts])
    pull = model.loss.pull(jnp.zeros(()), model.num_classes)
    return jnp.where(jnp.asarray(shared), pull * roots, jnp.nan)


def vanishing_threshold(model: UFM) -> Float[Array, ""]:
    """The `mu = sqrt(lam_W lam_H)` from which on all of W and H vanish at the minimum.

    It is `||G||_op` at the origin with its best bias: `a ||P diag(sqrt n)||_op` for cross-entropy without a bias,
    `a max sqrt n_k` for the squared error without one.

    Args:
        model: the model: a convex loss, or balanced classes with a loss of the kind of cross-entropy. Only the decay
            of b matters.

    Raises:
        UsageError: for a loss that is not convex with imbalanced classes.

    Source: derived here; see `fc.theory.certify`.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=(4, 1, 9), num_features=3, use_bias=False)
        >>> round(float(fc.theory.imbalance.vanishing_threshold(model)), 6)
        3.0
    """
    check_model(model)
    if not model.loss.convex and not (model.loss.contrastive and model.balanced):
        raise UsageError(
            f"loss is {model.loss.text!r} and samples_per_class={model.samples_per_class}, but without convexity the "
            "threshold is known for equal counts only: use equal counts, or a convex loss."
        )
    return origin_threshold(jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model))


def free_bias(model: UFM) -> FreeBias:
    """The minimum of the squared error with decay of W and H and a bias that does not decay, for any counts.

    `b = n/M`, `H 1 = 0`, and W H has the singular vectors of `Y (I - 1 1^T/M)`, whose singular values, the square roots
    of the eigenvalues of `diag(n) - n n^T/M`, are lowered by `mu/a` and cut at 0. If p < C - 1, the p largest stay.

    Args:
        model: the model: squared error, with a bias that does not decay.

    Raises:
        UsageError: for another loss, no bias, or a bias that decays.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=(4, 4, 4), num_features=3, weight_decay=(0.5, 0.5, 0.0))
        >>> [round(x, 3) for x in fc.theory.imbalance.free_bias(model).singular_values.tolist()]
        [1.5, 1.5]
    """
    require(model, summed=False)
    decays = known_decays(model)
    if not model.use_bias or (decays is not None and decays[2] != 0):
        raise UsageError(
            f"use_bias is {model.use_bias} and weight_decay is {model.weight_decay!r}, but these formulas are those of "
            "a bias that does not decay: use use_bias=True and weight_decay=(lam, lam, 0)."
        )
    U, strengths, V = target_modes(model)
    lam_W, lam_H, _ = model.decays
    kept = np.arange(len(strengths)) < model.num_features
    values = jnp.maximum(strengths - jnp.sqrt(lam_W * lam_H) / model.scale, 0.0) * kept
    n = np.array(model.counts)
    logits = jnp.matmul(jnp.asarray(U) * values, V.T, precision="highest")
    return FreeBias(jnp.asarray(n / n.sum()), values, logits / np.sqrt(n))


def learning_times(model: UFM, start: State) -> Float[Array, " C"]:
    """When each class is learned from a small start: `|w_k|^2` then has half of its final value.

    With `V0 = (W + B^T)/2` and the QR factorisation of `V0^T`, its columns in the order of falling counts, class k has
    `t_k = ln((sqrt n_k - lam) / r_k^2) / (2 (sqrt n_k - lam))`, where `r_k` is its diagonal entry of R. A larger class
    takes its direction first, and the smaller classes grow from the rest.

    Args:
        model: the model: squared error summed over the samples, without a bias, `p >= C`, all counts different, and
            equal decay lam of W and H below the root of the least count.
        start: a small state, without leading axes.

    Returns:
        The times, shape (C,), in the order of the classes. They are exact in the limit of small starts.

    Raises:
        UsageError: for another model, equal counts, or a start that does not fit.

    Source: derived here from the Riccati equation of `gram`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=(64, 16, 4), num_features=3, use_bias=False)
        >>> start = fc.initial.sphere(model, eps=1e-4, key=jax.random.key(0))
        >>> fc.theory.imbalance.learning_times(model, start).argsort().tolist()
        [0, 1, 2]
    """
    _require_riccati(model)
    counts = model.counts
    if len(set(counts)) < len(counts):
        raise UsageError(
            f"samples_per_class={model.samples_per_class} has equal counts, whose classes are learned together: use "
            "different counts, or fc.theory.exact.balanced_flow."
        )
    if model.num_features < len(counts):
        raise UsageError(
            f"num_features is {model.num_features}, but with fewer than {len(counts)} some classes are never learned: "
            "raise it."
        )
    decays = known_decays(model)
    if decays is not None and decays[0] >= min(counts) ** 0.5:
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}, but from {min(counts) ** 0.5:.6g} on the smallest class is never "
            "learned: lower it."
        )
    check_state(model, start, "start")
    check_one(start)
    model, start = floating(model, start)
    with jax.default_matmul_precision("highest"):
        means = to_class_means(model, start)
        order = np.argsort(counts)[::-1]
        V0 = (means.W + means.B.T)[order] / 2
        diagonal = jnp.abs(jnp.diagonal(triangle(V0.T)))
        rates = jnp.asarray(np.sqrt(np.array(counts)[order]), V0.dtype) - model.decays[0]
        times = jnp.log(rates / diagonal**2) / (2 * rates)
        return times[np.argsort(order)]


def gram(model: UFM, start: State, ts: Times) -> Float[Array, "time C C"]:
    """`W W^T` of the flow from a start with `B = W^T`, for any counts, by a formula that loses no digits at late times.

    With `T = diag(sqrt n) - lam`, `M = W W^T` obeys `M' = T M + M T - 2 M^2`, so

        M(t)^{-1} = e^{-Tt} M0^{-1} e^{-Tt} + T^{-1} (I - e^{-2Tt}).

    Args:
        model: the model: squared error summed over the samples, without a bias, equal decay lam of W and H.
        start: a state with `B = W^T` and no part within the classes, and W of rank C, without leading axes.
        ts: times of at least 0, shape (time,).

    Returns:
        `W W^T` at the times, shape (time, C, C).

    Raises:
        UsageError: for another model, a start that does not have this form, or negative times.

    Source: derived here.

    Example:
        >>> import jax.numpy as jnp, flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=(4, 1), num_features=2, use_bias=False)
        >>> W = jnp.array([[0.1, 0.0], [0.05, 0.1]])
        >>> H = jnp.repeat(W.T / jnp.array([2.0, 1.0]), jnp.array([4, 1]), axis=1, total_repeat_length=5)
        >>> fc.theory.imbalance.gram(model, fc.State(H=H, W=W), [0.0, 20.0])[1].round(3).tolist()
        [[2.0, 0.0], [0.0, 1.0]]
    """
    _require_riccati(model)
    check_state(model, start, "start")
    check_one(start)
    model, start = floating(model, start)
    times = checked_times(ts, start.W.dtype)
    with jax.default_matmul_precision("highest"):
        means = to_class_means(model, start)
        _check_aligned(means)
        W, lam = means.W, model.decays[0]
        rates = jnp.asarray(np.sqrt(model.counts), W.dtype) - lam
        inverse = jnp.linalg.inv(W @ W.T)
        t, eye = times[:, None], jnp.eye(len(W), dtype=W.dtype)
        # Classes that vanish are scaled by e^{Tt}, so that nothing grows.
        falling, scale = jnp.exp(-jnp.maximum(rates, 0.0) * t), jnp.exp(jnp.minimum(rates, 0.0) * t)
        grown = jnp.where(rates == 0, 2 * t, -jnp.expm1(-2 * jnp.abs(rates) * t) / _nonzero(jnp.abs(rates)))
        scaled = jnp.linalg.inv(falling[:, :, None] * inverse * falling[:, None] + grown[:, :, None] * eye)
        return scale[:, :, None] * scaled * scale[:, None]


def _nonzero(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.where(x == 0, 1.0, x)


def _check_aligned(means: State) -> None:
    off = jnp.linalg.norm(means.B - means.W.T) + jnp.linalg.norm(means.L)
    size = jnp.linalg.norm(means.W)
    if is_traced(off):
        return
    if off > 1e3 * jnp.finfo(off.dtype).eps * size:
        raise UsageError(
            f"start is {float(off / size):.1e} of its size away from B = W^T: use a start with H = W^T / sqrt n in "
            "each class, or fc.theory.exact.balanced_flow."
        )
    if jnp.linalg.matrix_rank(means.W) < len(means.W):
        raise UsageError(
            f"start has W of rank {int(jnp.linalg.matrix_rank(means.W))}, but the formula inverts W W^T: use a start "
            f"of rank {len(means.W)}, or fc.theory.exact.balanced_flow."
        )


def _require_riccati(model: UFM) -> None:
    require(
        model,
        equal_decay="the flow is known for equal decay of W and H: use (lam, lam, lam_b)",
    )
    if model.use_bias:
        raise UsageError("use_bias is True, but with a bias the classes do not grow on their own: use use_bias=False.")

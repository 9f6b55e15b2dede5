"""The global minimum of the risk with weight decay, for every loss of the package.

With both decays positive and enough features, the least risk over all states is `min a f(Z) + mu ||Z||_*` over logits,
with `mu = sqrt(lam_W lam_H)`, and it is reached at `W = (lam_H/lam_W)^{1/4} U sqrt S`, `H = (lam_W/lam_H)^{1/4} sqrt S
V^T` with the singular value decomposition `Z = U S V^T`. Three ways lead to Z:

- the squared error lowers the singular values of its targets by mu (`squared_parts`);
- balanced classes with a loss of the kind of cross-entropy form a simplex frame (`frames.py`);
- any other convex loss is minimised numerically, and the result is certified (`grouped.py`, `optimality.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import is_traced
from .._errors import UsageError
from .._linalg.algebra import eigh, root, singular_values
from ..curvature.spectrum import Spectrum
from ..endings.modes import margin_modes, target_modes
from ..model.columns import ClassMeanColumns, root_counts, within_class_basis
from ..model.problem import Problem, problem_of
from ..model.requirements import check_model, known_decays
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program
from .frames import frame_logit, frame_spectrum, transition
from .grouped import solve
from .needs import require_features
from .optimality import best_bias, certify

Parts = tuple[Float[Array, "C m"], Float[Array, "m C"], Float[Array, " C"]]
"""Factors `(W, B)` of the best logits of class means, with `W^T W = B B^T`, and the bias."""


class Minimiser(NamedTuple):
    """A global minimum of the risk.

    - `state`: a state there, in class-mean columns; the others differ by rotations of the features.
    - `risk`: the least risk.
    - `rho`: the scale of the logits `W h` without the bias: that of the own class minus the mean of the others. One
      number for equal counts, if all modes have a feature; otherwise one per class, shape (C,).
    - `threshold`: the `mu = sqrt(lam_W lam_H)` from which on the origin, `W = 0` and `H = 0`, is a global minimum, if
      the decay of b stays as it is.
    - `learned`: for each class, whether the logits `W h` of its samples are largest at the class. A class that is not
      learned has vanished, or shares its logits with others, as the small classes of an imbalanced model do.
    - `collapsed`: whether all classes are learned, so that the features collapse to C class means that W tells apart.
    - `spectrum`: eigenvalues of the Hessian at the state, for balanced classes, decay of W and H, and a loss of the
      kind of cross-entropy; otherwise None. At the origin they are complete. At a simplex frame four more values occur
      `C - 1` times each, which have no short form and are left out: three without a bias, and two fewer if C is 2.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, weight_decay=3.0, loss="cross-entropy")
        >>> minimum = fc.theory.minimiser(model)
        >>> bool(minimum.collapsed), float(minimum.threshold)
        (False, 2.0)
    """

    state: State
    risk: Float[Array, ""]
    rho: Float[Array, "*classes"]
    threshold: Float[Array, ""]
    learned: Bool[Array, " C"]
    collapsed: Bool[Array, ""]
    spectrum: Spectrum | None


def minimiser(model: UFM) -> Minimiser:
    """A global minimum of the risk, in closed form where there is one, and otherwise by a certified minimisation.

    Closed forms: the squared error, unless counts are unequal and the bias decays; and balanced classes with
    cross-entropy, label smoothing or the focal loss, where `a s pull(rho) = mu`. Any other convex loss, in particular
    cross-entropy with unequal counts, is minimised numerically to the precision of the floats.

    Args:
        model: the model. Either both W and H decay, or neither and the loss has a minimum.

    Returns:
        The `Minimiser`. Its numbers are differentiable in the decay and the numbers of the loss.

    Raises:
        UsageError: if there is no minimum (no decay and a loss without minimum, or decay of only one of W and H), if it
            is not known (fewer features than the best logits need, or imbalanced classes with a loss that is not
            convex), or if the precision is too low to certify it.

    Source: Zhu et al. 2021 (arXiv 2105.02375) for cross-entropy; Zhou et al. 2022 (arXiv 2210.02192) for label
    smoothing and the focal loss; Dang et al. 2023 (arXiv 2301.00437) for the squared error with unequal counts; Fang et
    al. 2021 and Hong and Ling 2023 (arXiv 2309.09725) for cross-entropy with unequal counts. The explicit forms, the
    spectrum and the reduction to groups are derived here.

    Example:
        >>> import math, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, weight_decay=0.5, loss="cross-entropy")
        >>> phi = 0.5 / 2
        >>> bool(abs(fc.theory.minimiser(model).rho - math.log(1 + 3 * (1 / phi - 1))) < 1e-5)
        True
    """
    check_model(model)
    decays = known_decays(model)
    _check_that_there_is_a_minimum(model, decays)
    parts, num_modes = _way(model, decays)
    exact = parts is not _by_minimisation
    # The largest modes are best if the bias does not interact with them.
    cut = parts is _of_squared_error and (not model.use_bias or (decays is not None and decays[2] == 0))
    known = not any(map(is_traced, jax.tree.leaves(model)))
    if not known and not cut:
        require_features(model, num_modes, "the minimum for a decay that is traced")
    numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model)
    alike = model.balanced and exact and (num_modes <= model.num_features or parts is _of_frame)
    found, lost, certified = _minimiser(numbers, parts, alike, quick=True)
    if known and not cut and num_modes > model.num_features and lost > rounding() * (1 + found.rho.max()):
        require_features(model, num_modes, "the minimum below its threshold")
    if known and not exact and not certified:
        raise UsageError(
            f"the minimum was not found to the precision of {found.risk.dtype}: call fc.enable_x64() first, or use a "
            "decay nearer to 1."
        )
    if known and parts is _of_frame:
        found = found._replace(spectrum=frame_spectrum(numbers, found.rho, bool(found.rho == 0), quick=True))
    return found


def _check_that_there_is_a_minimum(model: UFM, decays: tuple[float, float, float] | None) -> None:
    if decays is None:
        return
    lam_W, lam_H, _ = decays
    if (lam_W > 0) != (lam_H > 0):
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}, but with decay of only one of W and H the other grows without "
            "bound and there is no minimum: give both a decay, or neither."
        )
    if lam_W == 0 and not model.loss.attained:
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}, but without decay of W and H the loss {model.loss.text!r} has no "
            "minimum: give them a decay, or see fc.theory.max_margin for the direction of the flow."
        )


def _way(model: UFM, decays: tuple[float, float, float] | None) -> tuple[Callable[[UFM], Parts], int]:
    """The function that makes the factors of the best logits, and the number of their modes."""
    C, loss = model.num_classes, model.loss
    no_decay = decays is not None and decays[0] == 0
    bias_decays = model.use_bias and (decays is None or decays[2] > 0)
    if loss.squared_error and no_decay and bias_decays:
        return _of_targets, C
    if loss.squared_error and (model.balanced or not bias_decays):
        return _of_squared_error, C if bias_decays or not model.use_bias else C - 1
    if loss.contrastive and no_decay:
        return _of_label_means, C - 1
    if loss.contrastive and model.balanced:
        return _of_frame, C - 1
    if loss.convex and not no_decay:
        return _by_minimisation, C - 1 if loss.shift_invariant else C
    if not loss.convex:
        raise UsageError(
            f"loss is {loss.text!r} and samples_per_class={model.samples_per_class}, but without convexity the minimum "
            "is known for equal counts and losses like cross-entropy only: use equal counts, or a convex loss."
        )
    raise UsageError(
        f"weight_decay is {model.weight_decay!r}, but without decay the minimum of the loss {loss.text!r} is not "
        "known: give W and H a decay."
    )


@Program
def _minimiser(model: UFM, parts: Callable[[UFM], Parts], alike: bool) -> tuple[Minimiser, Array, Array]:
    """The minimiser without its spectrum, the size of the largest mode without a feature, and the certificate."""
    C, p = model.num_classes, model.num_features
    W, B, b = parts(model.summed)
    W, B, lost = _of_features(W, B, p)
    lam_W, lam_H, _ = (lam.astype(W.dtype) for lam in model.decays)
    decays = (lam_W > 0) & (lam_H > 0)
    ratio = jnp.where(decays, jnp.where(decays, lam_H, 1.0) / jnp.where(decays, lam_W, 1.0), 1.0) ** 0.25
    state = State(X=B / ratio, W=W * ratio, b=b, columns=ClassMeanColumns(model.counts))
    logits = W @ B / root_counts(model.counts, W.dtype)
    own = jnp.diagonal(logits)
    rho = (C * own - jnp.sum(logits, axis=0)) / (C - 1)
    others = jnp.max(jnp.where(jnp.eye(C, dtype=bool), -jnp.inf, logits), axis=0)
    learned = own - others > rounding() * jnp.maximum(1.0, jnp.max(jnp.abs(logits)))
    minimum = Minimiser(
        state=state,
        risk=Problem.risk(*problem_of(model, state)),
        rho=jnp.mean(rho) if alike else rho,
        threshold=origin_threshold(model),
        learned=learned,
        collapsed=jnp.all(learned),
        spectrum=None,
    )
    certified = certify(model, state).is_global if parts is _by_minimisation else jnp.asarray(True)
    return minimum, lost, certified


def rounding() -> float:
    """Differences of logits up to this size count as rounding."""
    return float(jnp.finfo(jnp.result_type(float)).eps ** 0.75)


def _of_features(W: Float[Array, "C m"], B: Float[Array, "m C"], p: int) -> tuple[Array, Array, Array]:
    """The factors with p features, the largest modes first if there are fewer, and the largest mode left out."""
    m = W.shape[1]
    if m <= p:
        return jnp.pad(W, ((0, 0), (0, p - m))), jnp.pad(B, ((0, p - m), (0, 0))), jnp.zeros((), W.dtype)
    sizes = jax.lax.stop_gradient(jnp.linalg.norm(W, axis=0))
    order = jnp.argsort(-sizes, stable=True)
    return W[:, order[:p]], B[order[:p]], sizes[order[p]] ** 2


def origin_threshold(model: UFM) -> Float[Array, ""]:
    """The mu from which on the origin is a global minimum, for a convex loss or balanced classes."""
    if model.loss.contrastive and model.balanced:
        return transition(model).origin_minimal
    C, dtype = model.num_classes, jnp.result_type(float)
    problem = Problem(model, ClassMeanColumns(model.counts))
    logits = jnp.zeros((C, C), dtype)
    targets, ones = problem.data(logits)
    if model.use_bias:
        lam_b = model.decays[2].astype(dtype)
        logits = jnp.outer(best_bias(problem, logits, jnp.zeros(C, dtype), lam_b), ones)
    return singular_values(problem.loss.gradient(logits, targets, ones))[0]


def _nuclear_weight(model: UFM) -> Float[Array, ""]:
    lam_W, lam_H, _ = (lam.astype(jnp.result_type(float)) for lam in model.decays)
    return root(lam_W * lam_H)


def _of_squared_error(model: UFM) -> Parts:
    """The targets with singular values lowered by mu; a decaying bias of balanced classes shares their mean."""
    U, strengths, V = target_modes(model)
    n = np.array(model.counts)
    mu, lam_b = _nuclear_weight(model), model.decays[2].astype(jnp.result_type(float))
    sigma = jnp.maximum(jnp.asarray(strengths) - mu, 0.0)
    b = jnp.asarray(n / n.sum()) if model.use_bias else jnp.zeros(len(n))
    if model.use_bias and model.balanced:
        C, N, s = len(n), n[0], n[0] ** 0.5
        decays = lam_b > 0
        per_bias = mu / jnp.where(decays, lam_b, 1.0)
        x = jnp.where(decays, jnp.maximum(0.0, s - mu - C * N * per_bias), 0.0)
        b = jnp.where(decays, jnp.minimum(N / (C * N + lam_b), s * per_bias), 1 / C) * jnp.ones(C)
        mean = np.full((C, 1), C**-0.5)
        U, V, sigma = np.hstack([U, mean]), np.hstack([V, mean]), jnp.append(sigma, x)
    roots = root(sigma)
    return jnp.asarray(U) * roots, roots[:, None] * V.T, b


def _of_targets(model: UFM) -> Parts:
    """The targets themselves, which need no bias."""
    roots = jnp.asarray(np.array(model.counts) ** 0.25)
    return jnp.diag(roots), jnp.diag(roots), jnp.zeros(len(roots))


def _of_frame(model: UFM) -> Parts:
    """The simplex frame, or the origin."""
    C = model.num_classes
    half = root(frame_logit(model) * model.counts[0] ** 0.5) * within_class_basis((C,), jnp.result_type(float))
    return half, half.T, jnp.zeros(C)


def _of_label_means(model: UFM) -> Parts:
    """Every sample at the logits of least loss, without decay."""
    U, sizes, V = margin_modes(model.counts)
    roots = root(model.loss.collapsed_logit(jnp.zeros(()), model.num_classes) * sizes)
    return jnp.asarray(U) * roots, roots[:, None] * V.T, jnp.zeros(model.num_classes)


def _by_minimisation(model: UFM) -> Parts:
    """Factors found by L-BFGS and Newton's method, with their largest modes in few columns."""
    W, B, b = solve(model)
    if model.num_features < model.num_classes:
        _, turn = eigh(W.T @ W)
        W, B = W @ turn, turn.T @ B
    return W, B, b

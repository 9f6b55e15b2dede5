"""The landscape on the invariant subspace S: critical points, their Hessians, and their stability under descent.

Classes are balanced, `s = sqrt N`, and k is the number of modes of the targets: `C - 1` with a bias, C without. On S,
`H = (W (x) 1_N)^T / s`, a point is critical if `W W^T` is `s - lam` times an orthogonal projector of rank r on these
modes and `b = 1/C` (zero without a bias); lam is the decay of W and H. Rank `r = k` is strong collapse, and `r = 0` is
the origin. Up to rotations, all points of a rank have the same Hessian, and its eigenvectors fall into a few families.
U denotes the left singular vectors of W, U' the modes that W lacks, V the right singular vectors, and V' their
orthogonal complement:

| directions | eigenvalues | each |
|---|---|---|
| dW and dH in U V^T, symmetric, alike | `2 (s - lam)` | r (r + 1) / 2 |
| dW and dH in U V^T, symmetric, opposite | `2 lam` | r (r + 1) / 2 |
| dW and dH in U V^T, antisymmetric | `2 s`, 0 | r (r - 1) / 2 |
| dW and dH in U V'^T | `2 lam`, 0 | r (p - r) |
| dW and dH in U' V^T | `2 s`, 0 | r (k - r) |
| dW and dH in U' V'^T | `lam + s`, `lam - s` | (p - r) (k - r) |
| dH within the classes, in V | s | r C (N - 1) |
| dH within the classes, in V' | lam | (p - r) C (N - 1) |
| with a bias: dW in 1 V^T | s | r |
| with a bias: dW and dH in 1 V'^T | lam | 2 (p - r) |
| with a bias: dH in 1 V^T with db in U | roots of `x^2 - (C N + s) x + C N lam` | r |
| with a bias: db in U' and 1 | `C N` | k - r + 1 |

(derived here). Gradient descent is stable at a critical point for step sizes up to two over its largest eigenvalue.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import Number, check_integer, check_key, check_positive, checked_dtype, is_traced
from .._errors import UsageError
from ..curvature.spectrum import Spectrum
from ..model.columns import repeat_columns
from ..model.requirements import known_decays, require
from ..model.state import State
from ..model.ufm import UFM

__all__ = ["critical_point", "divergence_threshold", "settled_eigenvalue", "spectrum", "stability_threshold"]

EQUAL_COUNTS = "S is defined for equal counts: use equal counts, or fc.hessian_spectrum at a state"


def spectrum(model: UFM, rank: int | None = None) -> Spectrum:
    """The Hessian's eigenvalues at every critical point of a rank on S, in closed form.

    Args:
        model: the model, with balanced classes, equal decays of W and H and none of b.
        rank: the rank r of W, from 0 to `min(p, C - 1)` (`min(p, C)` without a bias), which is the default.

    Returns:
        The `Spectrum`, whose multiplicities are exact: they are computed without a tolerance. If the decay is known,
        values are distinct and ascending. If it is traced, inside jit, equal values may be listed separately.

    Raises:
        UsageError: for imbalanced classes, a rank out of range, decays that are not `(lam, lam, 0)`, or a decay of
            sqrt N or more with a rank above 0, because then only the origin is critical.

    Source: derived here; see the table at the top of this module.

    Example:
        >>> import flowcollapse as fc
        >>> from flowcollapse.theory import landscape
        >>> landscape.spectrum(fc.UFM(num_classes=3, samples_per_class=4, num_features=5))
        Spectrum (78 eigenvalues)
           14 x 2
           12 x 1
            4 x 4
            2 x 20
            0 x 51
    """
    r, k, lam = _checked(model, rank)
    s, n_tot = model.counts[0] ** 0.5, model.num_samples
    within, dead, lacking = n_tot - model.num_classes, model.num_features - r, k - r
    rows = [
        (2 * (s - lam), r * (r + 1) // 2),
        (2 * lam, r * (r + 1) // 2 + r * dead),
        (2 * s, r * (r - 1) // 2 + r * lacking),
        (0.0, r * (r - 1) // 2 + r * dead + r * lacking),
        (lam + s, dead * lacking),
        (lam - s, dead * lacking),
        (s, r * within),
        (lam, dead * within),
    ]
    if model.use_bias:
        # The smaller root is computed from the larger one, which avoids cancellation.
        larger = (n_tot + s + ((n_tot + s) ** 2 - 4 * n_tot * lam) ** 0.5) / 2
        rows += [(s, r), (lam, 2 * dead), (larger, r), (n_tot * lam / larger, r), (float(n_tot), lacking + 1)]
    values, multiplicities = zip(*((value, times) for value, times in rows if times > 0), strict=True)
    if any(is_traced(value) for value in values):
        return Spectrum(jnp.stack([jnp.asarray(value, jnp.result_type(float)) for value in values]), multiplicities)
    distinct, of_row = np.unique(np.array(values), return_inverse=True)
    together = np.bincount(of_row, weights=multiplicities)
    return Spectrum(jnp.asarray(distinct, jnp.result_type(float)), tuple(int(times) for times in together))


def critical_point(model: UFM, rank: int | None = None, *, key: PRNGKeyArray, dtype=None) -> State:
    """A random critical point of a given rank on S: `W W^T` is `s - lam` times a random projector on target modes.

    Args:
        model: the model, with balanced classes, equal decays of W and H and none of b.
        rank: the rank r of W, from 0 to `min(p, C - 1)` (`min(p, C)` without a bias), which is the default.
        key: `jax.random.key(seed)`.
        dtype: default the widest float that is enabled in JAX.

    Returns:
        The state. Rank C - 1 is strong collapse. Without decay the risk is `N (C - 1 - r) / 2`, and `N (C - r) / 2`
        without a bias.

    Raises:
        UsageError: for the reasons `spectrum` has.

    Source: derived here from the paper's flow on S, `W' = -(W W^T - s P) W`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.theory import landscape
        >>> model = fc.UFM(num_classes=5, samples_per_class=4, num_features=6)
        >>> round(float(fc.risk(model, landscape.critical_point(model, 2, key=jax.random.key(0)))), 4)
        4.0
    """
    r, _, lam = _checked(model, rank)
    check_key(key)
    dtype = checked_dtype(dtype)
    C, s = model.num_classes, model.counts[0] ** 0.5
    normal = jax.random.normal(key, (C, model.num_features), dtype)
    if model.use_bias:
        normal -= jnp.mean(normal, axis=0)
    U, _, Vt = jnp.linalg.svd(normal, full_matrices=False)
    sigma = jnp.asarray(s - lam, dtype) ** 0.5 if r > 0 else 0.0
    with jax.default_matmul_precision("highest"):
        W = sigma * U[:, :r] @ Vt[:r]
    b = jnp.full(C, 1 / C if model.use_bias else 0.0, dtype)
    return State(H=repeat_columns(W.T, model.counts) / s, W=W, b=b)


def stability_threshold(model: UFM) -> Float[Array, ""]:
    """The step size above which gradient descent is unstable at the limit of the flow from a generic start on S.

    It is two over the largest eigenvalue at the critical points of the highest rank: `2 / (C N + sqrt N)` without
    decay, and `1 / sqrt N` without a bias. Below it, descent is linearly stable there.

    Args:
        model: the model, with balanced classes, equal decays of W and H and none of b.

    Raises:
        UsageError: for the reasons `spectrum` has.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> from flowcollapse.theory import landscape
        >>> round(float(landscape.stability_threshold(fc.UFM(num_classes=3, samples_per_class=3, num_features=15))), 4)
        0.1864
    """
    return 2 / jnp.max(spectrum(model).values)


def divergence_threshold(model: UFM) -> Float[Array, ""]:
    """The step size above which gradient descent is stable at no critical point: `2 / (n_tot + lam_b)`.

    Along b the Hessian's quadratic form is `n_tot + lam_b` at every state, so its largest eigenvalue is at least that.
    On S the mean of b obeys `beta <- beta - eta (n_tot + lam_b) (beta - beta_inf)` and diverges. Descent that
    starts off S may diverge at smaller step sizes. For balanced classes without decay this is `1 + 1/(C sqrt N)`
    times the stability threshold.

    Args:
        model: the model, with a bias; any counts and decays are allowed.

    Raises:
        UsageError: for a model without a bias, whose curvature has no lower bound.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> from flowcollapse.theory import landscape
        >>> round(float(landscape.divergence_threshold(fc.UFM(num_classes=3, samples_per_class=3, num_features=15))), 4)
        0.2222
    """
    require(model, bias="the divergence threshold is the bias's own: use a model with a bias")
    return 2 / (model.num_samples + model.decays[2].astype(jnp.result_type(float)))


def settled_eigenvalue(model: UFM, learning_rate: Number) -> Float[Array, "*batch"]:
    """The largest possible eigenvalue of `W W^T` at a point of risk 0 where descent with this step size is at rest.

    The points `W W^T = mu P`, `W H = s P (x) 1^T / s`, `b = 1/C` all have risk 0, and their Hessian has the
    eigenvalue `C N + mu`, so descent can rest only where `mu <= 2/eta - C N`. Below the stability threshold, strong
    collapse (`mu = s`) is one of these points. Above it, `SNC1 >= sqrt(C - 1) (s - mu)` at every such point.

    Args:
        model: the model, with balanced classes and a bias, without decay.
        learning_rate: the step size eta, any shape, below the divergence threshold.

    Returns:
        `min(s, 2/eta - C N)`, in the shape of `learning_rate`.

    Raises:
        UsageError: for imbalanced classes, decay, a model without a bias, fewer than C - 1 features, or a step size
            that is not positive or makes descent diverge.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> from flowcollapse.theory import landscape
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> round(float(landscape.settled_eigenvalue(model, 1.1 * landscape.stability_threshold(model))), 4)
        0.7564
    """
    require(
        model,
        balanced=EQUAL_COUNTS,
        bias="the bound is the bias's own: use a model with a bias",
        no_decay="with decay no state has risk 0: use none",
    )
    if model.num_features < model.num_classes - 1:
        raise UsageError(
            f"num_features is {model.num_features} but risk 0 needs at least {model.num_classes - 1}: raise it."
        )
    check_positive("learning_rate", learning_rate, optional=False)
    bound = 2 / jnp.asarray(learning_rate) - model.num_samples
    if not is_traced(bound) and not jnp.all(bound > 0):
        raise UsageError(
            f"learning_rate is {learning_rate!r}, but descent diverges from {2 / model.num_samples:.6g} up: lower it."
        )
    return jnp.minimum(bound, model.counts[0] ** 0.5)


def _checked(model: UFM, rank: int | None) -> tuple[int, int, float | Float[Array, ""]]:
    """The rank, the number of modes of the targets, and the decay of W and H (a number if it is known)."""
    require(model, balanced=EQUAL_COUNTS)
    k = model.num_classes - 1 if model.use_bias else model.num_classes
    highest = min(model.num_features, k)
    rank = highest if rank is None else rank
    rank = check_integer("rank", rank, least=0)
    if rank > highest:
        raise UsageError(f"rank is {rank} but on S the rank of W is at most {highest}: lower it.")
    decays, s = known_decays(model), model.counts[0] ** 0.5
    if decays is None:
        return rank, k, model.decays[0]
    lam_W, lam_H, lam_b = decays
    if lam_W != lam_H or (model.use_bias and lam_b != 0):
        raise UsageError(
            f"weight_decay is {model.weight_decay!r} but the spectrum is known where W and H decay alike and b does "
            "not: use (lam, lam, 0)."
        )
    if rank > 0 and lam_W >= s:
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}, not below sqrt N = {s:.6g}, so the origin alone is critical: "
            "lower it, or use rank=0."
        )
    return rank, k, lam_W

"""Balanced classes with weight decay and a contrastive loss: the simplex frame, its transition and its spectrum.

The loss treats all classes alike and has the contrastive property of Zhou et al. 2022 (arXiv 2210.02192), as
cross-entropy, label smoothing and the focal loss have. Its minimisers are then simplex frames or the origin,

    W W^T = alpha^2 P,    H = sqrt(lam_W / (lam_H N)) (W (x) 1_N)^T,    logits rho P (x) 1_N^T,

and `alpha^2 = rho sqrt(N lam_H / lam_W)`. On these logits the residual is `-a pull(rho) P` (see `AbstractLoss.pull`),
so the frame is critical where `a s pull(rho) = mu`, with `mu = sqrt(lam_W lam_H)`. Along it, the risk is that of the
origin plus `s (C - 1) rho (mu - a s m(rho))`, where `m(rho)` is the mean of the pull over `[0, rho]` (derived here).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..curvature.spectrum import Spectrum
from ..losses.base import AbstractLoss
from ..model.requirements import check_model
from ..model.ufm import UFM
from ..programs import Program
from .needs import require_balanced_contrastive

NODES, WEIGHTS = (x / 2 for x in np.polynomial.legendre.leggauss(160))
NODES = NODES + 0.5
GRID = 2.0 ** np.linspace(-24, 8, 257)
"""Logits among which the largest pull and the largest mean pull are bracketed: 8 per octave."""


class Transition(NamedTuple):
    """Where the origin takes over, in units of `mu = sqrt(lam_W lam_H)`.

    - `origin_stable`: from here on the origin is a local minimum.
    - `origin_minimal`: from here on it is the global minimum.
    - `frame_ends`: from here on no simplex frame is critical.

    For a convex loss all three are equal, and the frame shrinks to the origin continuously. For a focal loss with many
    classes they differ: the frame jumps to the origin, with hysteresis in between.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=40, samples_per_class=1, num_features=40, loss="focal:2")
        >>> [round(float(mu), 3) for mu in fc.theory.transition(model)]
        [1.13, 1.15, 1.158]
    """

    origin_stable: Float[Array, ""]
    origin_minimal: Float[Array, ""]
    frame_ends: Float[Array, ""]


def transition(model: UFM) -> Transition:
    """The decays at which the origin becomes stable and optimal, and at which the simplex frame ends.

    Args:
        model: the model: balanced, with a loss of the kind of cross-entropy. Its own decay does not matter.

    Returns:
        The `Transition`, in units of `mu = sqrt(lam_W lam_H)`: `a s pull(0)`, `a s max m` and `a s max pull`, with
        `s = sqrt N`, a = 1 for the sum and `1 / n_tot` for the mean over the samples, and m(rho) the mean of the pull
        over `[0, rho]`.

    Raises:
        UsageError: for imbalanced classes or another loss.

    Source: Zhou et al. 2022 (arXiv 2210.02192) for the minimisers; the three thresholds are derived here.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=4, samples_per_class=9, num_features=5, loss="cross-entropy")
        >>> [float(mu) for mu in fc.theory.transition(model)]
        [3.0, 3.0, 3.0]
    """
    check_model(model)
    require_balanced_contrastive(model, "the transition")
    return _transition(jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), model), quick=True)


@Program
def _transition(model: UFM) -> Transition:
    unit = model.scale * model.counts[0] ** 0.5
    loss, C = model.loss, model.num_classes
    zero = loss.pull(jnp.zeros(()), C)
    if loss.convex:
        return Transition(unit * zero, unit * zero, unit * zero)
    highest = _largest(lambda rho: loss.pull(rho, C))
    mean = _largest(lambda rho: mean_pull(loss, rho, C))
    return Transition(unit * zero, unit * jnp.maximum(zero, mean), unit * jnp.maximum(zero, highest))


def mean_pull(loss: AbstractLoss, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
    """The mean of the pull over `[0, rho]`, which falls below `mu / (a s)` where the origin has the lower risk."""
    nodes, weights = jnp.asarray(NODES, rho.dtype), jnp.asarray(WEIGHTS, rho.dtype)
    return loss.pull(rho[..., None] * nodes, num_classes) @ weights


def _largest(function) -> Float[Array, ""]:
    """The largest value over `GRID`, refined between its neighbours by golden sections."""
    grid = jnp.asarray(GRID)
    place = jnp.clip(jnp.argmax(function(grid)), 1, len(grid) - 2)
    golden = (5**0.5 - 1) / 2

    def narrower(_, bounds):
        low, high = bounds
        left, right = high - golden * (high - low), low + golden * (high - low)
        rising = function(left) < function(right)
        return jnp.where(rising, left, low), jnp.where(rising, high, right)

    low, high = jax.lax.fori_loop(0, 60, narrower, (grid[place - 1], grid[place + 1]))
    return function(jax.lax.stop_gradient((low + high) / 2))


def frame_logit(model: UFM) -> Float[Array, ""]:
    """rho at the global minimum: that of the simplex frame, or 0 where the origin has the lower risk."""
    dtype = jnp.result_type(float)
    lam_W, lam_H, _ = (lam.astype(dtype) for lam in model.decays)
    C = model.num_classes
    mu = jnp.sqrt(lam_W * lam_H)
    rho = model.loss.collapsed_logit(mu / (model.scale * model.counts[0] ** 0.5), C)
    return rho if model.loss.convex else jnp.where(mu < _transition(model).origin_minimal, rho, 0.0)


@Program
def frame_spectrum(model: UFM, rho: Float[Array, ""], at_origin: bool) -> Spectrum:
    """Eigenvalues of the Hessian at a minimiser with positive decay; all of them at the origin.

    At a simplex frame four values, `C - 1` times each, are missing, because they have no short form: three without a
    bias, and two fewer if C is 2.

    The curvature of the loss at a collapsed sample is `e` along its own direction `P e_y`, and `c` along
    the `C - 2` directions orthogonal to it and to 1.
    """
    dtype = rho.dtype
    C, N, p = model.num_classes, model.counts[0], model.num_features
    lam_W, lam_H, lam_b = (lam.astype(dtype) for lam in model.decays)
    a, s, mu = model.scale, N**0.5, jnp.sqrt(lam_W * lam_H)
    zero, both = jnp.zeros((), dtype), lam_W + lam_H
    e, c = _curvatures(model, rho)
    rows: list[tuple[Array, int]]
    if at_origin:
        d = jnp.hypot((lam_W - lam_H) / 2, a * s * model.loss.pull(zero, C))
        rows = [(both / 2 - d, p * (C - 1)), (both / 2 + d, p * (C - 1)), (lam_W, p), (lam_H, p * (C * N - C + 1))]
        rows += [(a * N * (e + (C - 2) * c) * C / (C - 1) + lam_b, C - 1), (lam_b, 1)] if model.use_bias else []
        return Spectrum.of(*((value[None], times) for value, times in rows))
    q, within = p - C + 1, C * (N - 1)
    alpha2 = rho * s * jnp.sqrt(lam_H / lam_W)  # of W, in the frame
    own, other = (alpha2 * a * curvature / lam_H for curvature in (e, c))
    rows = [
        (lam_H * (1 + other), within * (C - 2)),
        (lam_H * (1 + own), within),
        (lam_H, q * within + q),
        (zero, q * (C - 1)),
        (both, q * (C - 1)),
        (lam_W, q + C - 1),
        *[(lam_b, 1)] * model.use_bias,
    ]
    # Pairs of W and B inside the frame. Antisymmetric ones are rotations, with one eigenvalue 0.
    rows += [(zero, (C - 1) * (C - 2) // 2), (both * (1 + other), (C - 1) * (C - 2) // 2)]
    for k, times in ((other, C * (C - 3) // 2), (own, 1)):
        middle, half = both * (1 + k) / 2, jnp.hypot((lam_W - lam_H) * (1 + k) / 2, mu * (k - 1))
        rows += [(middle - half, times), (middle + half, times)]
    return Spectrum.of(*((value[None], times) for value, times in rows if times > 0))


def _curvatures(model: UFM, rho: Float[Array, ""]) -> tuple[Array, Array]:
    """The second derivatives of the loss of one sample at its collapsed logits: along its class, and beside it."""
    C, dtype = model.num_classes, rho.dtype
    label = jnp.eye(C, 1, dtype=dtype)
    along = label - 1 / C
    beside = jnp.zeros((C, 1), dtype).at[C - 1].set(1.0).at[C - 2].set(-1.0) if C > 2 else jnp.zeros((C, 1), dtype)

    def second(direction):
        image = model.loss.curvature(rho * along, label, jnp.ones(1, dtype), direction)
        size = jnp.sum(direction**2)
        return jnp.sum(direction * image) / jnp.where(size > 0, size, 1.0)

    return second(along), second(beside)

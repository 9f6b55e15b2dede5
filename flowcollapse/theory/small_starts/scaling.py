"""How the plateau scales with the size eps of the start: powers of eps, and exact averages over random starts."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import check_positive
from ...model.requirements import require
from ...model.ufm import UFM
from .escape import check_small_eps, mean_mode_nodes, require_plain

__all__ = ["kappa", "powers", "rms"]


def kappa(model: UFM) -> float:
    """The fraction of the mean mode v in the span of the modes that remains after the escape; SNC3 scales with it.

    `kappa = Gamma(a)^2 / (Gamma(a - 1/2) Gamma(a + 1/2))`, `a = (1 + C s)/2`. It is computed as the mean of `sech z`
    over the density `sech(z)^{C s}`, to full precision at any size.

    Args:
        model: the model, with balanced classes.

    Raises:
        UsageError: for unequal counts, or another loss than the squared error.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> round(fc.theory.limits.kappa(fc.UFM(num_classes=3, samples_per_class=3, num_features=15)), 9)
        0.908777516
    """
    require(model, balanced="kappa is known for equal counts: use equal counts")
    _, sech_squared, weights = mean_mode_nodes(model.num_classes * math.sqrt(model.counts[0]))
    return float(np.sqrt(sech_squared) @ weights)


def powers(model: UFM) -> dict[str, int]:
    """The power of eps of each metric at the plateau, from random starts of size eps.

    A metric that ends at zero has no power. Without a bias, NC2 and NC3 are left out. Fit the powers at eps = 1e-2 and
    below, because higher orders bend the curves above that.

    Args:
        model: the model: balanced, without decay.

    Returns:
        A mapping from metric names to powers; the power is 0 if collapse lacks features.

    Raises:
        UsageError: for a model with decay or unequal counts.

    Source: derived here.

    Example:
        >>> import flowcollapse as fc
        >>> fc.theory.limits.powers(fc.UFM(num_classes=3, samples_per_class=3, num_features=15))["risk"]
        4
    """
    require_plain(model)
    C, N, p = model.num_classes, model.counts[0], model.num_features
    K = C - 1 if model.use_bias else C
    rests, within = p > K, p > K and N > 1
    reached = p >= K
    if not model.use_bias:
        first = 1 if within else 2
        known = {"snc1": 2 if reached else 0, "snc2": first, "distance": first, "relative_distance": first}
        known |= {"nc1": 6, "nc1_trace": 2, "cdnv": 2} if within else {}
        return known | ({} if reached else {"risk": 0})
    known = {"snc1": 2 if reached else 0, "snc2": 1, "snc3": 1, "distance": 1, "relative_distance": 1}
    known |= {"nc3": 1} if rests else {"nc3": 2} if min(K, p) > 1 else {}
    known |= {"nc1": 6, "nc1_trace": 2, "cdnv": 2, "risk": 4, "grad_norm": 3} if within else {}
    known |= {} if reached else {"risk": 0}
    if C > 2:
        power = 2 if reached else 0
        known |= {f"nc2_{what}_{whose}": power for what in ("norm", "angle", "etf") for whose in "hw"}
    elif rests:
        known |= {"nc2_norm_w": 3, "nc2_angle_w": 2, "nc2_etf_w": 2}
    return known


def rms(model: UFM, eps: Any) -> dict[str, Float[Array, "*sizes"]]:
    """The root mean square of the metrics at the plateau, over the random starts of `fc.initial.sphere`, exactly.

    With `f = (p - C + 1)/p`, `g = 1 - f`, `c = 1/(C s)`, `V = cosh(c)^2/(C N) + sinh(c)^2/C` and
    `U = cosh(c)^2/C + sinh(c)^2/(C N)`:

        SNC2 numerator   eps sqrt(f ((N-1)/N + e^{-2c} (1/C + 1/(C N))) + g kappa^2 V)
        SNC3             eps sqrt(g kappa^2 V/(s C))
        dist             eps sqrt(f ((N-1)/N + U + V) + g kappa^2 V (1 + 1/(s C)))
        NC1 (traces)     eps^2 f (N-1)/(N s (C-1)), its mean
        NC3              eps sqrt(f U/(s (C-1)))

    Args:
        model: the model: balanced, with a bias, without decay, `p >= C - 1`.
        eps: the norm of H0 and of W0, any shape, at most `sqrt(sqrt N / 32)`; the bias starts at 0.

    Returns:
        `snc2`, `snc2_numerator`, `snc3`, `distance`, `relative_distance` and `nc3`, each the root mean square, and
        `nc1_trace`, the mean. `nc3` is 0 if p = C - 1, where it is of order eps^2.

    Raises:
        UsageError: for a model outside these bounds, or an eps that is not positive or not small.

    Source: derived here, to leading order in eps.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> fc.theory.limits.rms(model, 1e-3)["distance"].round(6).tolist()
        0.001004
    """
    require_plain(model)
    require(model, bias="the constants of rms are those of the model with a bias: use one", modes=model.num_classes - 1)
    check_positive("eps", eps, optional=False)
    check_small_eps(model, eps)
    C, N, p, s = model.num_classes, model.counts[0], model.num_features, math.sqrt(model.counts[0])
    off, c, k = (p - C + 1) / p, 1 / (C * s), kappa(model)
    cosh, sinh = math.cosh(c) ** 2, math.sinh(c) ** 2
    V, U, within = cosh / (C * N) + sinh / C, cosh / C + sinh / (C * N), (N - 1) / N
    kept = (1 - off) * k**2 * V
    numerator = math.sqrt(off * (within + math.exp(-2 * c) * (1 / C + 1 / (C * N))) + kept)
    distance = math.sqrt(off * (within + U + V) + kept * (1 + 1 / (s * C)))
    eps, length = jnp.asarray(eps, float), math.sqrt(s * (C - 1))
    return {
        "snc2": eps * (numerator / length),
        "snc2_numerator": eps * numerator,
        "snc3": eps * math.sqrt(kept / (s * C)),
        "distance": eps * distance,
        "relative_distance": eps * (distance / math.sqrt(2 * s * (C - 1) + 1 / C)),
        "nc1_trace": eps**2 * (off * within / (s * (C - 1))),
        "nc3": eps * (math.sqrt(off * U) / length),
    }

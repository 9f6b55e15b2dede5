"""The focal loss, which weighs down the samples that are already fitted."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._checks import is_traced, real_numbers, shown
from .._errors import UsageError
from .base import AbstractLoss, Lanes, Logits, Ones, Targets
from .softmax import Softmax


class Focal(AbstractLoss):
    """The focal loss of the softmax, `-(1 - p_y)^gamma ln p_y`, which is cross-entropy for `gamma = 0`.

    It is not convex in the logits, and it has no minimum: it falls to zero as the logits grow.

    Args:
        gamma: the exponent, at least 0.

    Raises:
        UsageError: for a gamma below 0.

    Source: Lin et al. 2017 (arXiv 1708.02002); its collapse, Zhou et al. 2022 (arXiv 2210.02192). The pull is derived
    here.

    Example:
        >>> import flowcollapse as fc
        >>> fc.losses.Focal(gamma=3.0).text, fc.losses.Focal().attained
        ('focal:gamma=3.0', False)
    """

    gamma: float | Array

    name: ClassVar[str] = "focal"
    shift_invariant: ClassVar[bool] = True
    contrastive: ClassVar[bool] = True
    lanes_last: ClassVar[bool] = True

    def __init__(self, gamma: Any = 2.0):
        numbers = np.zeros(()) if is_traced(gamma) else real_numbers(gamma)
        if numbers is None or not np.all((numbers >= 0) & np.isfinite(numbers)):
            raise UsageError(f"gamma must be a number from 0 on, got {shown(gamma)}: give one such as 2.")
        self.gamma = gamma

    @property
    def attained(self) -> bool:
        return False

    def value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        softmax = Softmax.of(logits, targets, ones)
        return jnp.sum(softmax.weight**2 * jnp.exp(self.gamma * softmax.log_miss) * softmax.loss)

    def log_value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        softmax = Softmax.of(logits, targets, ones)
        return logsumexp(self.gamma * softmax.log_miss + softmax.log_loss, b=softmax.weight**2)

    def gradient(self, logits: Logits, targets: Targets, ones: Ones) -> Logits:
        return self.scaled_gradient(logits, targets, ones, jnp.zeros((), logits.dtype))

    def scaled_gradient(self, logits: Logits, targets: Targets, ones: Ones, log_scale: Lanes) -> Logits:
        softmax = Softmax.of(logits, targets, ones)
        log_miss = softmax.log_miss
        factor = 1 + self.gamma * _focus(softmax.loss, log_miss)
        return softmax.weight * factor * softmax.residual(log_scale + self.gamma * log_miss)

    def pull(self, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """`psi(rho) = C/(C-1) (1 - p)^gamma ((1 - p) - gamma p ln p)` with `p = e^rho / (e^rho + C - 1)`."""
        C = num_classes
        small = jnp.exp(-jnp.maximum(rho, 0.0))
        log_miss = jnp.log(C - 1.0) - jnp.maximum(rho, 0.0) - jnp.log(jnp.exp(jnp.minimum(rho, 0.0)) + (C - 1) * small)
        loss = jnp.where(rho > 0, jnp.log1p((C - 1) * small), jnp.log(C - 1 + jnp.exp(jnp.minimum(rho, 0.0))) - rho)
        return C / (C - 1) * jnp.exp((1 + self.gamma) * log_miss) * (1 + self.gamma * _focus(loss, log_miss))


def _focus(loss: Float[Array, "*shape"], log_miss: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`-p ln p / (1 - p)` from `-ln p` and `ln(1 - p)`; 1 in the limit of `p = 1`."""
    miss = jnp.exp(log_miss)
    tiny = miss < jnp.finfo(miss.dtype).tiny / jnp.finfo(miss.dtype).eps
    return jnp.where(tiny, 1.0, (1 - miss) * loss / jnp.where(tiny, 1.0, miss))

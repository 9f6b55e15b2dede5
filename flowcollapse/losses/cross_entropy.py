"""The cross-entropy of the softmax, with or without label smoothing."""

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from .._checks import is_traced, real_numbers, shown
from .._errors import UsageError
from .base import AbstractLoss, Lanes, Logits, Ones, Targets
from .softmax import Softmax


class CrossEntropy(AbstractLoss):
    """Cross-entropy of the softmax, `-sum_k q_k ln p_k` with `q = (1 - eps) y + eps / C` and the label smoothing eps.

    Without smoothing the loss has no minimum: it falls to zero as the logits grow. With smoothing its minimum is at the
    logits `ln(1 + C (1/eps - 1)) P`.

    Args:
        label_smoothing: eps, from 0 to below 1.

    Raises:
        UsageError: for a smoothing outside [0, 1).

    Source: cross-entropy and collapse, Zhu et al. 2021 (arXiv 2105.02375); label smoothing, Szegedy et al. 2016 (arXiv
    1512.00567) and Zhou et al. 2022 (arXiv 2210.02192). The form without cancellation is derived here.

    Example:
        >>> import flowcollapse as fc
        >>> fc.losses.CrossEntropy().attained, fc.losses.CrossEntropy(label_smoothing=0.1).text
        (False, 'cross-entropy:label_smoothing=0.1')
    """

    label_smoothing: float | Array | None
    """None without smoothing, so that programs know that the loss has no minimum."""

    name: ClassVar[str] = "cross-entropy"
    shift_invariant: ClassVar[bool] = True
    convex: ClassVar[bool] = True
    contrastive: ClassVar[bool] = True
    lanes_last: ClassVar[bool] = True

    def __init__(self, label_smoothing: Any = None):
        if label_smoothing is not None and not is_traced(label_smoothing):
            numbers = real_numbers(label_smoothing)
            if numbers is None or not np.all((numbers >= 0) & (numbers < 1)):
                raise UsageError(
                    f"label_smoothing must be a number from 0 to below 1, got {shown(label_smoothing)}: give one such "
                    "as 0.1."
                )
            if numbers.ndim == 0 and numbers == 0:
                label_smoothing = None
        self.label_smoothing = label_smoothing

    @property
    def attained(self) -> bool:
        return self.label_smoothing is not None

    def value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        softmax = Softmax.of(logits, targets, ones)
        loss = softmax.loss
        if self.label_smoothing is not None:
            loss = loss - self.label_smoothing * jnp.mean(softmax.differences, axis=0)
        return jnp.sum(softmax.weight**2 * loss)

    def log_value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        if self.label_smoothing is not None:
            return super().log_value(logits, targets, ones)
        softmax = Softmax.of(logits, targets, ones)
        return logsumexp(softmax.log_loss, b=softmax.weight**2)

    def gradient(self, logits: Logits, targets: Targets, ones: Ones) -> Logits:
        return self.scaled_gradient(logits, targets, ones, jnp.zeros((), logits.dtype))

    def scaled_gradient(self, logits: Logits, targets: Targets, ones: Ones, log_scale: Lanes) -> Logits:
        softmax = Softmax.of(logits, targets, ones)
        residual = softmax.residual(log_scale)
        if self.label_smoothing is not None:
            residual += jnp.exp(log_scale) * self.label_smoothing * (softmax.label - 1 / len(logits))
        return softmax.weight * residual

    def pull(self, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """`C / (e^rho + C - 1) - eps`."""
        C = num_classes
        small = jnp.exp(-jnp.maximum(rho, 0.0))
        pull = C * small / (jnp.exp(jnp.minimum(rho, 0.0)) + (C - 1) * small)
        return pull if self.label_smoothing is None else pull - self.label_smoothing

    def collapsed_logit(self, pull: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """`ln(1 + C (1/phi - 1))` with `phi = pull + eps`; 0 from `phi = 1` on."""
        phi = pull if self.label_smoothing is None else pull + self.label_smoothing
        inside = jnp.where(phi > 0, phi, 1.0)
        return jnp.where(phi > 0, jnp.log1p(num_classes * jnp.maximum(1 - inside, 0.0) / inside), jnp.inf)


def smoothed(label_smoothing: Any) -> CrossEntropy:
    """Cross-entropy with this label smoothing."""
    return CrossEntropy(label_smoothing)

"""Losses that are not in the package, written as a user would write them."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowcollapse.losses import AbstractLoss, Squared


class Trial(AbstractLoss):
    """Softmax cross-entropy: not quadratic, so class means hold a state only if it is collapsed within classes."""

    name: ClassVar[str] = "trial"

    @property
    def attained(self) -> bool:
        return False

    def value(self, logits, targets, ones):
        return jnp.sum(ones**2 * jax.nn.logsumexp(logits / ones, axis=0)) - jnp.sum(targets * logits)

    def gradient(self, logits, targets, ones):
        return ones * jax.nn.softmax(logits / ones, axis=0) - targets


class Scaled(AbstractLoss):
    """A multiple of the squared error: quadratic, so class means are exact, but no closed form applies to it."""

    factor: float | Array = 2.0

    name: ClassVar[str] = "scaled"
    quadratic: ClassVar[bool] = True

    def value(self, logits, targets, ones):
        return self.factor * Squared().value(logits, targets, ones)

    def gradient(self, logits, targets, ones):
        return self.factor * (logits - targets)

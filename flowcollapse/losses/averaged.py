"""A loss averaged over the samples, in place of the sum."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import AbstractLoss, Lanes, Logits, Ones, Targets


class Averaged(AbstractLoss):
    """`scale` times another loss. With `scale = 1 / n_tot` it is the mean over the samples.

    Models make it from `reduction="mean"`. It declares the properties of the other loss, except that it is not half the
    squared norm of the residual.
    """

    loss: AbstractLoss
    scale: float

    name: ClassVar[str] = "averaged"

    @property
    def quadratic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.quadratic

    @property
    def shift_invariant(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.shift_invariant

    @property
    def convex(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.convex

    @property
    def contrastive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.contrastive

    @property
    def lanes_last(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.lanes_last

    @property
    def attained(self) -> bool:
        return self.loss.attained

    def value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        return self.scale * self.loss.value(logits, targets, ones)

    def log_value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        return self.loss.log_value(logits, targets, ones) + jnp.log(self.scale)

    def gradient(self, logits: Logits, targets: Targets, ones: Ones) -> Logits:
        return self.scale * self.loss.gradient(logits, targets, ones)

    def scaled_gradient(self, logits: Logits, targets: Targets, ones: Ones, log_scale: Lanes) -> Logits:
        return self.scale * self.loss.scaled_gradient(logits, targets, ones, log_scale)

    def curvature(self, logits: Logits, targets: Targets, ones: Ones, direction: Logits) -> Logits:
        return self.scale * self.loss.curvature(logits, targets, ones, direction)

    def pull(self, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        return self.scale * self.loss.pull(rho, num_classes)

    def collapsed_logit(self, pull: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        return self.loss.collapsed_logit(pull / self.scale, num_classes)

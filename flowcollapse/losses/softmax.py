"""The probabilities of the softmax, in a form that keeps all digits at any margin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .base import Logits, Ones, Targets, beside


class Softmax(NamedTuple):
    """The softmax of the columns of logits, relative to the logit of each column's class.

    With the differences `d = z - z_y`, their largest m over the other classes, and `c = max(m, 0)`, the probabilities
    are `p_j = exp(d_j - c) / (q + r)` off the class and `p_y = r / (q + r)`, where `q` sums `exp(d_j - c)` over the
    other classes and `r = exp(-c)`. Nothing is subtracted from 1, so `1 - p_y` is exact down to the smallest number.

    All parts may have lanes as their last axes.
    """

    label: Float[Array, "C n *lanes"]
    """The one-hot labels Y."""
    weight: Float[Array, "n *lanes"]
    """The weight u of each column."""
    differences: Float[Array, "C n *lanes"]
    """`z - z_y`, 0 on the class."""
    relative: Float[Array, "C n *lanes"]
    """`exp(d_j - m)` off the class, 0 on it."""
    largest: Float[Array, "n *lanes"]
    """m, the largest difference off the class. Minus it is the margin."""

    @classmethod
    def of(cls, logits: Logits, targets: Targets, ones: Ones) -> "Softmax":
        ones = beside(ones, logits)
        label, z = beside(targets, logits) / ones, logits / ones
        differences = z - jnp.sum(label * z, axis=0)
        others = jnp.where(label > 0, -jnp.inf, differences)
        # No result depends on the m subtracted here. Its derivative, which ties would make wrong, is left out.
        largest = jax.lax.stop_gradient(jnp.max(others, axis=0))
        return cls(label, ones, differences, jnp.exp(others - largest), largest)

    @property
    def total(self) -> Float[Array, "n *lanes"]:
        """The sum of `exp(d_j - m)` over the other classes, between 1 and C - 1."""
        return jnp.sum(self.relative, axis=0)

    @property
    def normaliser(self) -> Float[Array, "n *lanes"]:
        """`q + r`, between 1 and C."""
        above = jnp.maximum(self.largest, 0.0)
        return self.total * jnp.exp(self.largest - above) + jnp.exp(-above)

    def residual(self, log_scale: Float[Array, "*shape"]) -> Float[Array, "C n *lanes"]:
        """`exp(log_scale) (p - Y)`, with the factor inside the exponential. It sums to zero over the classes."""
        size = jnp.exp(log_scale + jnp.minimum(self.largest, 0.0)) / self.normaliser
        return (self.relative - self.label * self.total) * size

    @property
    def loss(self) -> Float[Array, "n *lanes"]:
        """`-ln p_y`."""
        total = self.total
        small = jnp.log1p(total * jnp.exp(jnp.minimum(self.largest, 0.0)))
        large = self.largest + jnp.log(total + jnp.exp(-jnp.maximum(self.largest, 0.0)))
        return jnp.where(self.largest > 0, large, small)

    @property
    def log_loss(self) -> Float[Array, "n *lanes"]:
        """`ln(-ln p_y)`, also where `-ln p_y` is below the smallest number."""
        log_odds = self.largest + jnp.log(self.total)
        tiny = log_odds < jnp.log(jnp.finfo(log_odds.dtype).eps)
        return jnp.where(tiny, log_odds, jnp.log(jnp.where(tiny, 1.0, self.loss)))

    @property
    def log_miss(self) -> Float[Array, "n *lanes"]:
        """`ln(1 - p_y)`."""
        return jnp.log(self.total) + jnp.minimum(self.largest, 0.0) - jnp.log(self.normaliser)

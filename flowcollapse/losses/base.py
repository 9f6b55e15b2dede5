"""The protocol of a loss: its value, its gradient, and the properties that the rest of the package dispatches on."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._registry import described_by, fields_of, numbers_of

Logits = Float[Array, "C n"]
Ones = Float[Array, " n"]


class AbstractLoss(eqx.Module):
    """A loss of the logits, summed over the columns with weights: `sum_j u_j^2 loss(z_j / u_j, t_j / u_j)`.

    For samples `u = 1` and `t_j` is the one-hot label. For class means `u = sqrt n`, `z_j / u_j` are the logits of the
    mean and `t_j / u_j` the label, so a class counts n times. Columns with `u_j = 0`, which hold the part within the
    classes, occur only for quadratic losses.

    A subclass is final. Its fields are its numbers, such as a smoothing, and can be axes of a sweep; other options are
    static fields. Define `value` and `gradient`. The defaults of the other members assume no special property.

    Source: the weighted form is derived here; `docs/extending.md` has a worked example.

    Example:
        >>> import jax.numpy as jnp, flowcollapse as fc
        >>> class Fourth(fc.losses.AbstractLoss):
        ...     name = "fourth"
        ...
        ...     def value(self, logits, targets, ones):
        ...         return jnp.sum(ones**2 * ((logits - targets) / ones) ** 4) / 4
        ...
        ...     def gradient(self, logits, targets, ones):
        ...         return ones * ((logits - targets) / ones) ** 3
        >>> fc.UFM(num_classes=2, samples_per_class=1, num_features=2, loss=Fourth()).loss.quadratic
        False
    """

    name: ClassVar[str]
    """The name of the loss in files, tables and messages."""

    quadratic: ClassVar[bool] = False
    """Whether the value depends only on the Frobenius norm of the residual `Z - T`. An orthogonal map of the columns
    then does not change it, and class-mean columns hold any state exactly."""

    squared_error: ClassVar[bool] = False
    """Whether this is half the squared norm of the residual, as closed forms in `flowcollapse.theory` assume."""

    attained: ClassVar[bool] = True
    """Whether the infimum is reached at finite logits. If it is not, as for cross-entropy, a run without decay has no
    end."""

    @abc.abstractmethod
    def value(self, logits: Logits, targets: Logits, ones: Ones) -> Float[Array, ""]:
        """The sum over the columns. `ones` is u."""

    @abc.abstractmethod
    def gradient(self, logits: Logits, targets: Logits, ones: Ones) -> Logits:
        """The derivative of `value` in the logits, written by hand."""

    def curvature(self, logits: Logits, targets: Logits, ones: Ones, direction: Logits) -> Logits:
        """The second derivative of `value` in the logits, times a direction."""
        return jax.jvp(lambda z: self.gradient(z, targets, ones), (logits,), (direction,))[1]

    def pull(self, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """The pull of the loss on collapsed logits: at logits `rho P` the residual is `-pull(rho) P`.

        `P = I - 1 1^T / C`. Modes grow from the origin at the rate `sqrt N pull(0)`, and with decay the minimum is
        where `pull(rho) = sqrt(lam_W lam_H) / sqrt N` (derived here). The default reads the pull off the gradient in
        the direction P, which is exact for losses that treat all classes alike.
        """
        C = num_classes
        frame = jnp.eye(C) - 1 / C

        def one(r):
            G = self.gradient(r * frame, jnp.eye(C), jnp.ones(C))
            return -jnp.sum(G * frame) / (C - 1)

        return jnp.vectorize(one)(rho)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the loss's numbers, which can vary without a new compilation."""
        return numbers_of(self)

    def with_numbers(self, numbers: Mapping[str, Any]) -> "AbstractLoss":
        """The same loss with some of its `numbers` replaced, checked by its `__init__`."""
        return type(self)(**(fields_of(self) | dict(numbers)))

    @property
    def text(self) -> str:
        """The loss as a text that `fc.UFM(loss=...)` takes, with all its fields: `"name:field=value,field=value"`."""
        return self.described()

    def described(self, without: Iterable[str] = ()) -> str:
        """The text of the loss, without some of its fields."""
        return described_by(self.name, fields_of(self), without)

"""The protocol of a loss: its value, its gradient, and the properties that the rest of the package dispatches on."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._registry import described_by, fields_of, numbers_of

Logits = Float[Array, "C n *lanes"]
Targets = Float[Array, "C n"]
Ones = Float[Array, " n"]
Lanes = Float[Array, "..."]


class AbstractLoss(eqx.Module):
    """A loss of the logits, summed over the columns with weights: `sum_j u_j^2 loss(z_j / u_j, t_j / u_j)`.

    For samples `u = 1` and `t_j` is the one-hot label. For class means `u = sqrt n`, `z_j / u_j` are the logits of the
    mean and `t_j / u_j` the label, so a class counts n times. Columns with `u_j = 0`, which hold the part within the
    classes, occur only for quadratic losses.

    A subclass is final. Its fields are its numbers, such as a smoothing, and can be axes of a sweep; other options are
    static fields. Define `value` and `gradient`. The defaults of the other members assume no special property.

    Source: the weighted form is derived here; `docs/howto/extending.md` has a worked example.

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

    shift_invariant: ClassVar[bool] = False
    """Whether adding one number to all logits of a column leaves the loss as it is, as for losses of the softmax."""

    convex: ClassVar[bool] = False
    """Whether this is convex in the logits and nowhere negative, so that a global minimum can be certified."""

    contrastive: ClassVar[bool] = False
    """Whether the loss treats all classes alike and has the contrastive property of Zhou et al. 2022 (arXiv
    2210.02192): with decay and balanced classes, every global minimiser is then a simplex frame or the origin."""

    lanes_last: ClassVar[bool] = False
    """Whether `gradient` and `scaled_gradient` also take logits with further axes at the end, one per lane."""

    @property
    def attained(self) -> bool:
        """Whether the infimum is reached at finite logits. If it is not, as for cross-entropy, a run without decay has
        no end."""
        return True

    @abc.abstractmethod
    def value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        """The sum over the columns. `ones` is u."""

    @abc.abstractmethod
    def gradient(self, logits: Logits, targets: Targets, ones: Ones) -> Logits:
        """The derivative of `value` in the logits, written by hand."""

    def scaled_gradient(self, logits: Logits, targets: Targets, ones: Ones, log_scale: Lanes) -> Logits:
        """`exp(log_scale)` times the gradient.

        A loss whose gradient falls exponentially adds `log_scale` inside its exponentials. Then neither factor
        overflows or vanishes at times such as e^1000 (`clock="log"`).
        """
        return jnp.exp(log_scale) * self.gradient(logits, targets, ones)

    def log_value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        """The logarithm of `value`. A loss that falls exponentially computes it without forming its value."""
        return jnp.log(self.value(logits, targets, ones))

    def curvature(self, logits: Logits, targets: Targets, ones: Ones, direction: Logits) -> Logits:
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

    def collapsed_logit(self, pull: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """The largest rho at which the loss pulls with this strength; 0 if its pull is weaker everywhere.

        It is infinite if the pull is not above 0 and the loss has no minimum. The default brackets the largest root
        among 64 powers of two and bisects there. Derivatives are those of the root, by one step of Newton's method.
        """

        def one(wanted):
            grid = jnp.append(0.0, 2.0 ** jnp.arange(-20.0, 44.0)).astype(wanted.dtype)
            above = jnp.max(jnp.where(self.pull(grid, num_classes) > wanted, jnp.arange(len(grid)), -1))
            place = jnp.clip(above, 0, len(grid) - 2)

            def halved(_, bounds):
                low, high = bounds
                middle = (low + high) / 2
                right = self.pull(middle, num_classes) > wanted
                return jnp.where(right, middle, low), jnp.where(right, high, middle)

            low, high = jax.lax.fori_loop(0, 64, halved, (grid[place], grid[place + 1]))
            endless = (above > place) | ((wanted <= 0) & (not self.attained))
            root = jax.lax.stop_gradient((low + high) / 2)
            slope = jax.lax.stop_gradient(
                jax.jvp(lambda r: self.pull(r, num_classes), (root,), (jnp.ones_like(root),))[1]
            )
            root -= jnp.where(
                slope < 0, (self.pull(root, num_classes) - wanted) / jnp.where(slope < 0, slope, 1.0), 0.0
            )
            return jnp.where(above < 0, 0.0, jnp.where(endless, jnp.inf, root))

        return jnp.vectorize(one)(pull)

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
        """The text of the loss, without some of its fields. A field that is None is left out."""
        fields = {name: value for name, value in fields_of(self).items() if value is not None}
        return described_by(self.name, fields, without)


def beside(x: Float[Array, "*shape"], logits: Float[Array, "C n *lanes"]) -> Float[Array, "*shape_and_lanes"]:
    """Targets or weights of the columns, with one axis of length one for each axis of lanes in the logits."""
    return x.reshape(*x.shape, *(1,) * (logits.ndim - 2))

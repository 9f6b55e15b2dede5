"""What a loss of the logits is: a value and its gradient, both pure functions of `(logits, targets)`."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from .._linalg.algebra import square_norm

Logits = Float[Array, "C n"]


class Loss(NamedTuple):
    """A loss of the logits.

    `gradient` is the derivative of `value` in the logits. `separates_columns` says that the loss is a squared norm of
    the residual, which is what makes the class-mean coordinates exact: an orthogonal map of the columns then leaves
    the loss as it is. `squared_error` says more: closed forms hold for it.
    """

    value: Callable[[Logits, Logits], Float[Array, ""]]
    gradient: Callable[[Logits, Logits], Logits]
    separates_columns: bool

    @property
    def squared_error(self) -> bool:
        """Whether this is half the squared norm of the residual: its derivative in the logits is the residual."""
        return self.separates_columns and self.gradient is _residual


def _half_squared_norm(logits: Logits, targets: Logits) -> Float[Array, ""]:
    return 0.5 * square_norm(logits - targets)


def _residual(logits: Logits, targets: Logits) -> Logits:
    return logits - targets

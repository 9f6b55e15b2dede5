"""The squared error, the paper's loss."""

from typing import ClassVar

from jaxtyping import Array, Float

from .._linalg.algebra import square_norm
from .base import AbstractLoss, Logits, Ones, Targets, beside


class Squared(AbstractLoss):
    """Half the squared norm of the residual, `1/2 ||Z - T||_F^2`.

    Source: Mixon, Parshall and Pi (arXiv 2011.11619).

    Example:
        >>> import flowcollapse as fc
        >>> fc.UFM(num_classes=3, samples_per_class=3, num_features=15, loss=fc.losses.Squared()).loss.name
        'squared'
    """

    name: ClassVar[str] = "squared"
    quadratic: ClassVar[bool] = True
    squared_error: ClassVar[bool] = True
    convex: ClassVar[bool] = True
    lanes_last: ClassVar[bool] = True

    def value(self, logits: Logits, targets: Targets, ones: Ones) -> Float[Array, ""]:
        return 0.5 * square_norm(logits - targets)

    def gradient(self, logits: Logits, targets: Targets, ones: Ones) -> Logits:
        return logits - beside(targets, logits)

    def curvature(self, logits: Logits, targets: Targets, ones: Ones, direction: Logits) -> Logits:
        return direction

    def pull(self, rho: Float[Array, "*shape"], num_classes: int) -> Float[Array, "*shape"]:
        """`1 - rho`."""
        return 1 - rho

"""The ending of a problem whose end is not known: a run goes as far as requested, and no verdict claims more."""

from jaxtyping import Array, Bool, Float

from .._errors import UsageError
from ..model.problem import Point
from .base import AbstractEnding
from .verdict import Ending


class OpenEnd(AbstractEnding):
    """Runs end where the user says."""

    def escape_time(self, start: Point, mean_decay: float | None = None) -> None:
        return None

    def end_time(self, start: Point) -> Float[Array, ""]:
        raise UsageError(
            f"t1 is not given, and for the loss {self.problem.loss.text!r} the end of a run does not follow from its "
            "start: give t1, or the times ts."
        )

    def at_rest(self, start: Point, point: Point, tolerance: Float[Array, ""]) -> Bool[Array, ""]:
        raise UsageError(
            f"until='rest' is known for the squared error only, and the loss is {self.problem.loss.text!r}: give t1 "
            "instead."
        )

    def done(self, start: Point, run: Ending) -> None:
        return None

"""The choice of a problem's ending from the properties of its loss."""

from jaxtyping import Array, Int

from ..model.problem import Point, Problem
from .base import AbstractEnding
from .open_end import OpenEnd
from .plateau import Plateau
from .verdict import Ending, Verdict


def ending_of(problem: Problem) -> AbstractEnding:
    """The ending of a problem, which knows when its runs are over."""
    return Plateau(problem) if problem.loss.squared_error else OpenEnd(problem)


def verdict(problem: Problem, start: Point, run: Ending, limit: Verdict) -> Int[Array, ""]:
    """The code of the verdict on a run, int8. `limit` is the verdict of a run that stopped early, as requested."""
    return ending_of(problem).verdict(start, run, limit)

"""The choice of a problem's ending from the properties of its loss."""

from jaxtyping import Array, Int

from ..model.problem import Point, Problem
from .base import AbstractEnding
from .margin import Margin
from .modes import fixed
from .plateau import Plateau, Slowed
from .stationary import Stationary
from .verdict import Ending, Verdict


def ending_of(problem: Problem) -> AbstractEnding:
    """The ending of a problem, which knows when its runs are over. Its times and verdicts have no derivatives."""
    problem = fixed(problem)
    if problem.model.loss.squared_error:
        return Plateau(problem) if problem.model.scale == 1 else Slowed(problem)
    return Stationary(problem) if problem.loss.attained else Margin(problem)


def verdict(problem: Problem, start: Point, run: Ending, limit: Verdict) -> Int[Array, ""]:
    """The code of the verdict on a run, int8. `limit` is the verdict of a run that stopped early, as requested."""
    return ending_of(problem).verdict(start, run, limit)

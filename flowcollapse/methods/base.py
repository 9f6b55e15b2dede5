"""The common interface of flows and descents: from a start to a path, with numbers that can vary."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._errors import UsageError
from ..endings.verdict import Ending, Verdict
from ..model.problem import Point, Problem
from ..model.state import State
from ..model.ufm import UFM


class Run(NamedTuple):
    """The result of a method: observations at `ts` (NaN after an early end), the end, and how the run went."""

    ts: Float[Array, " time"]
    observed: PyTree
    end: Point
    t_end: Float[Array, ""]
    steps_ran_out: Bool[Array, ""]
    stats: dict[str, Int[Array, ""]]
    at_rest: Bool[Array, ""] | bool = False

    @property
    def ending(self) -> Ending:
        return Ending(self.end, self.t_end, self.steps_ran_out, jnp.asarray(self.at_rest))


class Method(eqx.Module):
    """A method that turns a start into a path, such as a flow or a descent, for `fc.simulate` and `fc.sweep`."""

    name: ClassVar[str]
    """The name of this kind of method in files and tables."""

    coordinates: eqx.AbstractVar[str]

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The name of this method in tables."""

    @property
    @abc.abstractmethod
    def numbers(self) -> tuple[str, ...]:
        """The names of the method's numbers, which can vary without a new compilation."""

    @abc.abstractmethod
    def with_numbers(self, numbers: Mapping[str, Any]) -> "Method":
        """The same method with some of its `numbers` replaced."""

    def prepared(self, model: UFM, ts: Any) -> "Method":
        """The same method with all choices made that depend on numbers, if these are known outside of a program."""
        return self

    @property
    @abc.abstractmethod
    def limit(self) -> Verdict:
        """The verdict of a run that stopped before the plateau, as requested."""

    @property
    def time_name(self) -> str:
        """The name of the times of a run in tables and files."""
        return "time"

    def check_fits(self, model: UFM) -> None:
        """Raise `UsageError` if the method cannot run on the model."""

    @property
    def factorises(self) -> bool:
        """Whether the method's steps factorise a matrix. Factorisations run one lane after the other."""
        return False

    @property
    def stepped(self) -> "SteppedMethod | None":
        """This method if it moves in steps of a clock, whose number is chosen before the run; None for a flow."""
        return None

    @property
    def open(self) -> tuple[str, ...]:
        """The names of the numbers that the method still needs."""
        return ()

    def check_closed(self, left: Sequence[str]) -> None:
        """Raise `UsageError` if numbers are still open."""

    def coordinates_for(self, model: UFM, start: State) -> str:
        """The coordinates of a run from a start."""
        return self.coordinates

    def saves(self, ts: Any, dtype) -> Any:
        """The save times, or their number, after a check that the method can save at them."""
        return ts

    @abc.abstractmethod
    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any] | None) -> Run:
        """Run from `start` and observe at `ts`, or at `ts` many times up to the end; without `observe`, keep points."""


class SteppedMethod(Method):
    """A method that moves in steps, each at a time of its clock."""

    num_steps: eqx.AbstractVar[int]

    @property
    def stepped(self) -> "SteppedMethod":
        return self

    @abc.abstractmethod
    def with_numbers(self, numbers: Mapping[str, Any]) -> "SteppedMethod":
        """The same method with some of its `numbers` replaced."""

    @abc.abstractmethod
    def with_steps(self, num_steps: int) -> "SteppedMethod":
        """The same method with another number of steps."""

    @abc.abstractmethod
    def step_times(self, dtype) -> Float[Array, " steps_and_start"]:
        """The time after each step, from 0 on."""

    @abc.abstractmethod
    def duration(self) -> Float[Array, ""]:
        """The time after the last step."""

    @abc.abstractmethod
    def steps_until(self, time: Float[Array, ""], most: int) -> Int[Array, ""]:
        """How many steps reach a time, at most `most`."""


def check_method(method: Any) -> None:
    """Raise `UsageError` unless `method` is a `Method`."""
    if not isinstance(method, Method):
        raise UsageError(
            f'method must be a flow or a descent, as fc.Flow() or fc.Descent("sgd", ...), got {method!r}: pass one.'
        )

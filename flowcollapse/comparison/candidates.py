"""The candidates of a comparison: the methods to compare with the flow, built from the user's arguments."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from .._errors import UsageError, nearest
from .._registry import numbers_of
from ..methods.base import Method
from ..methods.descent import Descent
from ..methods.flow import Flow
from ..methods.modified import HeavyBallFlow, ModifiedFlow
from ..methods.optimizers import factory_of, parse

FLOWS = {kind.name: kind for kind in (Flow, ModifiedFlow, HeavyBallFlow)}
"""The flows that have names."""

Axes = Mapping[str, Sequence[Any]]


class Candidate(NamedTuple):
    """A method to compare.

    `takes` names the numbers that the user left open, and `open` names those among them that axes set. `settled` says
    whether the user chose the number of steps.
    """

    name: str
    method: Method
    takes: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    settled: bool = True


def candidates_of(given: Any, axes: Axes, num_steps: int | None, flow: Candidate) -> list[Candidate]:
    """The flow, then the candidates. A candidate without a name from the user is named after its text.

    Raises:
        UsageError: for no candidate, a repeated name, or an entry that is neither a method nor an optimizer.
    """
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, Mapping) and not (isinstance(given, Sequence) and all(isinstance(x, str) for x in given)):
        raise UsageError(
            "optimizers must be a dictionary of names and optimizers, or a list of texts such as "
            f'"sgd:learning_rate=0.05", got {given!r}: pass one.'
        )
    pairs = list(given.items()) if isinstance(given, Mapping) else [(text, text) for text in given]
    if not pairs:
        raise UsageError('optimizers is empty: give at least one, such as "sgd:learning_rate=0.05".')
    names = [str(name) for name, _ in pairs]
    for name in (*names, flow.name):
        if [*names, flow.name].count(name) > 1:
            raise UsageError(
                f"{name!r} would be the name of two methods: give optimizers as a dictionary with names of your own."
            )
    return [flow, *(candidate(name, method, axes, num_steps) for name, (_, method) in zip(names, pairs, strict=True))]


def candidate(name: str, given: Any, axes: Axes, num_steps: int | None = None) -> Candidate:
    """The candidate made from a method, a ready optax optimizer, or a text with a name and some of its numbers.

    Axes may set the numbers that a text leaves out.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(given, Method):
        open_ = tuple(axis for axis in axes if axis in given.open)
        given.check_closed([number for number in given.open if number not in open_])
        return Candidate(name, given, given.open, open_)
    if isinstance(given, optax.GradientTransformation):
        return Candidate(name, Descent(given, num_steps or 1), settled=num_steps is not None)
    if not isinstance(given, str):
        raise UsageError(
            f'optimizer {name!r} must be an optax optimizer, a text such as "sgd:learning_rate=0.05", or a method such '
            f"as fc.Descent(...), got {given!r}: pass one."
        )
    kind, arguments = parse(given)
    takes = tuple(number for number in (_numbers_of(kind)) if number not in (*arguments, "t1"))
    # The axis `weight_decay` always means the decay of the model.
    open_ = tuple(axis for axis in axes if axis in takes and axis != "weight_decay")
    arguments = {axis: axes[axis][0] for axis in open_} | arguments
    if kind not in FLOWS:
        descent = Descent(kind, num_steps or 1, **arguments)
        descent.check_closed(descent.open)
        return Candidate(name, descent, takes, open_, settled=num_steps is not None)
    try:
        return Candidate(name, FLOWS[kind](**arguments), takes, open_)
    except TypeError as error:
        raise UsageError(f"{given!r}: {str(error).rpartition('() ')[2]}; give only numbers that it has.") from None


def _numbers_of(kind: str) -> tuple[str, ...]:
    """The names of the numbers of a flow or an optimizer."""
    if kind in FLOWS:
        return numbers_of(FLOWS[kind])
    parameters = inspect.signature(factory_of(kind)).parameters.values()
    return tuple(one.name for one in parameters if not isinstance(one.default, bool | int | str))


def check_axes(candidates: Iterable[Candidate], axes: Axes) -> None:
    """Make sure that each axis is a number that some candidate leaves open, and that its values are valid.

    Raises:
        UsageError: otherwise.
    """
    known = [name for one in candidates for name in one.takes]
    for axis, values in axes.items():
        reached = [one.method for one in candidates if axis in one.open]
        if axis != "weight_decay" and not reached:
            raise UsageError(
                f"axis {axis!r} is neither weight_decay nor a number that an optimizer given as a text leaves open, as "
                f'optimizers=["sgd"] leaves the learning_rate: leave one open{nearest(axis, known) or "."}'
            )
        for method in reached:
            for value in values:
                method.with_numbers({axis: value})

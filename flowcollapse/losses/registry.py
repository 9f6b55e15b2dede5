"""The losses by name."""

from collections.abc import Callable
from typing import Any

from .._checks import shown
from .._errors import UsageError
from .._registry import Registry, arguments_of
from .base import AbstractLoss
from .cross_entropy import CrossEntropy, smoothed
from .focal import Focal
from .squared import Squared

LOSSES: Registry[Callable[..., AbstractLoss]] = Registry(
    "loss",
    {Squared.name: Squared, CrossEntropy.name: CrossEntropy, "label-smoothing": smoothed, Focal.name: Focal},
    instead="pass a loss of your own, a subclass of fc.losses.AbstractLoss, or its text module:name",
    admits=lambda entry: isinstance(entry, type) and issubclass(entry, AbstractLoss),
)
"""The losses by name. To add your own loss, assign `LOSSES["name"] = MyLoss`, a class or a function that makes one."""


def loss_of(loss: Any) -> AbstractLoss:
    """The given loss, or the loss that a text stands for.

    Args:
        loss: a loss, or a text such as `"squared"`, with numbers `"name:number=value,number=value"` or, for the first
            number, `"name:value"`, as in `"focal:2"`. A loss of another module is `"module:name"`, with numbers
            `"module:name:number=value"`.

    Raises:
        UsageError: for anything else, and for numbers that the loss does not have or does not accept.
    """
    if isinstance(loss, AbstractLoss):
        return loss
    name, rest = LOSSES.name_with_rest(loss)
    kind = LOSSES[name]
    first, _, others = rest.partition(",")
    positional = [] if not first or "=" in first else [_number(loss, first)]
    named = arguments_of("loss", loss, others if positional else rest)
    try:
        made = kind(*positional, **named)
    except TypeError as error:
        fault = str(error).rpartition("() ")[2]
        raise UsageError(f"loss {loss!r}: {fault}; give the numbers that {name} has, as in {name}:0.1.") from None
    if not isinstance(made, AbstractLoss):
        raise UsageError(f"loss {loss!r} made {shown(made)}, which is no loss: return an fc.losses.AbstractLoss.")
    return made


def _number(loss: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"loss {loss!r}: {value!r} is not a number: write it as name:number=0.1.") from None

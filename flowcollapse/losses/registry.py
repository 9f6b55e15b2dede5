"""The losses by name."""

from typing import Any

from .._errors import UsageError
from .._registry import Registry, arguments_of
from .base import AbstractLoss
from .squared import Squared

LOSSES: Registry[type[AbstractLoss]] = Registry(
    "loss",
    {Squared.name: Squared},
    instead="pass a loss of your own, a subclass of fc.losses.AbstractLoss, or its text module:name",
    admits=lambda entry: isinstance(entry, type) and issubclass(entry, AbstractLoss),
)
"""The losses by name. To add your own loss, assign `LOSSES["name"] = MyLoss`."""


def loss_of(loss: Any) -> AbstractLoss:
    """The given loss, or the loss that a text stands for.

    Args:
        loss: a loss, or a text such as `"squared"`, with numbers `"name:number=value,number=value"` or `"name:value"`.
            A loss of another module is `"module:name"`, with numbers `"module:name:number=value"`.

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
        return kind(*positional, **named)
    except TypeError as error:
        fault = str(error).rpartition("() ")[2]
        raise UsageError(f"loss {loss!r}: {fault}; give the numbers that {kind.__name__} has.") from None


def _number(loss: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"loss {loss!r}: {value!r} is not a number: write it as name:number=0.1.") from None

"""The optimizers that have names: those of optax."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from .._errors import UsageError, nearest
from .._registry import arguments_of

ALSO_NEEDED = {"noisy_sgd": "key"}
"""Arguments that optax only warns about if they are missing. The user must choose the random key."""

RATES = {"learning_rate", "max_learning_rate"}
"""The names of the step size in optax. A function with one of them is an optimizer."""


@functools.cache
def named() -> Mapping[str, Callable[..., optax.GradientTransformation]]:
    """The optimizers by name: all functions of optax with a learning rate, except its `scale_by` transformations."""
    return {
        name: factory
        for name, factory in sorted(vars(optax).items())
        if inspect.isfunction(factory)
        and RATES.intersection(inspect.signature(factory).parameters)
        and not name.startswith(("_", "scale_by"))
    }


def factory_of(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function that makes the named optimizer.

    Raises:
        UsageError: for a name that optax does not have.
    """
    if name not in named():
        known = ", ".join(map(repr, named()))
        raise UsageError(
            f"optimizer {name!r} is not one of optax's that go by name: pass an optax optimizer, or choose one of "
            f"{known}{nearest(name, named()) or '.'}"
        )
    return named()[name]


def missing(factory: Callable, arguments: Iterable[str]) -> tuple[str, ...]:
    """The required numbers of a named optimizer that are not among the arguments, in order."""
    parameters = inspect.signature(factory).parameters.values()
    return tuple(one.name for one in parameters if one.default is inspect.Parameter.empty and one.name not in arguments)


def check_arguments(label: str, factory: Callable, arguments: Iterable[str]) -> None:
    """Check by its signature that a factory accepts the arguments and needs no others.

    Raises:
        UsageError: if an argument is unknown or missing.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a built-in function does not tell
        return
    kinds = {parameter.kind for parameter in parameters.values()}
    given = list(arguments)
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for name in given:
            if name not in parameters:
                end = nearest(name, parameters) or "."
                raise UsageError(f"optimizer {label} has no {name!r}: choose from {', '.join(parameters)}{end}")
    named_only = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and parameter.kind in named_only and name not in given:
            raise UsageError(f"optimizer {label} needs {name}, as in {name}=0.05: give it.")
    needed = ALSO_NEEDED.get(label)
    if needed is not None and needed not in given:
        raise UsageError(f"optimizer {label} draws random numbers and needs {needed}, as in {needed}=0: give it.")


def structural(factory: Callable) -> tuple[str, ...]:
    """The arguments that change the program and not only its numbers: sizes, counts and seeds."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return ()
    counted = (name for name, parameter in parameters.items() if type(parameter.default) is int)
    return (*counted, *SEEDS.intersection(parameters))


SEEDS = {"key", "seed"}
"""Integers that seed random numbers."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a text such as `"sgd:learning_rate=0.05,momentum=0.9,nesterov=true"`.

    Raises:
        UsageError: for another form.
    """
    name, _, rest = text.partition(":")
    return name.strip().lower(), dict(arguments_of("optimizer", text, rest))

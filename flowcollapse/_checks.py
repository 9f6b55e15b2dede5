"""Checks of values that several arguments share. What is traced has no value yet and is let through."""

from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ._errors import UsageError

Number = int | float | np.ndarray | np.generic | Array
"""One number, in any of the forms that users have it in."""


def is_traced(value: Any) -> bool:
    """Whether the value will be known only when the compiled program runs."""
    return isinstance(value, Tracer)


def check_positive(name: str, value: Any) -> None:
    """Raise `UsageError` unless `value` is None, traced, or holds positive and finite numbers."""
    if value is None or is_traced(value):
        return
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iuf" or not np.all((numbers > 0) & np.isfinite(numbers)):
        raise UsageError(f"{name} must be positive and finite, got {value!r}.")


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """Raise `UsageError` unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise UsageError(f"{name} must be {wanted}, got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Raise `UsageError` unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} must be True or False, got {shown(value)}.")


def shown(value: Any) -> str:
    """A value as an error shows it: on one line, and not longer than a reader wants."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}... ({type(value).__name__})"

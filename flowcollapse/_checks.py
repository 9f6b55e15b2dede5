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


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Any array-like as a NumPy array: from NumPy, JAX, torch, TensorFlow, CuPy, pandas, or nested lists.

    It goes by the methods of the object and imports no library: a tensor that records gradients is detached, one on
    another device is copied to the CPU, and floats that NumPy lacks (bfloat16, float8) become float32.

    Raises:
        UsageError: for what has no values yet, has masked entries, or cannot be converted.
    """
    if is_traced(value):
        raise UsageError(f"{name} is traced and has no values yet: call this outside jax.jit, jax.vmap and jax.grad.")
    if np.ma.is_masked(value):
        raise UsageError(f"{name} has masked entries: fill them, or remove those rows, first.")
    try:
        array = _as_numpy(value)
        own = array.dtype.kind == "V" and array.dtype.names is None  # the floats and integers that JAX adds to NumPy's
        return array.astype(np.float32) if own else array
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        dtype = f" of dtype {value.dtype}" if hasattr(value, "dtype") else ""
        raise UsageError(
            f"{name} is a {type(value).__name__}{dtype}, which cannot become a NumPy array ({reason}): "
            "pass a NumPy array of real numbers."
        ) from None


def _as_numpy(value: Any) -> np.ndarray:
    for method in ("detach", "cpu", "resolve_conj", "resolve_neg", "toarray"):
        if callable(getattr(value, method, None)):
            value = getattr(value, method)()
    if hasattr(value, "__cuda_array_interface__") and callable(getattr(value, "get", None)):
        value = value.get()
    try:
        return np.asarray(value)
    except Exception:
        if isinstance(value, list | tuple):
            return np.asarray([_as_numpy(part) for part in value])
        for method in ("float", "numpy"):
            if callable(getattr(value, method, None)):
                return np.asarray(getattr(value, method)())
        raise


def as_numbers(name: str, value: Any) -> np.ndarray:
    """Any array-like as a NumPy array of integers or floats; see `as_numpy`.

    Raises:
        UsageError: as there, and for anything but real numbers.
    """
    array = as_numpy(name, value)
    if array.dtype.kind == "O" and array.ndim > 0:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            wrong = next(x for x in array.ravel() if not isinstance(x, int | float | np.number))
            raise UsageError(f"{name} must be real numbers, got {wrong!r} among them.") from None
    if array.dtype.kind not in "iuf":
        raise UsageError(f"{name} must be real numbers, got an array of dtype {array.dtype} and shape {array.shape}.")
    return array

"""Checks that several arguments share. Traced values are not known yet and pass."""

import contextlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from ._errors import UsageError

Number = int | float | np.ndarray | np.generic | Array
"""One number, in any form that users may pass."""


def is_traced(value: Any) -> bool:
    """Whether the value will be known only when the compiled program runs."""
    return isinstance(value, Tracer)


def real_numbers(value: Any) -> np.ndarray | None:
    """The value as an array, or None if it does not consist of real numbers."""
    with contextlib.suppress(Exception):  # objects of other libraries raise their own errors when converted
        numbers = np.asarray(value)
        if jnp.issubdtype(numbers.dtype, jnp.integer) or jnp.issubdtype(numbers.dtype, jnp.floating):
            return numbers
    return None


def check_positive(name: str, value: Any, optional: bool = True) -> None:
    """Raise `UsageError` unless `value` is traced, or holds positive and finite numbers, or is None and `optional`."""
    if (value is None and optional) or is_traced(value):
        return
    numbers = real_numbers(value)
    if numbers is None or not np.all((numbers > 0) & np.isfinite(numbers)):
        raise UsageError(f"{name} must be positive and finite, got {shown(value)}: give a number above 0.")


def check_number(name: str, value: Any, least: float = 0.0) -> None:
    """Raise `UsageError` unless `value` is traced, or one finite number above `least`."""
    numbers = np.ones(np.shape(value)) * np.inf if is_traced(value) else real_numbers(value)
    known = not is_traced(value)
    if numbers is None or numbers.ndim != 0 or (known and not (least < numbers < np.inf)):
        wanted = "a positive number" if least == 0 else f"a number above {least:g}"
        raise UsageError(f"{name} must be {wanted}, got {shown(value)}: give one finite number above {least:g}.")


def check_integer(name: str, value: Any, least: int = 1) -> int:
    """The value as a Python integer. Raises `UsageError` unless it is an integer from `least` to below 2^31.

    XLA's counters end at 2^31.
    """
    wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{name} must be {wanted}, got {shown(value)}: give a whole number from {least} on.")
    if value >= 2**31:
        raise UsageError(f"{name} must be {wanted} below 2^31, got {shown(value)}: lower it.")
    return int(value)


def check_flag(name: str, value: Any) -> bool:
    """The value as a Python bool. Raises `UsageError` unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} must be True or False, got {shown(value)}: give one of the two.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `UsageError` unless `value` is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices))
        raise UsageError(f"{name} {shown(value)} is not known: choose one of {listed}.")


def check_key(key: Any) -> None:
    """Raise `UsageError` unless `key` is a single JAX random key, typed or raw."""
    array = isinstance(key, Array | np.ndarray)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = array and key.dtype == np.uint32 and key.ndim > 0
    if not typed and not raw:
        seed = key if isinstance(key, int | np.integer) and not isinstance(key, bool) else 0
        raise UsageError(f"key must be a random key, got {shown(key)}: use jax.random.key({seed}).")
    if (typed and key.shape != ()) or (raw and key.shape not in ((2,), (4,))):
        raise UsageError(f"key must be one random key, got keys of shape {key.shape}: map over them with jax.vmap.")


def checked_dtype(dtype: Any) -> np.dtype:
    """The requested floating type; by default the widest that is enabled in JAX."""
    if dtype is None:
        return jnp.result_type(float)
    try:
        checked = jnp.dtype(dtype)
    except Exception:
        raise UsageError(f"dtype {shown(dtype)} is not known: use jnp.float32 or jnp.float64.") from None
    if not jnp.issubdtype(checked, jnp.floating):
        raise UsageError(f"dtype must be a floating type, got {checked}: use jnp.float32 or jnp.float64.")
    if checked == np.float64 and not jax.config.read("jax_enable_x64"):
        raise UsageError("dtype is float64 but JAX runs in 32 bits: call fc.enable_x64() first, or use float32.")
    return checked


def shown(value: Any) -> str:
    """A value as error messages show it: on one line, and shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}... ({type(value).__name__})"


def as_array(name: str, value: Any) -> Array | np.ndarray:
    """Numbers in any array-like form as an array; lists get JAX's default precision. See `as_numbers`."""
    if isinstance(value, Array | np.ndarray):
        return value
    with contextlib.suppress(UsageError):
        array = as_numbers(name, value)
        return array if hasattr(value, "dtype") else jnp.asarray(array)
    raise UsageError(f"{name} must be an array, got {shown(value)}: pass numbers, a list or an array of them.")


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Any array-like as a NumPy array: from NumPy, JAX, torch, TensorFlow, CuPy, pandas, or nested lists.

    It calls methods of the object and imports no library. A tensor that records gradients is detached, a tensor on
    another device is copied to the CPU, and floats that NumPy lacks (bfloat16, float8) become float32.

    Raises:
        UsageError: for a traced value, masked entries, or a value that cannot be converted.
    """
    if is_traced(value):
        raise UsageError(f"{name} is traced and has no values yet: call this outside jax.jit, jax.vmap and jax.grad.")
    if np.ma.is_masked(value):
        raise UsageError(f"{name} has masked entries: fill them, or remove those rows, first.")
    try:
        array = _as_numpy(value)
        own = array.dtype.kind == "V" and array.dtype.names is None  # number types that JAX adds to NumPy
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
        UsageError: for the reasons `as_numpy` has, and for anything but real numbers.
    """
    array = as_numpy(name, value)
    if array.dtype.kind == "O" and array.ndim > 0:
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError):
            wrong = next(x for x in array.ravel() if not isinstance(x, int | float | np.number))
            raise UsageError(f"{name} must be real numbers, got {wrong!r} among them: convert or remove it.") from None
    if array.dtype.kind not in "iuf":
        raise UsageError(
            f"{name} must be real numbers, got an array of dtype {array.dtype} and shape {array.shape}: "
            "convert it to integers or floats."
        )
    return array

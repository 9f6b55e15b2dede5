"""Models and methods as plain values, complete enough that equal descriptions mean equal results.

A class or function is described by its qualified name if importing that name gives the same object. Anything without
such a name (a lambda, a closure, a definition in a script or notebook) may be something else in the next run, and so
may an object whose state is hidden from Python. A store refuses such values; a report calls them undescribed.
"""

import dataclasses
import enum
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .._checks import is_traced
from .._errors import UsageError

TRACED = "known only when the compiled program runs"

NAMELESS = "write it as a function or class of a module that can be imported, or leave out store="

UNDESCRIBED = "undescribed"
"""The first word of the description of a value that cannot be described."""

Unknown = Callable[[str, str, str], Any]
"""Maps a place such as `method.solver.root_finder`, a reason and a cure to a description, or raises."""


def _undescribed(place: str, fault: str, cure: str) -> str:
    return f"{UNDESCRIBED}: {fault}"


def refused(place: str, fault: str, cure: str) -> Any:
    """Raise `UsageError` for a value that a store cannot describe."""
    raise UsageError(f"{place} is {fault}, so a store could not tell whether it is the same the next time: {cure}.")


def options(module: eqx.Module, place: str = "", unknown: Unknown = _undescribed) -> dict[str, Any]:
    """The fields of a model or method as plain values that JSON can hold.

    Args:
        module: the model or method. Its numbers are described by value only, because a run casts them to one precision.
        place: its name in error messages. Without one, the messages use the names of its fields.
        unknown: called for a value that cannot be described; by default the value is reported as undescribed.

    Raises:
        UsageError: if `unknown` raises it.
    """
    static = {field.name for field in dataclasses.fields(module) if field.metadata.get("static", False)}
    return {
        name: described(value if name in static else _values(value), _join(place, name), unknown)
        for name, value in vars(module).items()
    }


def described(value: Any, place: str, unknown: Unknown = _undescribed) -> Any:
    """A value in plain terms: numbers exactly, arrays with their precision, objects with their class and all fields."""
    if isinstance(value, enum.Enum):
        return {"class": qualified(type(value)), "name": value.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}  # JSON has neither NaN nor infinity
    if isinstance(value, complex | bytes | np.dtype):
        return {"class": type(value).__name__, "value": str(value)}
    if isinstance(value, eqx.Module) and callable(getattr(value, "described", None)):
        if any(is_traced(leaf) for leaf in jax.tree.leaves(value)):
            return unknown(place, TRACED, "call this outside jax.jit")
        return value.described()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, optax.GradientTransformation):
        cure = 'name it, as in fc.Descent("sgd", num_steps=1000, learning_rate=0.05), or leave out store='
        return unknown(place, "a ready optimizer, made of functions that do not tell their numbers", cure)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value, place, unknown)
    if isinstance(value, Mapping):
        return {str(key): described(item, _join(place, str(key)), unknown) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((described(item, place, unknown) for item in value), key=repr)
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        named = len(value) == 2 and isinstance(value[0], str)  # a pair of a name and a value
        places = [place, _join(place, value[0])] if named else [f"{place}[{i}]" for i in range(len(value))]
        return [described(item, at, unknown) for item, at in zip(value, places, strict=True)]
    if isinstance(value, Mesh):
        return {"class": "jax.Mesh", "axes": dict(value.shape), "devices": [str(d) for d in value.devices.flat]}
    if isinstance(value, type) or inspect.isroutine(value) or hasattr(value, "__wrapped__"):
        return _function(value, place, unknown)
    return _object(value, place, unknown)


def qualified(thing: Any) -> str | None:
    """The shortest name under which a class or function can be imported, or None."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module is None or name is None or module == "__main__" or "<" in name:
        return None
    package = module.partition(".")[0]
    homes = [home for home in (package, module) if _found(sys.modules.get(home), name) is thing]
    return f"{homes[0]}.{name}" if homes else None


def _found(module: types.ModuleType | None, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return None


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _values(numbers: Any) -> Any:
    """Numbers, in any kind of array, as Python numbers."""
    return jax.tree.map(lambda x: np.asarray(x).tolist() if hasattr(x, "dtype") else x, numbers)


def _array(value: Any, place: str, unknown: Unknown) -> Any:
    if is_traced(value):
        return unknown(place, TRACED, "call this outside jax.jit")
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    values = np.asarray(value)
    if values.dtype == object:
        return unknown(place, "an array of objects", "use an array of numbers")
    if values.dtype.kind not in "biuf":
        values, kind = values.astype(str), str(values.dtype)
    else:
        kind = str(values.dtype)
    return {"dtype": kind, "values": described(values.tolist(), place, unknown)}


def _function(value: Any, place: str, unknown: Unknown) -> Any:
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        return {"method": value.__name__, "of": described(owner, place, unknown)}
    name = qualified(value)
    if name is None:
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return unknown(place, f"{name!r}, which no module holds under this name", NAMELESS)
    return {"type" if isinstance(value, type) else "function": name}


def _object(value: Any, place: str, unknown: Unknown) -> Any:
    """An object, described by its class and everything it holds."""
    kind = type(value)
    if isinstance(value, functools.partial):
        parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
    elif isinstance(value, tuple) and (fields := getattr(value, "_fields", ())):
        parts = dict(zip(fields, value, strict=True))
    elif kind.__new__ is object.__new__ and hasattr(value, "__dict__") and not _slots(kind):
        parts = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    else:
        return unknown(place, f"a {kind.__qualname__}, whose state is not all in its fields", NAMELESS)
    name = qualified(kind)
    if name is None:
        return unknown(place, f"a {kind.__qualname__}, whose class no module holds under this name", NAMELESS)
    return {"class": name} | {key: described(item, _join(place, key), unknown) for key, item in parts.items()}


def _slots(kind: type) -> bool:
    return any(vars(base).get("__slots__") for base in kind.__mro__)

"""The public names of the package, for calls and results, found by walking from `fc.__all__`."""

import types
from collections.abc import Iterator
from typing import Any

import wrong_kinds

import flowcollapse as fc


def listed(module: types.ModuleType) -> list[str]:
    """The public names of a module: its `__all__`, or the names that a package re-exports in its `__init__`."""
    return getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])


def walk(module: types.ModuleType, path: str = "") -> Iterator[tuple[str, Any]]:
    """`(name, value)` for each public function and class of a module and of its public modules.

    Those of the package itself are listed there; below them, a module is public if it says what is, by `__all__`.
    """
    for name in listed(module):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            if module is fc or hasattr(value, "__all__"):
                yield from walk(value, f"{path}{name}.")
        elif callable(value) and value.__module__.startswith("flowcollapse."):
            yield f"{path}{name}", value


def public() -> dict[str, Any]:
    """Every public function and class once, by its shortest name, and every other function with an example."""
    found: dict[int, tuple[str, Any]] = {}
    for name, value in sorted([*walk(fc), *wrong_kinds.public_functions().items()], key=lambda pair: len(pair[0])):
        found.setdefault(id(value), (name, value))
    return dict(sorted(found.values()))

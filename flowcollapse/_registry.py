"""Entries by name: one kind of look-up for losses, metrics, starts, solvers and flows."""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ._checks import is_traced, shown
from ._errors import UsageError, nearest

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name. To add an entry, assign `REGISTRY["name"] = entry`.

    Args:
        kind: the word for an entry in messages, such as `"loss"`.
        entries: the entries by name.
        instead: an alternative that messages offer besides the names, such as `"pass a diffrax solver"`.
        admits: whether an object of another module can be an entry; by default every function and class can.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, T], instead: str = "", admits: Callable[[Any], bool] = callable
    ):
        super().__init__(entries)
        self.kind, self.instead, self.admits = kind, instead, admits

    def name(self, text: Any) -> str:
        """The registered name for a text. Case is ignored, and `-` and `_` are the same.

        The text `module:name` is an entry of another module, which is imported and registered as `name`.

        Raises:
            UsageError: for anything else.
        """
        if not isinstance(text, str):
            raise UsageError(f"{self.kind} must be a name, got {shown(text)}: {self._cure()}.")
        known = self._known(text)
        if known is not None:
            return known
        module, colon, name = text.partition(":")
        if not colon or not name.isidentifier():
            raise UsageError(f"{self.kind} {text!r} is not known: {self._cure()}{nearest(text, self) or '.'}")
        entry = _imported(self.kind, module, name)
        if not self.admits(entry):
            raise UsageError(f"{self.kind} {text!r} is {shown(entry)}, which is no {self.kind}: {self._cure()}.")
        if self.get(name, entry) is not entry:
            raise UsageError(f"{self.kind} {name!r} is already another one: give that of {module} a different name.")
        self[name] = entry
        return name

    def find(self, text: Any) -> T:
        """The entry for a text, see `name`."""
        return self[self.name(text)]

    def make(self, text: Any) -> Any:
        """Call the entry for a text without arguments, and return its result."""
        entry: Any = self.find(text)
        try:
            return entry()
        except TypeError as error:
            raise UsageError(
                f"{self.kind} {text!r} cannot be made without arguments, {error}: write a function without any."
            ) from None

    def name_with_rest(self, text: Any) -> tuple[str, str]:
        """The registered name for the start of `text`, up to a colon, and the rest of the text after this colon."""
        first, _, rest = text.partition(":") if isinstance(text, str) else (text, "", "")
        if not rest or self._known(first) is not None:
            return self.name(first), rest
        name, _, behind = rest.partition(":")
        return self.name(f"{first}:{name}"), behind

    def _known(self, text: str) -> str | None:
        if text in self:
            return text
        folded = {_folded(name): name for name in self}
        return folded.get(_folded(text))

    def _cure(self) -> str:
        instead = f", or {self.instead}" if self.instead else ""
        return f"choose one of {', '.join(map(repr, sorted(self)))}{instead}"


def arguments_of(kind: str, text: str, rest: str) -> dict[str, bool | int | float]:
    """The arguments `name=value,name=value` at the end of a text. Values are numbers, true or false.

    Raises:
        UsageError: for any other form, or an argument that is given twice.
    """
    arguments: dict[str, bool | int | float] = {}
    for part in filter(None, map(str.strip, rest.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key in arguments:
            fault = "is given twice" if equals else "is not of the form name=value"
            raise UsageError(f"{kind} {text!r}: {part!r} {fault}; write {kind}:name=0.05,other=0.9.")
        arguments[key] = _value(kind, text, key, value)
    return arguments


def _value(kind: str, text: str, key: str, value: str) -> bool | int | float:
    words = {"true": True, "false": False}
    if value.lower() in words:
        return words[value.lower()]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    raise UsageError(f"{kind} {text!r}: {key} must be a number, true or false, got {value!r}: write one of these.")


def fields_of(module: Any) -> dict[str, Any]:
    """The fields of a module, by name."""
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}


def numbers_of(module: Any) -> tuple[str, ...]:
    """The names of the fields of a module, or of a class of modules, that are not static."""
    return tuple(field.name for field in dataclasses.fields(module) if not field.metadata.get("static", False))


def described_by(name: str, fields: Mapping[str, Any], without: Iterable[str] = ()) -> str:
    """A name and the values of some fields as one text: `"name:field=value,field=value"`."""
    left = set(without)
    values = {key: _plain(value) for key, value in fields.items()}
    return ":".join([name, *filter(None, [",".join(f"{key}={values[key]}" for key in values if key not in left)])])


def _plain(value: Any) -> Any:
    if is_traced(value):
        return "..."
    return value.tolist() if hasattr(value, "tolist") else value


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _imported(kind: str, module: str, name: str) -> Any:
    """The object `name` of a module, which may be in the current folder."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{kind} {module}:{name} cannot be imported, {error}: name a module that Python finds."
        ) from None
    except AttributeError:
        raise UsageError(f"{kind} {module}:{name} does not exist: use a name that the module has.") from None
    finally:
        if added:
            sys.path.remove(here)

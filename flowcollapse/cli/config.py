"""Configuration files: the flags of any command in TOML, in sections or without."""

import tomllib
from pathlib import Path
from typing import Any

from .._errors import UsageError, nearest
from .words import Flag, Kind, Values, add

AXES = "axes"
"""The section whose keys are names of axes."""


def read_config(path: Path, flags: dict[str, Flag]) -> Values:
    """The values that a file gives to the flags of a command.

    Args:
        path: the file: TOML in UTF-8, with or without a byte order mark.
        flags: the flags of the command. A key may be in the section of its flag or outside all sections.

    Raises:
        UsageError: if the file cannot be read, or if it holds a key that is not a flag, an invalid value, or a key
            twice with different values.
    """
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; give a file that can be read.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, as TOML wants.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}; write it as lines of name = value.") from None
    values: Values = {}
    sections = {flag.section for flag in flags.values() if flag.section}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == AXES and isinstance(value, dict) and "axis" in flags:
            for axis, listed in value.items():
                listed = listed if isinstance(listed, list) else [listed]
                add(values, flags["axis"], [f"{axis}={','.join(_colons(path, axis, one) for one in listed)}"])
        elif name in sections and isinstance(value, dict):
            there = {known: flag for known, flag in flags.items() if flag.section == name}
            for inner, one in value.items():
                _add(path, values, there, inner, one, [], f" of [{name}]")
        else:
            _add(path, values, flags, key, value, [*sections, *([AXES] if "axis" in flags else [])], "")
    return values


def _add(
    path: Path, values: Values, flags: dict[str, Flag], key: str, value: Any, sections: list[str], where: str
) -> None:
    """Add one key of a file."""
    name = key.replace("-", "_")
    if name not in flags or name == "config":
        known = [*(known for known in flags if known != "config"), *sections]
        cure = nearest(name, known) or f"; choose from {', '.join(known)}."
        raise UsageError(f"{path}: {key!r} is not a key{where}{cure}")
    flag = flags[name]
    if value == {} and flag.kind is Kind.PAIRS:
        return
    try:
        add(values, flag, _words(flag, value))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _words(flag: Flag, value: Any) -> list[str]:
    """A TOML value as the words of its flag."""
    if flag.kind is Kind.PAIRS and isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    listed = value if isinstance(value, list) else [value]
    wanted = {Kind.SWITCH: "true or false", Kind.ONE: "one value", Kind.PAIRS: "a table, as {b1 = 0.9}"}
    takes_bool = flag.kind is Kind.SWITCH or "True" in flag.choices
    single = flag.kind in wanted
    if (
        (single and isinstance(value, list))
        or any(isinstance(one, dict | list) for one in listed)
        or (isinstance(value, bool) and not takes_bool)
        or (flag.kind is Kind.SWITCH and not isinstance(value, bool))
    ):
        form = wanted.get(flag.kind, "a list of values")
        raise UsageError(f"{flag.name} must be {form}, got {value!r}: write it in this form.")
    words = [str(one) for one in listed]
    return [words[0] + ","] if flag.kind is Kind.SEEDS and isinstance(value, list) and len(words) == 1 else words


def _colons(path: Path, axis: str, value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if any(isinstance(part, bool | dict | list) for part in parts):
        raise UsageError(f"{path}: axis {axis!r} must be a list of numbers, got {value!r}: write it as [0.1, 0.2].")
    return ":".join(map(str, parts))

"""Parses the words of a command line into flags and values, so that repeated flags are not lost.

A flag may appear several times, with `-` or `_`, and with `=` or a space before its value. Lists take commas and
spaces. The `Kind` of a flag says how its mentions combine. The result is written out again as words that mention each
flag once.
"""

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._errors import UsageError, nearest
from .._files import local_path


class Kind(enum.Enum):
    """How several mentions of a flag combine. A field names its kind in `Annotated`; otherwise its type decides."""

    SWITCH = "switch"
    """On or off; giving both is an error."""
    ONE = "one value"
    """Two different values are an error."""
    LIST = "list"
    """Values are merged."""
    ROW = "row"
    """Values whose order matters, such as one count for each class: two different rows are an error."""
    SEEDS = "seeds"
    """Ranges and lists are merged; a count cannot be combined with anything."""
    TEXTS = "texts"
    """Texts are collected in order; numbers that follow a name belong to its text."""
    AXES = "axes"
    """`name=value,value`: the values of each name are merged."""
    PAIRS = "pairs"
    """`name value` or `name=value`: two different values of a name are an error."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag: the field it sets, its section in a configuration file, and how its values combine."""

    name: str
    section: str
    kind: Kind
    choices: tuple[str, ...] = ()
    number: type | None = None
    """int or float, if its values are numbers."""
    is_path: bool = False
    positional: bool = False

    @property
    def word(self) -> str:
        return self.name if self.positional else "--" + self.name.replace("_", "-")


LARGEST = 2**63 - 1

Values = dict[str, list[str]]
"""The values of the given flags, by the names of their fields."""


def flags_of(command: type) -> dict[str, Flag]:
    """The flags of a command and of its groups, by the names of their fields."""
    found: dict[str, Flag] = {}
    for field in dataclasses.fields(command):
        if dataclasses.is_dataclass(field.type):
            own = typing.get_type_hints(field.type, include_extras=True)
            found |= {name: _flag(name, hint, field.name) for name, hint in own.items()}
        else:
            hint = typing.get_type_hints(command, include_extras=True)[field.name]
            found[field.name] = _flag(field.name, hint, "")
    return found


def _flag(name: str, hint: Any, section: str) -> Flag:
    marks: tuple[Any, ...] = ()
    if hasattr(hint, "__metadata__"):
        hint, marks = hint.__origin__, hint.__metadata__
    types_ = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    origins = {typing.get_origin(one) for one in types_}
    marked = [mark for mark in marks if isinstance(mark, Kind)]
    by_type = (
        Kind.SWITCH if hint is bool else Kind.LIST if tuple in origins else Kind.PAIRS if dict in origins else Kind.ONE
    )
    choices = typing.get_args(hint) if typing.Literal in origins else ()
    if hint == (bool | None):
        choices = ("True", "False", "None")
    inner = [*types_, *(part for one in types_ for part in typing.get_args(one))]
    positional = any("POSITIONAL" in repr(mark).upper() for mark in marks)
    return Flag(
        name,
        section,
        *(marked or [by_type]),
        choices=choices,
        number=next((kind for kind in (int, float) if kind in inner), None),
        is_path=Path in inner,
        positional=positional,
    )


def read(args: Sequence[str], flags: dict[str, Flag]) -> tuple[Values, list[str]]:
    """The values that the words of a command give to its flags, and the remaining words.

    Raises:
        UsageError: for a flag given twice with different values, or with a value of the wrong kind.
    """
    values: Values = {}
    others: list[str] = []
    places = [flag for flag in flags.values() if flag.positional]
    left = list(args)
    while left:
        word = left.pop(0)
        if not is_flag(word):
            free = next((flag for flag in places if flag.kind is Kind.TEXTS or flag.name not in values), None)
            if free is None:
                others.append(word)
            else:
                add(values, free, [word])
            continue
        name, equals, text = word.partition("=")
        flag = flags.get(name[2:].replace("-", "_"))
        off = flags.get(name[5:].replace("-", "_")) if name.startswith(("--no-", "--no_")) else None
        if flag is None and off is not None and off.kind is Kind.SWITCH and not equals:
            add(values, off, ["False"])
        elif flag is None or flag.positional or not name.startswith("--"):
            others += [word, *_until_flag(left)]
        elif flag.kind is Kind.SWITCH:
            add(values, flag, [text if equals else "True"])
        elif flag.kind in (Kind.ONE, Kind.TEXTS, Kind.AXES) and not equals and (not left or is_flag(left[0])):
            raise UsageError(f"{flag.word} has no value: give it one, or leave it out.")
        elif flag.kind is Kind.ONE:
            add(values, flag, [text if equals else left.pop(0)])
        else:
            add(values, flag, [*([text] if equals else []), *_until_flag(left)])
    return values, others


def is_flag(word: str) -> bool:
    """Whether a word is a flag. Negative numbers are not flags."""
    return word.startswith("--") or bool(re.match(r"-[^\d.]", word) and not re.match(r"-(inf|nan)\b", word, re.I))


def _until_flag(left: list[str]) -> list[str]:
    """Take the words up to the next flag."""
    taken = []
    while left and not is_flag(left[0]):
        taken.append(left.pop(0))
    return taken


def add(values: Values, flag: Flag, words: Sequence[str]) -> None:
    """Combine one mention of a flag with the earlier ones.

    Raises:
        UsageError: if they contradict each other.
    """
    new, old = cleaned(flag, words), values.get(flag.name)
    for value in new:
        check_value(flag, value)
    if flag.kind is Kind.ROW and not new:
        raise UsageError(f"{flag.word} has no value: give it at least one, or leave it out.")
    if flag.kind is Kind.PAIRS:
        new = _agreeing(flag, [*(old or []), *new])
    elif flag.kind is Kind.AXES:
        new = _united_axes([*(old or []), *new])
    elif old is not None and flag.kind is Kind.TEXTS:
        new = [*old, *new]
    elif old is not None and flag.kind is Kind.LIST:
        new = [*old, *(value for value in new if not any(same(value, earlier) for earlier in old))]
    elif old is not None and flag.kind is Kind.SEEDS and not any(is_count(seeds) for seeds in (old, new)):
        new = list(dict.fromkeys([*old, *new]))
    elif old is not None and (len(old) != len(new) or not all(map(same, old, new))):
        raise UsageError(f"{flag.word} is given twice, as {' '.join(old)} and as {' '.join(new)}: give it once.")
    values[flag.name] = new


def check_value(flag: Flag, value: str) -> None:
    """Raise `UsageError` unless a value is a number or one of the choices, if the flag takes those."""
    if flag.choices and value not in flag.choices and flag.kind is not Kind.SWITCH:
        listed = ", ".join(flag.choices)
        raise UsageError(
            f"{flag.word} is {value!r}, which is none of its values: choose one of {listed}"
            f"{nearest(value, flag.choices) or '.'}"
        )
    if flag.number is None or flag.kind is Kind.SWITCH or value == "None":
        return
    text = value.partition("=")[2] if flag.kind is Kind.PAIRS else value
    try:
        number = flag.number(text)
    except ValueError:
        wanted = "a whole number" if flag.number is int else "a number"
        raise UsageError(f"{flag.word} is {value!r}, which is not {wanted}: give {wanted}.") from None
    if isinstance(number, int) and abs(number) > LARGEST:
        raise UsageError(f"{flag.word} is {value}, but the largest whole number is 2^63 - 1: make it smaller.")


def check_known(name: str, others: Sequence[str], flags: dict[str, Flag]) -> None:
    """Raise `UsageError` for words of a command that are no flags, values or files of it."""
    if not others:
        return
    word = others[0].partition("=")[0]
    if not is_flag(word):
        raise UsageError(f"{name} has no use for {word!r}: write a flag before a value, as in --config FILE.")
    known = [flag.word[2:] for flag in flags.values() if not flag.positional]
    cure = nearest(word.lstrip("-"), known) or f": run flowcollapse {name} --help to see them."
    raise UsageError(f"{word} is not a flag of {name}{cure}")


def cleaned(flag: Flag, words: Sequence[str]) -> list[str]:
    """The values in the words of one mention."""
    if flag.kind in (Kind.LIST, Kind.ROW):
        return split(words)
    if flag.kind is Kind.SEEDS:
        seeds = split(words)
        # A single seed followed by a comma is a list, not a count.
        return [f"{seeds[0]}:{int(seeds[0]) + 1}"] if is_count(seeds) and "," in words[0] else seeds
    if flag.kind is Kind.AXES:
        return _axes(words)
    if flag.kind is Kind.PAIRS:
        return _pairs(flag, words)
    if flag.kind is Kind.SWITCH:
        switch = {"true": "True", "false": "False"}.get(words[0].lower())
        if switch is None:
            raise UsageError(f"{flag.word} is a switch, got {words[0]!r}: write {flag.word} or --no-{flag.word[2:]}.")
        return [switch]
    if flag.kind is Kind.TEXTS and not flag.is_path:
        return named_texts(words)
    if flag.is_path:
        return [str(local_path(word, flag.name)) for word in words]
    return [_choice(flag, word) for word in words]


def split(words: Iterable[str]) -> list[str]:
    """The parts between commas and spaces."""
    return [part for word in words for part in re.split(r"[,\s]+", word) if part]


def named_texts(words: Iterable[str]) -> list[str]:
    """The texts `name:number=value,number=value` between commas and spaces. A part `number=value` goes to the text
    before it."""
    texts: list[str] = []
    for word in words:
        for i, part in enumerate(split([word])):
            if i and "=" in part and ":" not in part:
                texts[-1] += f",{part}"
            else:
                texts.append(part)
    return texts


def is_count(seeds: Sequence[str]) -> bool:
    """Whether seeds are a single number, which is a count."""
    return len(seeds) == 1 and re.fullmatch(r"\d[\d_]*", seeds[0]) is not None


def same(one: str, other: str) -> bool:
    """Whether two words are equal, as numbers or as text."""
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def _choice(flag: Flag, word: str) -> str:
    """The choice that a word names, in any case."""
    spelt = {choice.lower(): choice for choice in flag.choices}
    return spelt.get(word.lower().replace("_", "-"), word)


def _axes(words: Sequence[str]) -> list[str]:
    """`name=value,value` for each name; parts without a name are further values of the name before them."""
    found: list[str] = []
    for part in split(words):
        name, equals, value = part.partition("=")
        if equals or not found:
            found.append(f"{name.replace('-', '_')}={value}" if equals else part)
        else:
            found[-1] += "," * (not found[-1].endswith("=")) + part
    return found


def _united_axes(axes: Sequence[str]) -> list[str]:
    """One text per name, with the values of all its mentions."""
    found: dict[str, list[str]] = {}
    for axis in axes:
        name, equals, text = axis.partition("=")
        earlier, new = found.get(name, []), split([text]) if equals else []
        found[name] = earlier + [value for value in new if not any(same(value, old) for old in earlier)]
        if not equals:  # `Lanes.axes` refuses it later
            return list(axes)
    return [f"{name}={','.join(values)}" for name, values in found.items()]


def _pairs(flag: Flag, words: Sequence[str]) -> list[str]:
    parts = [part for word in split(words) for part in word.split("=")]
    if len(parts) % 2 or not parts:
        raise UsageError(f"{flag.word} takes pairs, got {' '.join(words)}: write a name and a number for each.")
    return [f"{name.replace('-', '_')}={value}" for name, value in zip(parts[::2], parts[1::2], strict=True)]


def _agreeing(flag: Flag, pairs: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not same(found.setdefault(name, value), value):
            raise UsageError(f"{flag.word} gives {name} twice, as {found[name]} and as {value}: give it once.")
    return [f"{name}={value}" for name, value in found.items()]


def replaced(base: Values, new: Values, flags: dict[str, Flag]) -> Values:
    """The values of one source, overridden by those of another; axes and pairs are overridden name by name."""
    found = base | new
    for name in base.keys() & new.keys():
        if flags[name].kind in (Kind.AXES, Kind.PAIRS):
            by_name = {pair.partition("=")[0]: pair for pair in (*base[name], *new[name])}
            found[name] = list(by_name.values())
    return found


def written(values: Values, flags: dict[str, Flag]) -> list[str]:
    """The values as words that mention each flag once, with positional words first."""
    first: list[str] = []
    words: list[str] = []
    for name, given in values.items():
        flag = flags[name]
        if flag.positional:
            first += given
        elif flag.kind is Kind.SWITCH:
            words.append(flag.word if given == ["True"] else f"--no-{flag.word[2:]}")
        elif flag.kind is Kind.ONE:
            words.append(f"{flag.word}={given[0]}")
        elif flag.kind in (Kind.TEXTS, Kind.AXES):
            words += [word for text in given for word in (flag.word, text)]
        elif flag.kind is Kind.PAIRS:
            words += [flag.word, *(part for pair in given for part in pair.split("="))]
        else:
            words += [flag.word, *given]
    return [*first, *words]

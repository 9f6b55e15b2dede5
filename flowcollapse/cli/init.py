"""The command that writes a configuration file for another command."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .._errors import UsageError
from .console import Console
from .options import Command
from .words import Kind, flags_of

UNWRITTEN = ("config", "quiet")
"""Flags that belong on the command line."""


@dataclasses.dataclass(frozen=True)
class Init(Command):
    """Write a TOML file with every flag of a command, its help and its default, each commented out.

    Example:
        flowcollapse init simulate.toml
        flowcollapse simulate --config simulate.toml --eps 0.01
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """The file to write: it must not exist yet."""
    command: Literal[
        "auto", "simulate", "sweep", "compare", "reproduce", "measure", "plot", "animate", "report", "show", "verify"
    ] = "auto"
    """The command that will read it. auto: the one that the file is named after, as in simulate.toml, or else sweep."""

    def run(self, console: Console) -> None:
        from .._files import check_writable, replacing

        if self.file is None:
            raise UsageError("the name of the file is missing: give one, as in flowcollapse init sweep.toml.")
        if self.file.suffix.lower() != ".toml":
            raise UsageError(f"{self.file} does not end in .toml: give the file this ending.")
        if self.file.exists():
            raise UsageError(f"{self.file} exists already: give another name, or remove it.")
        check_writable(self.file)
        command = self.command
        if command == "auto":
            named = typing.get_args(typing.get_type_hints(Init)["command"])[1:]
            command = self.file.stem if self.file.stem in named else "sweep"
        with replacing(self.file) as part:
            part.write_text(written(command), encoding="utf-8")
        console.say(f"Wrote {self.file}: flowcollapse {command} --config {self.file}")


def written(name: str) -> str:
    """The configuration file of a command, with every line commented out. A command is the class in the file of its
    name."""
    command = getattr(importlib.import_module(f"{__package__}.{name}"), name.capitalize())
    head = f"""
        # flowcollapse {name} --config FILE.toml
        #
        # Every flag of the command with its default. Remove the "#" before "name = value" to change one; flags on the
        # command line override the file.
    """
    lines = [textwrap.dedent(head).strip(), ""]
    flags, defaults = flags_of(command), command()
    for section in dict.fromkeys(["", *(flag.section for flag in flags.values())]):
        group = getattr(defaults, section) if section else defaults
        lines += [f"[{section}]"] if section else []
        for field, text in _described(type(group)):
            if field.name in UNWRITTEN or dataclasses.is_dataclass(field.type):
                continue
            value = getattr(group, field.name)
            if flags[field.name].kind is Kind.SEEDS and len(value) == 1:
                (value,) = value  # a list of one seed would be that seed, and not a count
            lines += [f"# {line}" for line in textwrap.wrap(text, 110)]
            lines += [f"#{field.name} = {_toml(value)}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _described(group: type) -> Iterator[tuple[dataclasses.Field, str]]:
    """The fields of a group of flags, with the texts below them."""
    texts: dict[str, str] = {}
    for base in reversed(group.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, after in itertools.pairwise(body.body):
            match line, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    for field in dataclasses.fields(group):
        yield field, texts.get(field.name, "")


def _toml(value: Any) -> str:
    """A value in TOML; nothing for a default that is chosen later."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int | float) else json.dumps(str(value))

"""The reference of the command line, from the dataclasses that define the commands."""

import dataclasses
import inspect
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flowcollapse.cli import commands
from flowcollapse.cli.init import _described as described, _toml as written
from flowcollapse.cli.words import flags_of


class Commands(SphinxDirective):
    """A section for each command: its help, and its flags by group with their defaults."""

    def run(self) -> list[nodes.Node]:
        return [self.section(name, command) for name, command in commands().items()]

    def section(self, name: str, command: type) -> nodes.section:
        section = nodes.section(ids=[f"flowcollapse-{name}"], names=[f"flowcollapse {name}"])
        section += nodes.title("", "", nodes.literal(text=f"flowcollapse {name}"))
        section += self.parse_text_to_nodes(marked(inspect.cleandoc(command.__doc__ or "")))
        section += self.parse_text_to_nodes("\n".join(lines_of(command)))
        self.state.document.note_explicit_target(section, section)
        return section


def lines_of(command: type) -> list[str]:
    """The flags of a command as lists in Markdown, one list for each group."""
    flags, lines = flags_of(command), []
    groups = {field.name: field.type for field in dataclasses.fields(command) if dataclasses.is_dataclass(field.type)}
    for title, group in {"": command, **groups}.items():
        lines += ["", f"**{title.capitalize()}.** {inspect.cleandoc(group.__doc__ or '')}", ""] if title else [""]
        for field, text in described(group):
            if not dataclasses.is_dataclass(field.type):
                flag = flags[field.name]
                word = field.name.upper() if flag.positional else flag.word
                lines.append(f"- `{word}`: {marked(text)} {default_of(field)}".rstrip())
    return lines


def marked(text: str) -> str:
    """A help text with the flags in it marked as code, so that their hyphens stay."""
    return re.sub(r"(?<!\S)--[a-z][\w-]*", r"`\g<0>`", text)


def default_of(field: dataclasses.Field) -> str:
    """The default of a flag, unless its text has said it or there is none."""
    value = field.default
    empty = value is dataclasses.MISSING or value is None or value in ((), "")
    return "" if empty else f"(default `{written(value)}`)"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

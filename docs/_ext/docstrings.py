"""The docstrings of the package, which are written to be read as text, as Sphinx wants them.

- Code stands between single backticks.
- A `Source:` is one paragraph that begins on the line of its heading.
- An indented block under a paragraph is a formula or a program, whose lines stay as they are.
- A Markdown table stays as it is.
"""

import importlib
import inspect
import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HEADINGS = re.compile(r"(Args|Returns|Raises|Source|Example|Yields|Attributes):$")


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """The lines up to each blank line; an empty list for each blank line."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        else:
            yield from (block, []) if block else ([],)
            block = []
    if block:
        yield block


def converted(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText with Google's sections."""
    done: list[str] = []
    in_section = False
    for block in paragraphs(lines):
        if not block:
            done.append("")
            continue
        first = block[0]
        indented = first.startswith(" ")
        in_section = in_section if indented else bool(HEADINGS.match(first))
        if (indented and not in_section) or first.startswith("|"):
            done += ["::", "", *(f"    {line}" for line in block)]
        elif first.startswith("Source: "):
            text = " ".join(line.strip() for line in block).removeprefix("Source: ")
            done.append(f":Source: {inline(text)}")
        elif ">>>" in first or (in_section and ">>>" in "".join(block[:2])):
            done += block
        else:
            done += inline("\n".join(block)).split("\n")
    return done


def inline(text: str) -> str:
    """Single backticks doubled, and signs between them that would mean something elsewhere escaped."""
    parts = re.split(r"(``[^`]+``|(?<!:)`[^`]+`)", text)
    return "".join(
        f"``{part.strip('`')}``" if i % 2 else re.sub(r"(?<!\\)([|*]|(?<=\w)_(?!\w))", r"\\\1", part)
        for i, part in enumerate(parts)
    )


CELL = re.compile(r"(?:`[^`]*`|[^`|])+")


class ModuleText(SphinxDirective):
    """The docstring of a module as Markdown, in which `|` may stand between backticks in a table."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = inspect.cleandoc(importlib.import_module(self.arguments[0]).__doc__ or "").splitlines()
        rows = {line: escaped(line) for line in lines if line.startswith("| ")}
        return self.parse_text_to_nodes("\n".join(rows.get(line, line) for line in lines))


def escaped(row: str) -> str:
    """A row of a table with each `|` inside a cell escaped."""
    return "|".join(["", *(cell.replace("|", r"\|") for cell in CELL.findall(row)), ""])


def convert(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    lines[:] = converted(lines)
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]  # a comment: napoleon takes the words before a colon in the first line for a type


def skip(app: Sphinx, what: str, name: str, value: object, skipped: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, which the docstrings of their classes tell."""
    return True if (getattr(value, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", convert, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", skip)
    app.add_directive("module-text", ModuleText)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The docstring of every public name has all its parts, so readers find them in the same place everywhere."""

import dataclasses
import doctest
import inspect
import operator
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import public_names
import pytest

import flowcollapse as fc

PUBLIC = public_names.public()

USERS_MAKE = {
    "Descent",
    "Flow",
    "HeavyBallFlow",
    "ModifiedFlow",
    "State",
    "UFM",
    "initial.Start",
    "metrics.Accumulator",
}
"""Classes that users construct, besides the losses. The package makes all others; they document their fields."""

NO_SOURCE = {
    "flowcollapse._errors": "errors and warnings",
    "flowcollapse.compilation_cache": "files of the compiler",
    "flowcollapse.plot": "a picture of a Dataset; those that draw a law name its source",
    "flowcollapse.settings": "precision and devices of JAX",
    "flowcollapse.sweeps": "the bookkeeping of many runs",
}
"""Modules whose functions compute no quantity of the model, and the reason why they name no source."""

ARRAYS = {"H", "W", "X", "b", "features", "labels", "mu", "steps", "ts"}
"""Arguments that may be arrays, whatever their annotation is."""


def parts_of(docstring: str) -> dict[str, str]:
    """The text under each heading, with the summary under "". A source is one paragraph."""
    parts, heading = {"": ""}, ""
    for line in inspect.cleandoc(docstring).splitlines():
        found = re.match(r"(Args|Returns|Raises|Source|Example):", line)
        if found:
            heading = found[1]
            parts[heading] = line.removeprefix(found[0]).strip() + "\n"
        elif not line and heading in ("", "Source"):
            heading = "text"
        elif line and not line.startswith(" ") and heading in ("Args", "Returns", "Raises", "Example"):
            heading = "text"
            parts[heading] = parts.get(heading, "") + line + "\n"
        else:
            parts[heading] = parts.get(heading, "") + line + "\n"
    return parts


def entries_of(text: str) -> dict[str, str]:
    """The text of each argument in a list of arguments; several arguments may share an entry."""
    entries = {}
    for match in re.finditer(r"^    (\S[^:\n]*): (.*(?:\n {8}.*|\n(?= {8}))*)", text, re.MULTILINE):
        entries |= {name.strip(" *"): match[2] for name in match[1].split(",")}
    return entries


def faults_of(value: Any, sourced: bool = True, read_only: bool = False) -> list[str]:
    """The missing parts of a docstring. A `read_only` class documents its fields and not its arguments."""
    text = inspect.getdoc(value) or ""
    parts = parts_of(text)
    faults = []
    summary = " ".join(parts[""].split())
    if not re.fullmatch(r"\S.*[^.]\.", summary) or re.search(r"[a-z0-9)`]\. [A-Z`]", summary):
        faults.append(f"the summary is not one sentence: {summary!r}")
    if ">>> " not in parts.get("Example", ""):
        faults.append("there is no example")
    if read_only:
        return faults + [f"field {name} is not told" for name in fields_of(value) if f"`{name}`" not in text]
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
    entries = entries_of(parts.get("Args", ""))
    for parameter in parameters:
        array = parameter.name in ARRAYS or "jaxtyping" in str(parameter.annotation)
        if parameter.name not in entries:
            faults.append(f"argument {parameter.name} is not told")
        elif array and parameter.name != "key" and "shape" not in entries[parameter.name]:
            faults.append(f"argument {parameter.name} has no shape")
    faults += [f"{name} is no argument" for name in entries.keys() - {p.name for p in parameters}]
    if parameters and "UsageError: " not in parts.get("Raises", ""):
        faults.append("what it raises is not told")
    if sourced and not parts.get("Source", "").strip():
        faults.append("there is no source")
    return faults


def fields_of(value: type) -> list[str]:
    """The fields of a result; errors have none."""
    fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    return fields or list(getattr(value, "_fields", ()))


def has_source(value: Any) -> bool:
    """Whether the docstring must name an equation or a paper."""
    return not any(f"{value.__module__}.".startswith(f"{module}.") for module in NO_SOURCE)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_docstring_has_all_its_parts(name):
    value = PUBLIC[name]
    given = name in USERS_MAKE or name.startswith("losses.")
    assert faults_of(value, has_source(value), isinstance(value, type) and not given) == []


def test_every_example_is_run():
    """Doctest would skip the examples of functions that a decorator has turned into other objects."""
    modules = {value.__module__ for value in PUBLIC.values()}
    finder = doctest.DocTestFinder()
    run = {test.name for name in modules for test in finder.find(sys.modules[name]) if test.examples}
    assert {f"{PUBLIC[name].__module__}.{PUBLIC[name].__name__}" for name in PUBLIC} <= run


def test_the_lists_name_what_there_is():
    assert PUBLIC.keys() >= USERS_MAKE
    assert all(any(value.__module__.startswith(module) for value in PUBLIC.values()) for module in NO_SOURCE)


WHOLE = """The square of a matrix.

    Args:
        A: the matrix, shape (n, n).
        power, **options: passed on.

    Raises:
        UsageError: if the matrix is not square.

    Source: Cayley 1858.

    Example:
        >>> 2 * 2
        4
    """


def square(A: jaxtyping.Float[jaxtyping.Array, "n n"], power: int, **options: int) -> None: ...


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", []),
        (
            "matrix.\n\n    Args",
            "matrix. It is fast.\n\n    Args",
            ["the summary is not one sentence: 'The square of a"],
        ),
        ("a matrix.", "a matrix", ["the summary is not one sentence: 'The square of a matrix'"]),
        ("A: the", "B: the", ["argument A is not told", "B is no argument"]),
        (", **options", "", ["argument options is not told"]),
        (", shape (n, n)", "", ["argument A has no shape"]),
        ("Raises:", "Refuses:", ["what it raises is not told"]),
        ("Source: Cayley 1858.", "", ["there is no source"]),
        (">>> 2 * 2", "2 * 2", ["there is no example"]),
    ],
)
def test_a_part_that_is_missing_is_found(old, new, fault):
    """The check itself works: it finds every part that is removed from a complete docstring."""
    square.__doc__ = WHOLE.replace(old, new, 1)
    found = faults_of(square)
    assert len(found) == len(fault)
    assert all(one.startswith(wanted) for one, wanted in zip(found, fault, strict=True))


def test_fields_are_told():
    class Pair(NamedTuple):
        """Two numbers, `first` and another."""

        first: float
        second: float

    assert faults_of(Pair, read_only=True) == ["there is no example", "field second is not told"]


ROOT = Path(__file__).parents[1]
PROSE = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
    *(ROOT / "flowcollapse").rglob("*.py"),
]


MADE = {"dist/", "mine.py"}
"""Paths that the pages mention and readers create."""


def test_prose_names_files_that_are_there():
    """Paths start at the root of the project, the package, or the folder of the file that mentions them; a bare file
    name may be anywhere in the package, the tests or the benchmarks."""
    everywhere = {
        path.name for folder in ("flowcollapse", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    for file in PROSE:
        named = set(re.findall(r"`(?:python )?([\w/]+(?:\.py\b|/(?=`)))", file.read_text())) - MADE - everywhere
        folders = (ROOT, ROOT / "flowcollapse", file.parent)
        assert {name for name in named if not any((folder / name).exists() for folder in folders)} == set(), file


def test_prose_names_functions_that_are_there():
    for file in PROSE:
        for name in set(re.findall(r"\bfc\.([A-Za-z_][\w.]*\w)", file.read_text())):
            assert operator.attrgetter(name)(fc) is not None, file

"""Every error message in the source says what to do; `wrong_kinds.py` checks the same for raised errors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cures import has_cure

PACKAGE = Path(__file__).parents[1] / "flowcollapse"

REASONS = {"balanced", "bias", "no_decay", "equal_decay", "EQUAL_COUNTS"}
"""The arguments of `requirements.require` that end messages, and a constant with such a text."""

HOLE = "{}"
CURED = " {cure}"
"""Placeholders in a message for an inserted value, and for a cure that depends on the value."""


def text_of(node: ast.expr) -> str:
    """The text of a message as far as the source contains it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(text_of, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case _:
            return CURED if re.search("cure", ast.unparse(node), re.IGNORECASE) or is_reason(node) else HOLE


def is_reason(node: ast.expr) -> bool:
    """Whether a value is one of the texts passed to `require` for its messages, which end in a cure."""
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return isinstance(value, ast.Name) and value.id in REASONS


def messages(tree: ast.AST, repeated: str = "") -> Iterator[tuple[int, str]]:
    """`(line, text)` of each new `UsageError`. An error that repeats a caught `UsageError`, named `repeated`, also
    repeats its cure."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = isinstance(node.type, ast.Name) and node.type.id == "UsageError"
            yield from messages(node, node.name or "" if caught else repeated)
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UsageError":
            names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            yield node.lineno, text_of(node.args[0]) + CURED * (repeated in names)
        yield from messages(node, repeated)


def cures(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """`(line, text)` of each text that is assigned to a name with `cure` in it, returned by a function with such a
    name, or passed to `require`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and re.search("cure|EQUAL_COUNTS", ast.unparse(node.targets[0]), re.IGNORECASE):
            values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
        elif isinstance(node, ast.FunctionDef) and "cure" in node.name.lower():
            values = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
            values = [word.value for word in node.keywords if word.arg in REASONS]
        else:
            continue
        for value in values:
            yield from ((node.lineno, text) for text in map(text_of, branches(value)) if text)


def branches(value: ast.expr) -> list[ast.expr]:
    """The possible values of an expression with `if` or `or`. `nearest` is left out: its question is a cure."""
    match value:
        case ast.IfExp(body=body, orelse=orelse):
            return branches(body) + branches(orelse)
        case ast.BoolOp(values=parts):
            return [one for part in parts for one in branches(part)]
        case ast.Call(func=ast.Name(id="nearest")):
            return []
    return [value]


def faults(found: Iterator[tuple[int, str]], start: str = "") -> list[str]:
    return [f"line {line}: {text}" for line, text in found if CURED not in text and not has_cure(start + text)]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_refusal_says_what_to_do(file):
    tree = ast.parse(file.read_text())
    assert faults(messages(tree)) == []
    assert faults(cures(tree), ": ") == []


def test_there_are_refusals():
    found = [one for file in PACKAGE.rglob("*.py") for one in messages(ast.parse(file.read_text()))]
    assert len(found) > 200


@pytest.mark.parametrize(
    ("program", "cured"),
    [
        ('raise UsageError(f"eps is {eps}: give a positive number.")', True),
        ('raise UsageError(f"eps is {eps}, which is too small. " + "Use a larger one.")', True),
        ('raise UsageError(f"eps must be positive, got {eps}.")', False),
        ('raise UsageError(f"eps must be given: it is used.")', False),
        ('raise UsageError("eps is 2: use of float32 forbids it.")', False),
        ('raise UsageError("eps is 2: start is too large.")', False),
        ('raise UsageError(f"eps is {eps}: {cure}.")', True),
        ('raise UsageError(f"eps is {eps}: {reason}.")', False),
        ("raise UsageError(message)", False),
        ('try: f()\nexcept UsageError as error:\n    raise UsageError(f"{path}: {error}")', True),
        ('try: f()\nexcept OSError as error:\n    raise UsageError(f"{path}: {error}")', False),
    ],
)
def test_the_law_can_fail(program, cured):
    assert (faults(messages(ast.parse(program))) == []) == cured


@pytest.mark.parametrize(
    ("program", "cured"),
    [
        ('cure = "give numbers"', True),
        ('CURE = "give numbers" if x else f"pass {x}"', True),
        ('cure = "give numbers" if x else f"it is {x}"', False),
        ('CURES = {"many": "many lanes: map over them"}', True),
        ('CURES = {"many": "many lanes", "none": "none: add one"}', False),
        ('require(model, bias="the bound is the bias\'s: use a model with one", modes=3)', True),
        ('require(model, bias="the bound is the bias\'s own", modes=3)', False),
        ('def _cure(x):\n    return f": leave {x} out"', True),
        ('def _cure(x):\n    return "numbers"', False),
    ],
)
def test_a_cure_that_depends_on_the_value_is_an_order(program, cured):
    assert (faults(cures(ast.parse(program)), ": ") == []) == cured

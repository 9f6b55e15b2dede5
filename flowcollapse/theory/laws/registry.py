"""The list of laws, and the decorator that adds a function to it."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .lab import Lab

Comparisons = Iterable[tuple[Any, Any]]
"""Pairs `(measured, tolerance)` of single numbers: how far the model is from a law, and how far it may be."""


class Law(NamedTuple):
    """A law: its name, its statement, its source, and the function that measures it."""

    name: str
    statement: str
    source: str
    compare: Callable[[Lab], Comparisons]


LAWS: dict[str, Law] = {}

PAPER = "Mixon, Parshall and Pi, arXiv 2011.11619"
"""The source of laws that the paper states."""
ON_THE_PAPER = "derived here from the paper's flow"
DERIVED = "derived here"


def law(name: str, statement: str, source: str) -> Callable[[Callable[[Lab], Comparisons]], Callable]:
    """Register a function as a law. The function takes a `Lab` and yields pairs `(measured, tolerance)`."""

    def register(compare: Callable[[Lab], Comparisons]) -> Callable:
        assert name not in LAWS, name
        LAWS[name] = Law(name, statement, source, compare)
        return compare

    return register

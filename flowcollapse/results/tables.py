"""Tables as text."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..endings.verdict import Verdict
from .labels import MISSING

if TYPE_CHECKING:
    import xarray as xr


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows as lines of text, with each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def label(one: "xr.Dataset", axis: str) -> str:
    """The single value of an axis in a Dataset: a word, a number, or several numbers joined by colons."""
    if axis in one.coords:
        value = one[axis].item()
        return value if isinstance(value, str) else f"{value:g}"
    parts = one[f"{axis}_values"].values
    return ":".join(f"{part:g}" for part in parts[~np.isnan(parts)])


def verdicts(codes: np.ndarray) -> str:
    """How many lanes ended with each verdict."""
    counts = sorted(Counter(codes.ravel().tolist()).items())
    return ", ".join(f"{count} {'missing' if code == MISSING else Verdict(code).name}" for code, count in counts)

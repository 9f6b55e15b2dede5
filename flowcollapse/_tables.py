"""What short tables for people share: aligned columns, and the names of an axis's values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows as lines, their columns as wide as the widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def label(one: "xr.Dataset", axis: str) -> str:
    """The one value that a Dataset has of an axis: a word, a number, or several numbers with colons."""
    if axis in one.coords:
        value = one[axis].item()
        return value if isinstance(value, str) else f"{value:g}"
    parts = one[f"{axis}_values"].values
    return ":".join(f"{part:g}" for part in parts[~np.isnan(parts)])

"""Results as HTML for notebooks: tables, and curves small enough to stand in one."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 120, 24
"""The size of a small curve, in pixels."""

CURVES = 12
"""The most curves of lanes that are drawn over each other."""


def table(title: str, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of text as an HTML table. Whatever the text holds is shown as text.

    Args:
        title: the text above the table.
        rows: the cells; those made by `spark` are drawn.
        head: the names of the columns.
    """
    body = [[cell if isinstance(cell, Drawn) else html.escape(cell) for cell in row] for row in rows]
    parts = ["<thead>", _row("th", [html.escape(name) for name in head]), "</thead>"] if head else []
    parts += ["<tbody>", *(_row("td", row) for row in body), "</tbody>"]
    return f"<div><strong>{html.escape(title)}</strong><table>{''.join(parts)}</table></div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    filled = [f'<{tag} style="text-align: left">{cell}</{tag}>' for cell in cells]
    return f"<tr>{''.join(filled)}</tr>"


class Drawn(str):
    """A text that is HTML already."""


def spark(times: Any, values: Any) -> Drawn:
    """A small curve of a metric, or of a few lanes, as a drawing; logarithmic if all values are positive.

    Args:
        times: shape (time,) or (lanes, time).
        values: the same.
    """
    x = np.atleast_2d(np.asarray(times, float)).reshape(-1, np.shape(times)[-1])
    y = np.atleast_2d(np.asarray(values, float)).reshape(-1, np.shape(values)[-1])
    x, y = np.broadcast_to(x, y.shape)[:CURVES], y[:CURVES]
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return Drawn("")
    if (y[there] > 0).all():
        y = np.where(there, np.log10(np.where(there, y, 1.0)), np.nan)
    across, up = (_scaled(part, there, size) for part, size in ((x, WIDTH), (-y, HEIGHT)))
    lines = []
    for u, v, ok in zip(across, up, there, strict=True):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(u[ok], v[ok], strict=True))
        lines += [f'<polyline points="{points}"/>'] if points else []
    size = f'width="{WIDTH + 4}" height="{HEIGHT + 4}"'
    return Drawn(f'<svg {size} fill="none" stroke="currentColor" stroke-width="1">' + "".join(lines) + "</svg>")


def _scaled(part: np.ndarray, there: np.ndarray, size: int) -> np.ndarray:
    """Numbers mapped to 2 ... size + 2, the smallest first; all in the middle if they are equal."""
    low, high = part[there].min(), part[there].max()
    return 2 + size * ((part - low) / (high - low) if high > low else np.full_like(part, 0.5))

"""The tables of a page: what was run, how the runs ended, the slowest runs and those that failed, the configuration."""

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..endings.verdict import Verdict
from ..plot.sweeps import MISSING, codes_of
from .data import axes_of, groups_of, long_name, on_axes, over_of, texts_of

SLOWEST, MOST_FAILED, MOST_ROWS = 20, 100, 200

LONGEST = 1000
"""The most characters of an attribute: a sweep lists all of its seeds."""

FAILED = (Verdict.non_finite, Verdict.step_limit, Verdict.saddle)
"""The verdicts that a reader should look at, the worst first."""

COST = {"steps_evaluations": "evaluations of the field", "steps_taken": "steps", "steps": "steps"}
"""The variables that say how much work a run was, the best first, in words."""


class Row(NamedTuple):
    """The cells of a row, and the lane that a click on it chooses: its place on each axis, joined by commas."""

    cells: Sequence[str]
    lane: str | None = None


def table(head: Sequence[str], rows: Iterable[Row]) -> str:
    """Rows of text as an HTML table. Whatever the text holds is shown as text."""
    parts = ["<div class=scroll><table>"]
    if head:
        parts.append(f"<thead><tr>{''.join(f'<th>{html.escape(one)}</th>' for one in head)}</tr></thead>")
    parts.append("<tbody>")
    for row in rows:
        attributes = "" if row.lane is None else f' data-lane="{html.escape(row.lane)}" tabindex=0'
        cells = "".join(f"<td{' class=text' * (len(one) > 40)}>{html.escape(one)}</td>" for one in row.cells)
        parts.append(f"<tr{attributes}>{cells}</tr>")
    return "".join([*parts, "</tbody></table></div>"])


def section(title: str, body: str, *, long: bool = False) -> str:
    """A section with a title; one that is long may be split between two sheets."""
    return f"<section{' class=long' * long}><h2>{html.escape(title)}</h2>{body}</section>"


def note(text: str) -> str:
    return f"<p class=note>{html.escape(text)}</p>"


def ends(dataset: xr.Dataset, metrics: Sequence[str]) -> str:
    """The last value of each metric, for results with one curve a metric."""
    last = ((name, dataset[name].values.reshape(-1)[-1], long_name(dataset, name)) for name in metrics)
    rows = [Row((name, f"{value:.6g}", words)) for name, value, words in last]
    return section("At the end", table(("metric", "value", "meaning"), rows), long=True)


def verdicts(dataset: xr.Dataset) -> str:
    """How many runs ended with each verdict, for every combination of the axes."""
    codes, names = codes_of(dataset)
    axes = axes_of(dataset)
    found = [code for code in names if (codes.values == code).any()]
    sizes = [dataset.sizes[axis] for axis in axes]
    texts = {axis: texts_of(dataset, axis) for axis in axes}
    rows = [
        Row((*(texts[axis][i] for axis, i in where.items()), *_counts(codes.isel(where).values, found)))
        for _, where in zip(range(MOST_ROWS), groups_of(dataset, axes), strict=False)
    ]
    if len(rows) > 1:
        rows.append(Row(("all", *[""] * (len(axes) - 1), *_counts(codes.values, found))))
    body = table((*axes, *(names[code].replace("_", " ") for code in found)), rows)
    if math.prod(sizes) > MOST_ROWS:
        body += note(f"The first {MOST_ROWS} of {math.prod(sizes)} combinations; the last row counts all runs.")
    return section("Verdicts", body + "".join(note(_meaning(names[code])) for code in found), long=True)


def _counts(codes: np.ndarray, found: Sequence[int]) -> list[str]:
    return [str(int(np.sum(codes == code))) for code in found]


def _meaning(name: str) -> str:
    if name == MISSING:
        return f"{MISSING}: not run yet"
    return Verdict[name].message if name in Verdict.__members__ else f"{name}: a verdict of another version"


def slowest(dataset: xr.Dataset, metrics: Sequence[str]) -> str:
    """The runs that took the most work."""
    cost = next((name for name in COST if name in dataset), None)
    if cost is None or dataset[cost].ndim == 0:
        return ""
    axes = axes_of(dataset)
    work = on_axes(dataset, cost, axes).transpose(*axes, "seed").values.astype(float)
    done = int(np.sum(np.isfinite(work) & (work >= 0)))
    order = np.argsort(-np.nan_to_num(work, nan=-1.0), axis=None, kind="stable")[: min(SLOWEST, done)]
    words = f"The {len(order)} of {done} finished runs with the most {COST[cost]}."
    return section("Slowest runs", note(words) + _lanes(dataset, order, metrics), long=True)


def failed(dataset: xr.Dataset, metrics: Sequence[str]) -> str:
    """The runs that failed or stopped before their end."""
    codes = dataset["verdict"].values
    order = np.concatenate([np.flatnonzero(codes == int(verdict)) for verdict in FAILED])
    if not len(order):
        return section("Failed runs", note("None: no run failed, ran out of steps or stopped at a saddle."))
    more = f", the first {MOST_FAILED} in this table" if len(order) > MOST_FAILED else ""
    words = f"{len(order)} runs failed, ran out of steps or stopped at a saddle{more}."
    return section("Failed runs", note(words) + _lanes(dataset, order[:MOST_FAILED], metrics), long=True)


def _lanes(dataset: xr.Dataset, flat: np.ndarray, metrics: Sequence[str]) -> str:
    """A table of runs, given by their place in the flattened array of verdicts."""
    axes = [str(axis) for axis in dataset["verdict"].dims]  # the seed is the last
    places = np.unravel_index(flat, dataset["verdict"].shape)
    counts = [str(name) for name in dataset.data_vars if str(name).startswith("steps")]
    names = [name for name in (*counts, "t_end", *metrics[:3]) if name in dataset]
    _, meanings = codes_of(dataset)
    picked = {axis: xr.DataArray(place, dims="row") for axis, place in zip(axes, places, strict=True)}
    columns = []
    for name in names:
        values = dataset[name].isel({axis: place for axis, place in picked.items() if axis in dataset[name].dims})
        columns.append((values.isel({over_of(dataset): -1}) if values.ndim > 1 else values).values)
    codes = dataset["verdict"].isel(picked).values
    texts = {axis: texts_of(dataset, axis) for axis in axes}
    rows = []
    for i in range(len(flat)):
        where = [int(place[i]) for place in places]
        values = (f"{column[i]:.4g}" for column in columns)
        cells = (*(texts[axis][j] for axis, j in zip(axes, where, strict=True)), meanings[int(codes[i])], *values)
        rows.append(Row(cells, _lane(axes, where)))
    return table((*axes, "verdict", *names), rows)


def _lane(axes: Sequence[str], where: Sequence[int]) -> str:
    """The place of a lane as the page knows it: the axes without the seed, then the seed."""
    at = dict(zip(axes, where, strict=True))
    seed = [at.pop("seed")] if "seed" in at else []
    return ",".join(map(str, [*at.values(), *seed]))


def configuration(dataset: xr.Dataset) -> str:
    """All attributes of the Dataset, those that are JSON with one row for each part, without the ends of long ones."""
    pairs = (pair for key, value in dataset.attrs.items() for pair in _pairs(str(key), value))
    rows = [Row((key, text if len(text) <= LONGEST else f"{text[:LONGEST]} ...")) for key, text in pairs]
    return section("Configuration and versions", table((), rows), long=True)


def _pairs(key: str, value: Any) -> list[tuple[str, str]]:
    try:
        parts = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return [(key, value)]
    if not isinstance(parts, dict):
        return [(key, str(value))]
    return [(f"{key}: {name}", part if isinstance(part, str) else json.dumps(part)) for name, part in parts.items()]

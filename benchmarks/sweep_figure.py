"""The figure of `sweep.py`: one panel per measured part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fresh_process import Row

LABELS = {
    "flowcollapse": "fc.sweep",
    "vmap_diffeqsolve": "jit(vmap(diffeqsolve)), Tsit5",
    "torchode_tsit5": "torchode, Tsit5",
    "scipy_dop853": "scipy DOP853",
    "scipy_lsoda": "scipy LSODA",
    "c_tsit5": "Tsit5 in C",
}
COLOURS = dict(zip(LABELS, ("black", "tab:blue", "tab:orange", "tab:green", "tab:brown", "tab:red"), strict=True))
DASHES = {0: "--", 41: "-"}
"""Dashed lines are runs that keep only the end."""


def draw(parts: dict[str, Row], path: Path) -> None:
    """Draw the panels of the measured parts, from left to right."""
    shown = [(name, [row for row in part["rows"] if "wall_s" in row]) for name, part in parts.items()]
    shown = [(name, rows) for name, rows in shown if rows and name in PANELS]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    size = (5 * columns, 4.2 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, rows) in zip(axes.flat, shown, strict=False):
        PANELS[name](axis, rows)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def throughput(axis: Any, rows: list[Row]) -> None:
    one_core = [row for row in rows if row["cores"] == 1]
    for method, label in LABELS.items():
        for saves, dash in DASHES.items():
            chosen = [row for row in one_core if (row["method"], row["saves"]) == (method, saves)]
            wide = 2.2 if method == "flowcollapse" else 1.2
            axis.plot(
                [row["lanes"] for row in chosen],
                [row["per_core_s"] for row in chosen],
                dash,
                color=COLOURS[method],
                linewidth=wide,
                marker="o",
                markersize=3,
                label=label if chosen and saves else None,
            )
    axis.set(xscale="log", yscale="log", xlabel="lanes (dashed: nothing saved)", ylabel="trajectories per CPU second")


def width(axis: Any, rows: list[Row]) -> None:
    for size in dict.fromkeys((row["C"], row["N"], row["p"], row["size"]) for row in rows):
        chosen = [row for row in rows if row["size"] == size[3]]
        label = "C, N, p = {}, {}, {}: {} numbers".format(*size)
        axis.plot([row["width"] for row in chosen], [row["step_us"] for row in chosen], marker="o", label=label)
        taken = [row for row in chosen if row["width"] == row["chosen"]]
        axis.plot([row["width"] for row in taken], [row["step_us"] for row in taken], "k*", markersize=11)
    axis.set_xscale("log", base=2)
    axis.set(yscale="log", xlabel="lanes of a block (star: engine's choice)", ylabel="microseconds per lane and step")
    axis.set_ylim(top=20 * axis.get_ylim()[1])  # room for the legend


def devices(axis: Any, rows: list[Row]) -> None:
    counts = sorted({row["devices"] for row in rows})
    for saves in sorted({row["saves"] for row in rows}):
        wall = [min(row["wall_s"] for row in rows if (row["saves"], row["devices"]) == (saves, n)) for n in counts]
        axis.plot(counts, [wall[0] / seconds for seconds in wall], DASHES[saves], marker="o", label=f"{saves} saves")
    axis.plot(counts, counts, color="0.7", label="ideal")
    axis.set(xlabel="CPU devices", ylabel="times as fast as one", xticks=counts)


def storing(axis: Any, rows: list[Row]) -> None:
    labels = [f"{row['kept']}, {row['lanes']} lanes, {row['cores']} core{'s' * (row['cores'] > 1)}" for row in rows]
    _bars(axis, labels, [1e3 * row["wall_s"] / row["lanes"] for row in rows], "milliseconds per lane")


def start(axis: Any, rows: list[Row]) -> None:
    _bars(axis, [row["what"] for row in rows], [row["wall_s"] for row in rows], "seconds of a fresh process")


def _bars(axis: Any, labels: list[str], lengths: list[float], what: str) -> None:
    axis.bar_label(axis.barh(labels, lengths, color="0.7"), fmt="%.3g", fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.invert_yaxis()
    axis.set_xlabel(what)


PANELS: dict[str, Callable[[Any, list[Row]], None]] = {
    panel.__name__: panel for panel in (throughput, width, devices, storing, start)
}

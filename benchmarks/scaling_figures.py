"""The figures of `scaling.py`: cost against the samples per class, and error against time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from fresh_process import Row

LABELS = {
    "ours": "exponential DOP853, class means (ours)",
    "exponential": "exponential DOP853 (ours)",
    "tsit5_class_mean": "Tsit5, class means",
    "tsit5_full": "Tsit5 (diffrax), full state",
    "scipy_dop853": "DOP853 (scipy), full state",
    "kencarp5": "KenCarp5",
    "kvaerno5": "Kvaerno5",
    "tsit5": "Tsit5",
    "dopri8": "Dopri8",
    "DOP853": "DOP853 (scipy)",
    "Radau": "Radau (scipy)",
    "LSODA": "LSODA (scipy)",
}
COLOURS = {
    "ours": "black",
    "exponential": "black",
    "tsit5_class_mean": "tab:blue",
    "tsit5_full": "tab:orange",
    "scipy_dop853": "tab:green",
    "kencarp5": "tab:pink",
    "kvaerno5": "tab:purple",
    "tsit5": "tab:blue",
    "dopri8": "tab:cyan",
    "DOP853": "tab:green",
    "Radau": "tab:olive",
    "LSODA": "tab:brown",
}
WIDE = ("ours", "exponential")


def against_samples(rows: list[Row], path: Path) -> None:
    """Time, evaluations and memory against N, with one line per method and tolerance."""
    panels = (
        ("wall_s", "seconds"),
        ("evaluations", "evaluations of the field"),
        ("net_mb", "peak memory above the imports, MB"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.6), layout="constrained")
    rtols = sorted({row["rtol"] for row in rows}, reverse=True)
    for axis, (key, label) in zip(axes, panels, strict=True):
        for method in _methods(rows):
            for rtol, dash in zip(rtols, ("-", "--", ":"), strict=False):
                chosen = [r for r in rows if r["method"] == method and r["rtol"] == rtol and key in r]
                _line(axis, method, [r["N"] for r in chosen], [r[key] for r in chosen], dash, f", rtol {rtol:g}")
        axis.set(xscale="log", yscale="log", xlabel="samples per class", ylabel=label)
    _legend(figure, axes[:1])
    sizes = rows[0]
    figure.suptitle(f"C = {sizes['C']}, p = {sizes['p']}: start to plateau, float64")
    _save(figure, path)


def error_against_time(rows: list[Row], path: Path) -> None:
    """One column per size, with the error of the state above and of SNC3 below. Grey: the reference's uncertainty."""
    sizes = list(dict.fromkeys((row["C"], row["N"], row["p"]) for row in rows))
    kinds = (("state_error", "relative error of the state"), ("snc3_error", "relative error of SNC3"))
    figure, axes = plt.subplots(
        len(kinds), len(sizes), figsize=(4.5 * len(sizes), 7.5), squeeze=False, layout="constrained"
    )
    for column, size in enumerate(sizes):
        of_size = [row for row in rows if (row["C"], row["N"], row["p"]) == size]
        for (key, label), axis in zip(kinds, axes[:, column], strict=True):
            for method in _methods(of_size):
                chosen = [
                    r
                    for r in of_size
                    if r["method"] == method and r.get(key) and r.get("verdict", "plateau") == "plateau"
                ]
                _line(axis, method, [r[key] for r in chosen], [r["wall_s"] for r in chosen], "-", "")
            gap = next((r[f"reference_{key}"] for r in of_size if f"reference_{key}" in r), None)
            if gap:
                axis.axvspan(axis.get_xlim()[0], gap, color="0.9", zorder=0)
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
            axis.grid(alpha=0.3)
        missing = [LABELS[row["method"]] for row in of_size if "skipped" in row and "rtol" not in row]
        remark = f"\nnot run, or stuck: {', '.join(missing)}" if missing else ""
        axes[0, column].set_title("C = {}, N = {}, p = {}".format(*size) + remark, fontsize=8, wrap=True)
    _legend(figure, axes[0])
    _save(figure, path)


def _methods(rows: Iterable[Row]) -> list[str]:
    return [name for name in dict.fromkeys(row["method"] for row in rows) if name in LABELS]


def _line(axis: Any, method: str, x: list[float], y: list[float], dash: str, suffix: str) -> None:
    if x:
        width = 2.5 if method in WIDE else 1.2
        label = LABELS[method] + suffix
        axis.plot(x, y, dash, color=COLOURS[method], linewidth=width, marker="o", markersize=3, label=label)


def _legend(figure: Any, axes: Iterable[Any]) -> None:
    """One legend for the whole figure, below it."""
    lines = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=8)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)

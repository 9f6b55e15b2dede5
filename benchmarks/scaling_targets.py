"""Conclusions from the rows of `scaling.py`, one per line, with the target and whether it is met."""

import math

import numpy as np
from fresh_process import Row


def target(name: str, value: float, limit: float) -> Row:
    return {"target": name, "value": value, "limit": limit, "met": bool(value <= limit)}


def about_samples(rows: list[Row]) -> list[Row]:
    """Whether the cost of ours is independent of N. On a shared machine, times are noisy and evaluations are not."""
    found = []
    for rtol in sorted({row["rtol"] for row in rows}, reverse=True):
        ours = [row for row in rows if row["method"] == "ours" and row["rtol"] == rtol and "wall_s" in row]
        if not ours:
            continue
        where = f"ours at rtol {rtol:g}, N = {ours[0]['N']} to {ours[-1]['N']}"
        limit = 1.3 if rtol == 1e-8 else float("inf")
        for key, name in (("evaluations", "evaluations"), ("wall_s", "wall time"), ("cpu_s", "CPU time")):
            if len(ours) < 2:
                break
            found.append(target(f"{where}: {name}, last over first", ours[-1][key] / ours[0][key], limit))
        found.append(target(f"{where}: slowest, ms", 1e3 * max(row["wall_s"] for row in ours), 50.0))
        for row in rows:
            same = [mine for mine in ours if mine["N"] == row["N"]]
            if row["method"] != "ours" and row["rtol"] == rtol and "wall_s" in row and same:
                name = f"ours over {row['method']} at N = {row['N']}, rtol {rtol:g}: wall time"
                found.append(target(name, same[0]["wall_s"] / row["wall_s"], 1.0))
    return found


def about_cifar(rows: list[Row]) -> list[Row]:
    found = []
    for row in rows:
        if "wall_s" in row:
            where = f"rtol {row['rtol']:g}"
            found += [
                target(f"{where}: wall time, s", row["wall_s"], 5.0 if row["rtol"] > 1e-7 else 8.0),
                target(f"{where}: peak memory with all imports, MB", row["peak_mb"], 1024),
                *floor_targets(row, where, 1.6),
            ]
    return found


def about_imagenet(rows: list[Row]) -> list[Row]:
    found = []
    for row in rows:
        if "wall_s" in row:
            found += [
                target("wall time, s", row["wall_s"], 600),
                target("peak memory with all imports, MB", row["peak_mb"], 8 * 1024),
                *floor_targets(row, f"rtol {row['rtol']:g}", float("inf")),
            ]
    return found


def floor_targets(row: Row, where: str, limit: float) -> list[Row]:
    ways = {"jax": "in jax", "blas": "in BLAS", "blas_one_thread": "in BLAS with one thread"}
    return [
        target(
            f"{where}: CPU time over that of the matrix products {text}",
            row[f"cpu_over_floor_{way}"],
            limit if way == "jax" else float("inf"),
        )
        for way, text in ways.items()
    ]


def about_precision(rows: list[Row]) -> list[Row]:
    """Where another method needs less time than ours for the same error, or reaches a smaller error than ours."""
    found = []
    for size in dict.fromkeys((row["C"], row["N"], row["p"]) for row in rows):
        of_size = [row for row in rows if (row["C"], row["N"], row["p"]) == size]
        for error in ("state_error", "snc3_error"):
            for cost in ("wall_s", "cpu_s"):
                quicker, _ = better_than_ours(of_size, error, cost)
                name = f"{size}: runs of other methods below ours ({error}, {cost})"
                found.append(target(name, len(quicker), 0) | {"runs": quicker})
            _, closer = better_than_ours(of_size, error, "wall_s")
            name = f"{size}: runs of other methods with a smaller error than any of ours ({error})"
            found.append(target(name, len(closer), math.inf) | {"runs": closer})
    return found


def better_than_ours(rows: list[Row], error: str, cost: str) -> tuple[list[Row], list[Row]]:
    """The runs of other methods that beat ours.

    The first list has runs that took less time than ours for the same error, interpolated between our runs. The second
    has runs whose error is smaller than any of ours. Errors below the uncertainty of the reference count as equal.
    """
    measured = [row for row in rows if cost in row and row.get("verdict", "plateau") == "plateau"]
    gap = max([row.get(f"reference_{error}", 0.0) for row in rows] + [1e-16])
    level = {id(row): max(row[error], gap) for row in measured if np.isfinite(row[error])}
    ours = sorted((level[id(row)], row[cost]) for row in measured if row["method"] == "exponential")
    if not ours:
        return [], []
    log_error, log_time = np.log(np.array(ours)).T
    log_time = np.minimum.accumulate(log_time)  # a run accurate to 1e-9 is also accurate to 1e-8
    quicker, closer = [], []
    for row in measured:
        if row["method"] == "exponential" or id(row) not in level:
            continue
        shown = {key: row[key] for key in ("method", "rtol", error, cost)}
        if level[id(row)] < ours[0][0]:
            closer.append(shown)
            continue
        time_of_ours = math.exp(np.interp(math.log(level[id(row)]), log_error, log_time))
        if row[cost] < time_of_ours:
            quicker.append(shown | {"ours_s": time_of_ours})
    return quicker, closer

"""Conclusions from the rows of `sweep.py`, one per line, and whether the aims are met."""

import math
from collections.abc import Iterable

from fresh_process import Row, cores

OURS = "flowcollapse"
NEW_JAX = (0, 11)
"""From this jax version on, large batches in lockstep are several times slower, and the aim against them applies."""

AIMS = {"vmap_diffeqsolve": 5.0, "scipy_dop853": 30.0}
"""The aim for our trajectories per core second, as a multiple of a peer's."""

MOST_OVER_C, LEAST_SPEEDUP, MOST_STORING = 2.5, 1.8, 0.05


def conclusion(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> Row:
    row: Row = {"what": what, "value": value}
    if at_least is not None:
        row |= {"aim": f"at least {at_least:g}", "met": value >= at_least}
    if at_most is not None:
        row |= {"aim": f"at most {at_most:g}", "met": value <= at_most}
    return row


def about_throughput(rows: list[Row], about: Row) -> list[Row]:
    """Ours against each peer, at the largest number of lanes the peer ran. In a loop, the cost per lane is constant."""
    found = []
    new = tuple(map(int, about["versions"]["jax"].split(".")[:2])) >= NEW_JAX
    for saves in sorted({row["saves"] for row in rows if "saves" in row}):
        for count in sorted({row["cores"] for row in rows if "cores" in row}):
            of_kind = [row for row in rows if "per_s" in row and row["saves"] == saves and row["cores"] == count]
            ours = [row for row in of_kind if row["method"] == OURS]
            if not ours:
                continue
            most, key = max(ours, key=lambda row: row["lanes"]), "per_core_s" if count == 1 else "per_s"
            where = f"{saves} saves, {count} core{'s' * (count > 1)}"
            found.append(conclusion(f"{where}: trajectories per second, {most['lanes']} lanes", most[key]))
            found.append(conclusion(f"{where}: lane efficiency", most["efficiency"]))
            found.append(conclusion(f"{where}: largest error of the state", max(row["state_error"] for row in ours)))
            for method in dict.fromkeys(row["method"] for row in of_kind if row["method"] != OURS):
                peer = max((row for row in of_kind if row["method"] == method), key=lambda row: row["lanes"])
                beside = _nearest(ours, peer["lanes"]) if method in ("vmap_diffeqsolve", "torchode_tsit5") else most
                name = f"{where}: ours ({beside['lanes']} lanes) over {method} ({peer['lanes']})"
                if method == "c_tsit5":
                    limit = MOST_OVER_C if count == 1 and saves == 0 else None
                    name = f"{where}: {method} ({peer['lanes']} lanes) over ours ({beside['lanes']})"
                    found.append(conclusion(name, peer[key] / beside[key], at_most=limit))
                else:
                    binding = count == 1 and (new or method != "vmap_diffeqsolve")
                    limit = AIMS.get(method) if binding else None
                    found.append(conclusion(name, beside[key] / peer[key], at_least=limit))
    return found


def _nearest(rows: Iterable[Row], lanes: int) -> Row:
    return min(rows, key=lambda row: abs(math.log(row["lanes"] / lanes)))


def about_width(rows: list[Row], about: Row) -> list[Row]:
    """The time of the engine's width relative to the fastest width, at each size."""
    times: dict[int, dict[int, float]] = {}
    chosen: dict[int, int] = {}
    for row in rows:
        if "step_us" in row:
            times.setdefault(row["size"], {})[row["width"]] = row["step_us"]
            chosen[row["size"]] = row["chosen"]
    found, sizes = [], sorted(times)
    over = {size: {width: time / min(times[size].values()) for width, time in times[size].items()} for size in sizes}
    for size in sizes:
        best = min(over[size], key=over[size].__getitem__)
        found.append(conclusion(f"state of {size}: fastest width", best))
        if chosen[size] in over[size]:
            name = f"state of {size}: width {chosen[size]}, which the engine takes, over the fastest"
            found.append(conclusion(name, over[size][chosen[size]]))
    return found


def about_devices(rows: list[Row], about: Row) -> list[Row]:
    """The speedup over one device, each measured by its fastest run."""
    wall: dict[tuple[int, int], float] = {}
    for row in rows:
        if "wall_s" in row:
            key = (row["saves"], row["devices"])
            wall[key] = min(row["wall_s"], wall.get(key, math.inf))
    return [
        conclusion(
            f"{saves} saves: {count} devices over one",
            wall[saves, 1] / seconds,
            at_least=LEAST_SPEEDUP if count == 2 <= len(cores()) else None,
        )
        for (saves, count), seconds in wall.items()
        if count > 1 and (saves, 1) in wall
    ]


def about_storing(rows: list[Row], about: Row) -> list[Row]:
    """The extra time of save times over bare integration, and of a store over the same sweep in memory."""
    found = []
    measured = [row for row in rows if "kept" in row]
    most = max((row["lanes"] for row in measured), default=0)
    for lanes, count in dict.fromkeys((row["lanes"], row["cores"]) for row in measured):
        of_kind = {row["kept"]: row for row in measured if (row["lanes"], row["cores"]) == (lanes, count)}
        for key, name in (("cpu_s", "CPU time"), ("wall_s", "wall time")):
            bare, memory, store = (of_kind[kept][key] for kept in ("end states", "in memory", "into a store"))
            where = f"{lanes} lanes, {count} core{'s' * (count > 1)}, {name}"
            found.append(conclusion(f"{where}: 41 saves with five metrics add", memory / bare - 1))
            limit = MOST_STORING if lanes == most else None
            found.append(conclusion(f"{where}: a store adds", store / memory - 1, at_most=limit))
    return found


def about_start(rows: list[Row], about: Row) -> list[Row]:
    wall = {row["what"]: row["wall_s"] for row in rows if "wall_s" in row}
    return [conclusion(f"{what}, seconds", wall[what]) for what in wall if what.startswith(("flowcollapse", "first"))]

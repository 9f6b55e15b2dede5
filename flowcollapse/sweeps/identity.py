"""Which sweep a store holds: everything that decides its numbers, and whether another sweep resumes or extends it."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._errors import UsageError
from ..methods.solvers.registry import SOLVERS
from ..metrics.registry import METRICS
from ..results.description import described, options, refused
from ..results.provenance import precision, settings, versions
from .grid import SHAPE_AXES
from .lane import Plan, common_metrics

PACKAGE = __name__.partition(".")[0]

PACKAGES = (PACKAGE, "diffrax", "equinox", "optax")
"""The packages whose code defines the method. A store keeps to one version of each; packages that only affect rounding
may change."""


AXIS = "axis"
"""Placeholder for a number of the model or the method whose values are on an axis."""


def configuration(plan: Plan) -> dict[str, Any]:
    """Everything that decides the numbers of a sweep, as plain values.

    Raises:
        UsageError: if some part cannot be described, as a later run then could not tell whether it is the same sweep.
    """
    grid = plan.grid
    model = options(grid.model, "model", refused)
    model["loss"] = grid.model.loss.described(without=grid.axes)
    method = {"name": grid.method.name, "class": described(type(grid.method), "method", refused)}
    method |= options(grid.method, "method", refused)
    if isinstance(method.get("solver"), str):
        method["solver"] = SOLVERS.name(method["solver"])
    for name in grid.axes:  # the axis replaces the value that the model or the method was given
        of_model = name in (*SHAPE_AXES, *grid.model.numbers)
        holders = [model] if of_model else [method, method.get("hyperparameters", {})]
        for holder in holders:
            if name in holder:
                holder[name] = AXIS
    return {
        "model": model,
        "method": method,
        "axes": {name: list(values) for name, values in grid.axes.items()},
        "start": grid.start.described(without=grid.axes),
        "ts": plan.ts,
        "metrics": list(plan.metrics),
        "keep_final": plan.keep_final,
        "precision": precision(),
        "jax": settings(),
        "packages": {name: version for name, version in versions().items() if name in PACKAGES},
        "registered": _registered(plan),
    }


def _registered(plan: Plan) -> dict[str, Any]:
    """The entries that the sweep refers to by name and another package defined."""
    entries: dict[str, Any] = {"loss": type(plan.grid.model.loss), "start": plan.grid.start.draw}
    entries |= {f"metrics.{name}": METRICS[name] for name in plan.metrics}
    solver = getattr(plan.grid.method, "solver", None)
    if isinstance(solver, str):
        entries["solver"] = SOLVERS.find(solver)
    return {name: described(entry, name, refused) for name, entry in entries.items() if not _own(entry)}


def _own(entry: Any) -> bool:
    """Whether all functions of a registry's entry come from this package."""
    if isinstance(entry, tuple):
        return all(map(_own, entry))
    return not callable(entry) or getattr(entry, "__module__", "").partition(".")[0] == PACKAGE


def united(path: Path, found: Mapping[str, Any], plan: Plan) -> Plan:
    """The union of the sweep in a store and this sweep: on each axis the store's values come first, then the new ones.

    Args:
        path: the store, for messages.
        found: its configuration.
        plan: this sweep.

    Raises:
        UsageError: if they differ in anything except the values of their axes, or if this sweep asks for metrics that
            the store lacks.
    """
    wanted = json.loads(json.dumps(configuration(plan)))
    apart = ("axes", "metrics")
    both = ({name: value for name, value in one.items() if name not in apart} for one in (found, wanted))
    differences = list(_differences("", *both))
    for here, there, fault in ((wanted, found, "is an axis here and not there"), (found, wanted, "is an axis there")):
        differences += [f"{name} {fault}" for name in here["axes"] if name not in there["axes"]]
    more = [name for name in plan.metrics if name not in found["metrics"]]
    if more:
        differences.append(f"metrics are {_short(found['metrics'])} there, without {', '.join(map(repr, more))}")
    if differences:
        raise UsageError(
            f"{path} holds another sweep: {'; '.join(differences)}. Give the same options to resume it, more values "
            "of its axes to extend it, or a new store."
        )
    axes = {}
    for name, values in found["axes"].items():
        held = tuple(tuple(value) if isinstance(value, list) else value for value in values)
        known = set(held)
        new = tuple(value for value in plan.grid.axes[name] if value not in known)
        _check_kinds(path, name, held, new)
        axes[name] = held + new
    grid = plan.grid._replace(axes=axes)
    return dataclasses.replace(plan, grid=grid, metrics=common_metrics(grid, found["metrics"]))


def _check_kinds(path: Path, name: str, held: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    """Raise `UsageError` if lists would join single numbers: a coordinate of numbers cannot hold lists."""
    kinds = [{isinstance(value, tuple) for value in values} for values in (held, new)]
    joinable = name in SHAPE_AXES and True in kinds[0]
    if new and kinds[0] != kinds[1] and not joinable:
        raise UsageError(
            f"{path} has {_short(held)} on its axis {name}, and {_short(new)} would mix single numbers and lists: "
            "write all of them alike, or give a new store."
        )


def _differences(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _differences(f"{name}.{key}".lstrip("."), found.get(key), wanted.get(key))
    elif AXIS in (found, wanted):
        pass  # reported once, by the comparison of the axes
    elif found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        yield f"{name} is {_short(found)} there and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"

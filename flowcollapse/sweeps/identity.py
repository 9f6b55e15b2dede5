"""Which sweep a store holds: all that decides its numbers, and whether another sweep is the same or adds to it."""

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
"""The packages whose code is the method. A store keeps to one version of each; those that only round otherwise may
change."""


AXIS = "axis"
"""What stands for a number of the model or the method whose values are on an axis."""


def configuration(plan: Plan) -> dict[str, Any]:
    """All that decides the numbers of a sweep, as plain values.

    Raises:
        UsageError: if it holds what cannot be described, so that another run could not know whether it is the same.
    """
    grid = plan.grid
    model = options(grid.model, "model", refused)
    model["loss"] = grid.model.loss.described(without=grid.axes)
    method = {"name": grid.method.name, "class": described(type(grid.method), "method", refused)}
    method |= options(grid.method, "method", refused)
    if isinstance(method.get("solver"), str):
        method["solver"] = SOLVERS.name(method["solver"])
    for name in grid.axes:  # the axis has the values, whatever model and method were given with
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
    """What goes by name but was entered under it by others than this package."""
    entries: dict[str, Any] = {"loss": type(plan.grid.model.loss), "start": plan.grid.start.draw}
    entries |= {f"metrics.{name}": METRICS[name] for name in plan.metrics}
    solver = getattr(plan.grid.method, "solver", None)
    if isinstance(solver, str):
        entries["solver"] = SOLVERS.find(solver)
    return {name: described(entry, name, refused) for name, entry in entries.items() if not _own(entry)}


def _own(entry: Any) -> bool:
    """Whether an entry of a registry is this package's, all functions of it."""
    if isinstance(entry, tuple):
        return all(map(_own, entry))
    return not callable(entry) or getattr(entry, "__module__", "").partition(".")[0] == PACKAGE


def united(path: Path, found: Mapping[str, Any], plan: Plan) -> Plan:
    """The sweep that a store holds and this one together: the store's values on each axis first, then the new ones.

    Args:
        path: the store, for messages.
        found: its configuration.
        plan: this sweep.

    Raises:
        UsageError: if they differ in more than the values of their axes and in which metrics are asked for.
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
    return plan._replace(grid=grid, metrics=common_metrics(grid, found["metrics"]))


def _check_kinds(path: Path, name: str, held: tuple[Any, ...], new: tuple[Any, ...]) -> None:
    """Raise `UsageError` where lists would join single numbers, whose coordinate is not a table."""
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
        pass  # told of once, where the axes are compared
    elif found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        yield f"{name} is {_short(found)} there and {_short(wanted)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:28]} ... {text[-28:]}"

"""What a sweep runs: named axes, the lanes they span, and the tasks that lanes are computed and stored in."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_positive
from .._errors import UsageError, nearest
from ..method import Method, check_method
from ..model import UFM

SHAPE_AXES = ("num_classes", "samples_per_class", "num_features")
"""Axes that change the shapes of the arrays: each combination of their values is a program of its own."""

MODEL_AXES = (*SHAPE_AXES, "weight_decay")


class Grid(NamedTuple):
    """A model and a method, and the axes along which their numbers and the starts vary.

    `axes` maps a name to its values, outermost first: shapes, then numbers, then `eps` and `seed`.
    """

    model: UFM
    method: Method
    axes: dict[str, tuple[Any, ...]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())

    @property
    def num_lanes(self) -> int:
        return int(np.prod(self.shape))

    def shapes(self) -> Iterator[dict[str, Any]]:
        """Each combination of the values of the axes that change shapes."""
        names = [name for name in self.axes if name in SHAPE_AXES]
        for values in itertools.product(*(self.axes[name] for name in names)):
            yield dict(zip(names, values, strict=True))


class Task(NamedTuple):
    """A box of the grid whose lanes share their shapes: a slice of each axis, and the number of the box."""

    index: int
    box: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(side.stop - side.start for side in self.box)

    @property
    def num_lanes(self) -> int:
        return int(np.prod(self.shape))


def make_grid(
    model: UFM, method: Method, eps: Sequence[float], seeds: int | Sequence[int], axes: Mapping[str, Any]
) -> Grid:
    """The grid of a sweep.

    Raises:
        UsageError: for an axis that is empty, holds a value twice, does not exist, or holds values that cannot be.
    """
    if not isinstance(model, UFM):
        raise UsageError(f"model must be an fc.UFM, got {model!r}.")
    check_method(method)
    grid = Grid(model, method, checked_axes((*MODEL_AXES, *method.numbers), eps, seeds, axes))
    method.check_closed([name for name in method.open if name not in grid.axes])
    for values in grid.shapes():
        with_values(model, values)
    for name, values in grid.axes.items():
        if name not in (*SHAPE_AXES, "eps", "seed"):
            for value in values:
                of_lane(model, method, {name: value})
    return grid


def checked_axes(
    allowed: Sequence[str], eps: Sequence[float], seeds: int | Sequence[int], axes: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """The axes in order, shapes first, eps and seed last, each a tuple of values.

    Raises:
        UsageError: for an axis that is empty, holds a value twice or is not allowed, and for eps and seeds that cannot
            be.
    """
    for name in axes:
        if name not in allowed:
            raise UsageError(f"axis {name!r} is not one of {', '.join(allowed)}{nearest(name, allowed) or '.'}")
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if seeds < 1:
            raise UsageError(f"seeds must be at least 1, got {seeds}.")
        seeds = range(int(seeds))
    ordered = sorted(axes, key=lambda name: SHAPE_AXES.index(name) if name in SHAPE_AXES else len(SHAPE_AXES))
    checked = {name: _checked_axis(name, axes[name]) for name in ordered}
    checked |= {"eps": _checked_axis("eps", eps), "seed": _checked_axis("seeds", seeds)}
    check_positive("eps", list(checked["eps"]))
    for seed in checked["seed"]:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UsageError(f"seeds must be integers from 0 to 2^63 - 1, got {seed!r}.")
    return checked


def _checked_axis(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an axis as a tuple of at least one, all different."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise UsageError(f"{name} must be a list of values, got {values!r}.")
    given = tuple(_plain(value) for value in values)
    if not given:
        raise UsageError(f"{name} is empty: give it at least one value.")
    twice = [value for i, value in enumerate(given) if value in given[:i]] if len(set(given)) < len(given) else []
    if twice:
        raise UsageError(f"{name} holds {twice[0]!r} twice: give each value once.")
    sizes = {len(value) if isinstance(value, tuple) else 0 for value in given}
    if name not in SHAPE_AXES and len(sizes) > 1:
        raise UsageError(f"{name} mixes single numbers and lists, {list(given)}: write all of them alike.")
    return given


def _plain(value: Any) -> Any:
    """One number, or a tuple of them, as Python's own."""
    if np.ndim(value) == 1:
        return tuple(np.asarray(value).tolist())
    return np.asarray(value).item() if isinstance(value, np.generic) or hasattr(value, "dtype") else value


def of_lane(model: UFM, method: Method, values: Mapping[str, Any]) -> tuple[UFM, Method]:
    """The model and the method with the numbers of one lane, which may be traced."""
    of_model = {name: value for name, value in values.items() if name in MODEL_AXES}
    of_method = {name: value for name, value in values.items() if name not in (*MODEL_AXES, "eps", "seed")}
    return with_values(model, of_model), method.with_numbers(of_method)


def with_values(model: UFM, values: Mapping[str, Any]) -> UFM:
    """The model with some of its fields replaced, and checked anew."""
    fields = {name: getattr(model, name) for name in (*MODEL_AXES, "use_bias", "loss")}
    return UFM(**(fields | dict(values)))


def tasks(grid: Grid, sides: Sequence[int]) -> Iterator[Task]:
    """The grid cut into boxes, in order."""
    counts = [-(-length // side) for length, side in zip(grid.shape, sides, strict=True)]
    for index, position in enumerate(itertools.product(*map(range, counts))):
        box = (
            slice(i * side, min((i + 1) * side, length))
            for i, side, length in zip(position, sides, grid.shape, strict=True)
        )
        yield Task(index, tuple(box))


def task_sides(grid: Grid, lanes: int) -> tuple[int, ...]:
    """The sides of boxes of at most `lanes` lanes, which are also the chunks on disk; never across two shapes.

    The inner axes are whole as long as they fit; the first that does not is cut, and those outside it have one value a
    box.
    """
    sides, left = [], max(1, lanes)
    for name, length in reversed(list(zip(grid.axes, grid.shape, strict=True))):
        cuts = -(-length // left)
        side = 1 if name in SHAPE_AXES else -(-length // cuts)  # cuts of about the same length
        sides.append(side)
        left = left // side if side == length else 1
    return tuple(reversed(sides))


def lane_values(grid: Grid, task: Task) -> dict[str, np.ndarray]:
    """The numbers of every lane of a task, lanes in the box's order; without the axes that change shapes."""
    boxes = dict(zip(grid.axes, task.box, strict=True))
    names = [name for name in grid.axes if name not in SHAPE_AXES]
    places = np.meshgrid(*(np.arange(boxes[name].start, boxes[name].stop) for name in names), indexing="ij")
    return {name: np.asarray(grid.axes[name])[place.ravel()] for name, place in zip(names, places, strict=True)}


def shape_values(grid: Grid, task: Task) -> dict[str, Any]:
    """The values of the shape-changing axes, which all lanes of a task share."""
    boxes = zip(grid.axes.items(), task.box, strict=True)
    return {name: values[side.start] for (name, values), side in boxes if name in SHAPE_AXES}

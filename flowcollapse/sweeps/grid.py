"""The grid of a sweep: its named axes, the lanes they span, and the tasks in which lanes are computed and stored."""

import contextlib
import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import check_positive, shown
from .._errors import UsageError, nearest
from ..initial import Start
from ..methods.base import Method, check_method
from ..model.ufm import UFM

SHAPE_AXES = ("num_classes", "samples_per_class", "num_features")
"""Axes that change the shapes of the arrays: each combination of their values compiles a separate program."""

LISTS = {"samples_per_class": "one count for each class", "weight_decay": "one number each for W, H and b"}
"""Axes whose values may be lists of numbers, with the meaning of such a list."""

LARGEST_SEED = 2**63 - 1

MOST_SEEDS = 2**31

SMALLEST_CHUNK = 64
"""Chunks have room for at least this many lanes if a task may hold them, so that a growing sweep makes fewer files."""


class Grid(NamedTuple):
    """A model, a method and a kind of start, with the axes along which their numbers vary.

    `axes` maps each name to its values, outermost axis first: shapes, then numbers, then `eps` and `seed`.
    """

    model: UFM
    method: Method
    axes: dict[str, tuple[Any, ...]]
    start: Start

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())

    @property
    def num_lanes(self) -> int:
        return int(np.prod(self.shape))

    def shapes(self) -> Iterator[dict[str, Any]]:
        """Each combination of values of the axes that change shapes."""
        names = [name for name in self.axes if name in SHAPE_AXES]
        for values in itertools.product(*(self.axes[name] for name in names)):
            yield dict(zip(names, values, strict=True))


class Task(NamedTuple):
    """A box of the grid whose lanes share their shapes: the number of the box, and a slice of each axis.

    `lanes` holds the row-major positions in the box of the lanes to run; None means all of them.
    """

    index: int
    box: tuple[slice, ...]
    lanes: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(side.stop - side.start for side in self.box)

    @property
    def num_lanes(self) -> int:
        return int(np.prod(self.shape)) if self.lanes is None else len(self.lanes)


Batch = tuple[Task, ...]
"""Tasks that run together as one call of one program."""


def make_grid(model: UFM, method: Method, eps: Any, seeds: Any, axes: Mapping[str, Any], start: Any = "sphere") -> Grid:
    """The grid of a sweep.

    Raises:
        UsageError: for an axis that is empty, repeats a value, does not exist, or holds an invalid value.
    """
    if not isinstance(model, UFM):
        raise UsageError(f"model must be an fc.UFM, got {shown(model)}: make one with fc.UFM.")
    check_method(method)
    start = Start(start)
    allowed = (*SHAPE_AXES, *model.numbers, *start.numbers, *method.numbers)
    for name in axes:
        if allowed.count(name) > 1 and name != "weight_decay":
            raise UsageError(f"axis {name!r} is a number of two parts of the run: give one of them another name.")
    grid = Grid(model, method, checked_axes(tuple(dict.fromkeys(allowed)), eps, seeds, axes), start)
    method.check_closed([name for name in method.open if name not in grid.axes])
    for values in grid.shapes():
        model.with_numbers(values)
    method.check_fits(model)
    for name, values in grid.axes.items():
        if name not in (*SHAPE_AXES, "eps", "seed"):
            for value in values:
                varied = of_lane((model, start, method), {name: value})
                varied[2].check_fits(varied[0])
    return grid


def checked_axes(allowed: Sequence[str], eps: Any, seeds: Any, axes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The axes in order, shapes first, eps and seed last, each a tuple of values.

    Args:
        allowed: names that `axes` may have.
        eps: one number or several, as a list, a generator, or an array of any library.
        seeds: the number of seeds, or a list of them.
        axes: further axes by name, each like `eps`.

    Raises:
        UsageError: for an axis that is empty, repeats a value or is not allowed, and for values that are not numbers or
            are out of range.
    """
    for name in axes:
        if name not in allowed:
            raise UsageError(
                f"axis {name!r} is not one of {', '.join(allowed)}: choose one of these{nearest(name, allowed) or '.'}"
            )
    ordered = sorted(axes, key=lambda name: SHAPE_AXES.index(name) if name in SHAPE_AXES else len(SHAPE_AXES))
    checked = {name: checked_axis(name, axes[name]) for name in ordered}
    checked |= {"eps": checked_axis("eps", eps), "seed": _checked_seeds(seeds)}
    check_positive("eps", list(checked["eps"]))
    return checked


def checked_axis(name: str, values: Any) -> tuple[Any, ...]:
    """The values of an axis as a non-empty tuple without repeats. Numbers become floats unless they are sizes."""
    given = tuple(_number(name, value) for value in _listed(name, values))
    _check_values(name, given)
    sizes = {len(value) if isinstance(value, tuple) else 0 for value in given}
    if name not in SHAPE_AXES and len(sizes) > 1:
        raise UsageError(f"{name} mixes single numbers and lists, {list(given)}: write all of them alike.")
    return given


def _checked_seeds(seeds: Any) -> tuple[int, ...]:
    """The seeds as a tuple, from their number or a list."""
    if getattr(seeds, "ndim", None) == 0:
        seeds = _plain(seeds)
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if not 1 <= seeds <= MOST_SEEDS:
            raise UsageError(f"seeds must be at least 1, and at most 2^31 of them, got {seeds}: give another number.")
        return tuple(range(seeds))
    single = callable(seeds) or isinstance(seeds, str | bytes | Mapping)
    given: list[Any] = [seeds] if single else _listed("seeds", seeds)
    for seed in given:
        if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
            raise UsageError(
                f"seeds must be integers from 0 to 2^63 - 1, or how many of them, got {shown(seed)}: use one of these."
            )
    _check_values("seeds", given)
    return tuple(given)


def _check_values(name: str, given: Sequence[Any]) -> None:
    if not given:
        raise UsageError(f"{name} is empty: give it at least one value.")
    if len(set(given)) < len(given):
        twice = next(value for i, value in enumerate(given) if value in given[:i])
        raise UsageError(f"{name} holds {twice!r} twice: give each value once.")


def _listed(name: str, values: Any) -> list[Any]:
    """The values of an iterable, which is read once, or a list of the single value."""
    if callable(values) or isinstance(values, str | bytes | Mapping):
        raise _not_numbers(name, values)
    values = _plain(values)
    try:
        return list(map(_plain, values)) if isinstance(values, Iterable) else [values]
    except TypeError:  # an array that only its own library can read
        raise _not_numbers(name, values) from None


def _plain(value: Any) -> Any:
    """An array of any library as Python numbers; any other value unchanged."""
    if hasattr(value, "__array__"):
        with contextlib.suppress(Exception):  # each library raises its own error for an unreadable array
            return np.asarray(value).tolist()
    return value


def _number(name: str, value: Any) -> Any:
    """A value of an axis: a number, or a tuple of numbers if the axis allows it."""
    several = isinstance(value, list | tuple | range) and name in LISTS
    parts: tuple[Any, ...] = tuple(map(_plain, value)) if several else (value,)
    if not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in parts):
        raise _not_numbers(name, value)
    if not all(isinstance(x, int) or math.isfinite(x) for x in parts):
        raise UsageError(f"{name} must be finite, got {shown(value)}: remove it.")
    parts = parts if name in SHAPE_AXES else tuple(map(float, parts))
    return parts if several else parts[0]


def _not_numbers(name: str, value: Any) -> UsageError:
    if callable(value):
        cure = "run once for each schedule or other function"
    else:
        cure = f"give numbers, as [0.1, 0.2]{f', or lists of {LISTS[name]}' if name in LISTS else ''}"
    return UsageError(f"{name} must be a list of numbers, got {shown(value)}: {cure}.")


def decayed(model: UFM, axes: Mapping[str, Sequence[Any]]) -> list[UFM]:
    """The model with each weight decay of the axes; without such an axis, the model alone."""
    decays = axes.get("weight_decay")
    return [model] if decays is None else [model.with_numbers({"weight_decay": decay}) for decay in decays]


def of_lane(parts: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The model, the start and the methods with the numbers of one lane, which may be traced.

    A number belongs to the first part that has it, so `weight_decay` is the model's. Sizes belong to the model.
    """
    left, found = dict(values), []
    for part in parts:
        sizes = SHAPE_AXES if isinstance(part, UFM) else ()
        own = {name: left.pop(name) for name in (*sizes, *part.numbers) if name in left}
        found.append(part.with_numbers(own) if own else part)
    return tuple(found)


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
    """The sides of boxes that hold at most `lanes` lanes and never mix shapes.

    The inner axes stay whole as long as they fit. The first axis that does not fit is cut, and the axes outside it have
    one value per box.
    """
    sides, left = [], max(1, lanes)
    for name, length in reversed(list(zip(grid.axes, grid.shape, strict=True))):
        cuts = -(-length // left)
        side = 1 if name in SHAPE_AXES else -(-length // cuts)  # pieces of nearly equal length
        sides.append(side)
        left = left // side if side == length else 1
    return tuple(reversed(sides))


def chunk_sides(sides: tuple[int, ...], grid: Grid, lanes: int) -> tuple[int, ...]:
    """The sides of chunks: those of the boxes, plus room for more seeds if the sweep is small and its seeds are uncut.

    Args:
        sides: the sides of the boxes.
        grid: the grid.
        lanes: the most lanes in a box.
    """
    if sides[-1] < grid.shape[-1]:
        return sides
    others = int(np.prod(sides[:-1]))
    return (*sides[:-1], max(sides[-1], min(SMALLEST_CHUNK, lanes) // others))


def batches(grid: Grid, todo: Iterable[Task], capacity: int) -> Iterator[Batch]:
    """The tasks in order, grouped so that a batch has one set of shapes and at most `capacity` lanes."""
    for _, alike in itertools.groupby(todo, lambda task: shape_values(grid, task)):
        batch: list[Task] = []
        for task in alike:
            if batch and sum(one.num_lanes for one in batch) + task.num_lanes > capacity:
                yield tuple(batch)
                batch = []
            batch.append(task)
        yield tuple(batch)


def lane_values(grid: Grid, task: Task) -> dict[str, np.ndarray]:
    """The numbers of every lane of a task, in the order of the box, without the axes that change shapes."""
    boxes = dict(zip(grid.axes, task.box, strict=True))
    names = [name for name in grid.axes if name not in SHAPE_AXES]
    places = np.meshgrid(*(np.arange(boxes[name].start, boxes[name].stop) for name in names), indexing="ij")
    which = slice(None) if task.lanes is None else task.lanes
    return {name: np.asarray(grid.axes[name])[place.ravel()[which]] for name, place in zip(names, places, strict=True)}


def shape_values(grid: Grid, task: Task) -> dict[str, Any]:
    """The values of the shape-changing axes, which all lanes of a task share."""
    boxes = zip(grid.axes.items(), task.box, strict=True)
    return {name: values[side.start] for (name, values), side in boxes if name in SHAPE_AXES}

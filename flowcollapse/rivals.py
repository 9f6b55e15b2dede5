"""What a comparison runs beside the flow: methods from what the user gave, the times they share, and steps enough."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ._errors import UsageError, nearest
from .clock import almost, check_times
from .descent import Descent
from .flow import Flow
from .method import Method
from .modified import HeavyBallFlow, ModifiedFlow
from .optimizers import factory_of, parse
from .simulation import as_arrays, checked_times
from .stopping import default_times

FLOWS = {kind.name: kind for kind in (Flow, ModifiedFlow, HeavyBallFlow)}
"""The flows that go by name."""

MOST_STEPS = 10_000_000

Axes = Mapping[str, Sequence[Any]]


class Rival(NamedTuple):
    """A method that is compared.

    `takes` names the numbers that the user left open, `open` those of them that axes set. Where `settled`, the user has
    chosen the number of steps.
    """

    name: str
    method: Method
    takes: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    settled: bool = True


def rivals_of(given: Any, axes: Axes, num_steps: int | None, flow: Rival) -> list[Rival]:
    """The flow, and the rivals by the names that the user gave them, or as they are written.

    Raises:
        UsageError: for none, a name given twice, or what is neither a method nor an optimizer.
    """
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, Mapping) and not (isinstance(given, Sequence) and all(isinstance(x, str) for x in given)):
        raise UsageError(
            "optimizers must be a dictionary of names and optimizers, or a list of texts such as "
            f'"sgd:learning_rate=0.05", got {given!r}.'
        )
    pairs = list(given.items()) if isinstance(given, Mapping) else [(text, text) for text in given]
    if not pairs:
        raise UsageError('optimizers is empty: give at least one, such as "sgd:learning_rate=0.05".')
    names = [str(name) for name, _ in pairs]
    for name in (*names, flow.name):
        if [*names, flow.name].count(name) > 1:
            raise UsageError(
                f"{name!r} would be the name of two methods: give optimizers as a dictionary with names of your own."
            )
    return [flow, *(rival(name, method, axes, num_steps) for name, (_, method) in zip(names, pairs, strict=True))]


def rival(name: str, given: Any, axes: Axes, num_steps: int | None = None) -> Rival:
    """A method, a ready optimizer of optax, or a text with a name and numbers, which leaves others open to the axes.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(given, Method):
        open_ = tuple(axis for axis in axes if axis in given.open)
        given.check_closed([number for number in given.open if number not in open_])
        return Rival(name, given, given.open, open_)
    if isinstance(given, optax.GradientTransformation):
        return Rival(name, Descent(given, num_steps or 1), settled=num_steps is not None)
    if not isinstance(given, str):
        raise UsageError(
            f'optimizer {name!r} must be an optax optimizer, a text such as "sgd:learning_rate=0.05", or a method such '
            f"as fc.Descent(...), got {given!r}."
        )
    kind, arguments = parse(given)
    takes = tuple(number for number in (_numbers_of(kind)) if number not in (*arguments, "t1"))
    open_ = tuple(axis for axis in axes if axis in takes and axis != "weight_decay")  # which is the model's
    arguments = {axis: axes[axis][0] for axis in open_} | arguments
    if kind not in FLOWS:
        descent = Descent(kind, num_steps or 1, **arguments)
        descent.check_closed(descent.open)
        return Rival(name, descent, takes, open_, settled=num_steps is not None)
    try:
        return Rival(name, FLOWS[kind](**arguments), takes, open_)
    except TypeError as error:
        raise UsageError(f"{given!r}: {str(error).rpartition('() ')[2]}.") from None


def _numbers_of(kind: str) -> tuple[str, ...]:
    """The names of the numbers that a flow or an optimizer has."""
    if kind in FLOWS:
        return tuple(field.name for field in dataclasses.fields(FLOWS[kind]) if not field.metadata.get("static", False))
    parameters = inspect.signature(factory_of(kind)).parameters.values()
    return tuple(one.name for one in parameters if not isinstance(one.default, bool | int | str))


def check_axes(rivals: Iterable[Rival], axes: Axes) -> None:
    """Make sure that each axis is a number that a rival has left open, and that its values can be.

    Raises:
        UsageError: otherwise.
    """
    known = [name for one in rivals for name in one.takes]
    for axis, values in axes.items():
        reached = [one.method for one in rivals if axis in one.open]
        if axis != "weight_decay" and not reached:
            raise UsageError(
                f"axis {axis!r} is neither weight_decay nor a number that an optimizer given as a text leaves open, as "
                f'optimizers=["sgd"] leaves the learning_rate{nearest(axis, known) or "."}'
            )
        for method in reached:
            for value in values:
                method.with_numbers({axis: value})


def steps_needed(one: Rival, axes: Axes, end: float) -> int:
    """The steps that a descent needs to reach the end for all values of the axes.

    Raises:
        UsageError: if it is to take fewer, or needs too many.
    """
    assert isinstance(one.method, Descent)
    _check_clock(one, axes)
    needed = int(_all_steps(one, axes, end).max())
    counted = f"more than {MOST_STEPS}" if needed >= MOST_STEPS else f"{needed}"
    if one.settled and needed > one.method.num_steps:
        raise UsageError(
            f"optimizer {one.name!r} takes {counted} steps to reach time {end:.6g}, and num_steps is "
            f"{one.method.num_steps}: raise it, or end ts earlier."
        )
    if needed >= MOST_STEPS:
        raise UsageError(
            f"optimizer {one.name!r} takes {counted} steps to reach time {end:.6g}: raise its step size, which must be "
            "positive, or end ts earlier. Its time is the distance that it goes under a unit force, unless clock= of "
            "fc.Descent says otherwise."
        )
    return needed


SOME_STEPS = 50


def _check_clock(one: Rival, axes: Axes) -> None:
    """Make sure that the time of a descent goes forward, as far as its first steps tell.

    Raises:
        UsageError: otherwise.
    """
    assert isinstance(one.method, Descent)
    method = one.method if one.settled else one.method.with_steps(SOME_STEPS)
    method = method.with_numbers({name: axes[name][0] for name in one.open})
    times = np.asarray(_clock(as_arrays(method, jnp.result_type(float))))
    if not np.all(np.diff(times) >= 0):
        check_times(times, f"optimizer {one.name!r}")


def ending_at(one: Rival, axes: Axes, end: float) -> Method:
    """The method up to a time: a descent has the steps that it takes, a flow ends with the last of the saves.

    Raises:
        UsageError: as `steps_needed`.
    """
    if not isinstance(one.method, Descent):
        if (until := getattr(one.method, "until", None)) is not None:
            raise UsageError(
                f"{one.name!r} has until={until!r}, but all methods of a comparison end at the same time: "
                "leave it out, and give ts or the flow's t1."
            )
        return one.method.with_numbers({"t1": None})
    needed = steps_needed(one, axes, end)
    method = one.method if one.settled else one.method.with_steps(needed)
    return method.with_numbers({"t1": end})


def _all_steps(one: Rival, axes: Axes, end: float) -> Int[np.ndarray, " values"]:
    """How many steps a descent needs to reach the end, but for rounding, for each combination of its open numbers."""
    places = np.meshgrid(*(np.asarray(axes[name], float) for name in one.open), indexing="ij") if one.open else []
    numbers = {name: jnp.asarray(place.ravel()) for name, place in zip(one.open, places, strict=True)}
    dtype = jnp.result_type(float)
    return np.asarray(_steps_until(as_arrays(one.method, dtype), numbers, jnp.asarray(almost(end), dtype)))


@eqx.filter_jit
def _steps_until(method: Descent, numbers: dict[str, Array], end: Float[Array, ""]) -> Int[Array, " values"]:
    if not numbers:
        return method.steps_until(end, MOST_STEPS)[None]
    return jax.vmap(lambda values: method.with_numbers(values).steps_until(end, MOST_STEPS))(numbers)


def save_times(
    count: int, rivals: Sequence[Rival], axes: Axes, escape: float, end: float
) -> Float[np.ndarray, " time"]:
    """About `count` times up to the end: those of steps of the descent that takes the fewest.

    They are equally far apart up to the escape, and logarithmic after it. Where steps differ from lane to lane, or
    there is no descent, they need not be times of steps.

    Raises:
        UsageError: as `steps_needed`.
    """
    descents = [one for one in rivals if isinstance(one.method, Descent)]
    if not descents or any(one.open for one in descents):
        return np.asarray(default_times(count, jnp.asarray(escape), jnp.asarray(end)))
    coarsest = ending_at(min(descents, key=lambda one: steps_needed(one, axes, end)), axes, end)
    clock = np.asarray(_clock(as_arrays(coarsest, jnp.result_type(float))))
    last = int(np.searchsorted(clock, almost(end)))
    if escape >= end:
        return clock[np.unique(np.round(np.linspace(last, 0, count)).astype(int))]
    wanted = np.asarray(default_times(count, jnp.asarray(escape), jnp.asarray(clock[last])))
    return clock[np.unique(np.searchsorted((clock[1 : last + 1] + clock[:last]) / 2, wanted))]


@eqx.filter_jit
def _clock(method: Any) -> Float[Array, " steps"]:
    return method.step_times(jnp.result_type(float))


def given_times(ts: Any) -> Float[np.ndarray, " time"]:
    """The times that the user chose.

    Raises:
        UsageError: unless they increase, from 0 on, and go beyond it.
    """
    times = np.asarray(checked_times(ts, Flow(), np.float64))
    if times[-1] == 0:
        raise UsageError("ts holds 0 alone, where all methods are at the start: add later times.")
    return times

"""The times at which a flow and its candidates are compared, and the steps that descents need to reach them."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import UsageError
from ..endings.plateau import default_times
from ..methods.base import Method, SteppedMethod
from ..methods.clock import almost, check_times
from ..methods.flow import Flow
from ..simulation import as_arrays, checked_times
from .candidates import Axes, Candidate

MOST_STEPS = 10_000_000

SOME_STEPS = 50
"""Of a descent whose number of steps is open, this many show whether its time goes forward."""


def stepped(one: Candidate) -> SteppedMethod:
    """The method of a candidate that moves in steps."""
    assert one.method.stepped is not None
    return one.method.stepped


def steps_needed(one: Candidate, axes: Axes, end: float) -> int:
    """The steps that a descent needs to reach the end for all values of the axes.

    Raises:
        UsageError: if it is to take fewer, or needs too many.
    """
    _check_clock(one, axes)
    needed = int(_all_steps(one, axes, end).max())
    counted = f"more than {MOST_STEPS}" if needed >= MOST_STEPS else f"{needed}"
    if one.settled and needed > stepped(one).num_steps:
        raise UsageError(
            f"optimizer {one.name!r} takes {counted} steps to reach time {end:.6g}, and num_steps is "
            f"{stepped(one).num_steps}: raise it, or end ts earlier."
        )
    if needed >= MOST_STEPS:
        raise UsageError(
            f"optimizer {one.name!r} takes {counted} steps to reach time {end:.6g}: raise its step size, which must be "
            "positive, or end ts earlier. Its time is the distance that it goes under a unit force, unless clock= of "
            "fc.Descent says otherwise."
        )
    return needed


def _check_clock(one: Candidate, axes: Axes) -> None:
    """Make sure that the time of a descent goes forward, as far as its first steps tell.

    Raises:
        UsageError: otherwise.
    """
    method = stepped(one) if one.settled else stepped(one).with_steps(SOME_STEPS)
    method = method.with_numbers({name: axes[name][0] for name in one.open})
    times = np.asarray(_clock(as_arrays(method, jnp.result_type(float))))
    if not np.all(np.diff(times) >= 0):
        check_times(times, f"optimizer {one.name!r}")


def ending_at(one: Candidate, axes: Axes, end: float) -> Method:
    """The method up to a time: a descent has the steps that it takes, a flow ends with the last of the saves.

    Raises:
        UsageError: as `steps_needed`.
    """
    if one.method.stepped is None:
        if (until := getattr(one.method, "until", None)) is not None:
            raise UsageError(
                f"{one.name!r} has until={until!r}, but all methods of a comparison end at the same time: "
                "leave it out, and give ts or the flow's t1."
            )
        return one.method.with_numbers({"t1": None})
    needed = steps_needed(one, axes, end)
    method = stepped(one) if one.settled else stepped(one).with_steps(needed)
    return method.with_numbers({"t1": end})


def _all_steps(one: Candidate, axes: Axes, end: float) -> Int[np.ndarray, " values"]:
    """How many steps a descent needs to reach the end, but for rounding, for each combination of its open numbers."""
    places = np.meshgrid(*(np.asarray(axes[name], float) for name in one.open), indexing="ij") if one.open else []
    numbers = {name: jnp.asarray(place.ravel()) for name, place in zip(one.open, places, strict=True)}
    dtype = jnp.result_type(float)
    return np.asarray(_steps_until(as_arrays(one.method, dtype), numbers, jnp.asarray(almost(end), dtype)))


@eqx.filter_jit
def _steps_until(method: Any, numbers: dict[str, Array], end: Float[Array, ""]) -> Int[Array, " values"]:
    if not numbers:
        return method.steps_until(end, MOST_STEPS)[None]
    return jax.vmap(lambda values: method.with_numbers(values).steps_until(end, MOST_STEPS))(numbers)


def save_times(
    count: int, candidates: Sequence[Candidate], axes: Axes, escape: float, end: float
) -> Float[np.ndarray, " time"]:
    """About `count` times up to the end: those of steps of the descent that takes the fewest.

    They are equally far apart up to the escape, and logarithmic after it. Where steps differ from lane to lane, or
    there is no descent, they need not be times of steps.

    Raises:
        UsageError: as `steps_needed`.
    """
    descents = [one for one in candidates if one.method.stepped is not None]
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

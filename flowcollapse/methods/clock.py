"""The times of the steps of a descent: the distance that its optimizer moves under a constant unit force.

The force acts on one entry of W, and in a second run on one entry of H. Both runs start at rest at the origin. The time
of a step is how much further the entry moves with the force than without it, so noise cancels. For SGD and its
schedules this is the learning rate, for momentum `eta / (1 - beta)` once the momentum has built up, and for Adam and
sign methods the learning rate. W and H must agree; if one of them does not move, for example because it is frozen, the
other decides. The gradient flow moves the same distance in this time (derived here). An optimizer whose steps depend on
the value of the loss, such as L-BFGS with its line search, has no such time: each of its steps takes the time 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._checks import check_positive, is_traced
from .._errors import UsageError
from ..model.problem import Point
from .transformation import Loss, on_points

FORCE, STEPS, GIVEN = "unit force", "steps", "given"
"""The clocks: the distance under a unit force, time 1 per step, and numbers that the user gave."""

AGREE = 1e-6
"""The largest relative difference between the rates of W and H."""


class Clock(NamedTuple):
    """The times of an optimizer's steps.

    `rule` is one of `FORCE`, `STEPS`, `GIVEN`, or the user's function from the index of a step to its length. `given`
    holds the time that each step takes, or the times of all steps, starting with 0.
    """

    optimizer: optax.GradientTransformation
    label: str
    rule: str | Callable[[Array], Any]
    given: Any = None

    def ticking(self, dtype) -> tuple[Callable[[Any], Any], Any]:
        """A step of the clock, from one carry to the next, and the first carry: time, step, state of the optimizer."""
        begin = (jnp.zeros((), dtype), jnp.zeros((), int))
        if self.rule == FORCE:
            return self._under_force(dtype)
        given, rule = self.given, self.rule
        if callable(rule):
            try:
                jax.eval_shape(lambda step: jnp.reshape(rule(step), ()), begin[1])
            except Exception as error:  # the user's function may raise anything
                raise UsageError(
                    f"clock of {self.label} must take the number of a step and give the time that it takes, but it "
                    f"raises {type(error).__name__}: {error}; make it one that jax.jit can trace."
                ) from error
            return lambda c: (c[0] + jnp.asarray(rule(c[1]), dtype), c[1] + 1), begin
        if np.ndim(given) == 1:
            return lambda c: (jnp.asarray(given, dtype)[c[1] + 1], c[1] + 1), begin
        length = jnp.asarray(1.0 if self.rule == STEPS else given, dtype)
        return lambda c: (c[0] + length, c[1] + 1), begin

    def _under_force(self, dtype):
        rest = Point(jnp.zeros((1, 1), dtype), jnp.zeros((1, 1), dtype), jnp.zeros(1, dtype))
        on_W, on_H = rest._replace(W=-jnp.ones_like(rest.W)), rest._replace(X=-jnp.ones_like(rest.X))
        optimizer = on_points(self.optimizer, self.label, rest)

        def moved(time, state, gradient):
            # Under a constant force, the loss falls by the distance moved.
            loss = Loss(-time, lambda _: -time, lambda _: gradient)
            return optimizer.update(gradient, state, rest, loss)

        def tick(carry):
            time, step, (first, second) = carry
            one, first = moved(time, first, on_W)
            two, second = moved(time, second, on_H)
            of_W, of_H = jnp.squeeze(one.W - two.W), jnp.squeeze(two.X - one.X)
            agreed = jnp.abs(of_W - of_H) <= AGREE * jnp.abs(of_H)
            length = jnp.where(of_H == 0, of_W, jnp.where(agreed | (of_W == 0), of_H, jnp.nan))
            return time + length, step + 1, (first, second)

        return tick, (jnp.zeros((), dtype), jnp.zeros((), int), (optimizer.init(rest), optimizer.init(rest)))

    def times(self, num_steps: int, dtype) -> Float[Array, " steps_and_start"]:
        """The time after each step, starting with 0 before the first step."""
        tick, begin = self.ticking(dtype)

        def step(carry, _):
            carry = tick(carry)
            return carry, carry[0]

        return jnp.concatenate([jnp.zeros(1, dtype), jax.lax.scan(step, begin, None, num_steps)[1]])

    def duration(self, num_steps: int, dtype) -> Float[Array, ""]:
        """The time after the last step."""
        tick, begin = self.ticking(dtype)
        return jax.lax.fori_loop(0, num_steps, lambda _, carry: tick(carry), begin)[0]

    def steps_until(self, time: Float[Array, ""], most: int) -> Int[Array, ""]:
        """The number of steps until a time is reached, or `most` if more would be needed."""
        if np.ndim(self.given) == 1:
            step = jnp.searchsorted(jnp.asarray(self.given, time.dtype), time)
            return jnp.where(step < len(self.given), step, most)
        tick, begin = self.ticking(time.dtype)

        def before(carry):
            step, now = carry[1], carry[0]
            return (now < time) & (step < most) & (now >= 0)

        now, step = jax.lax.while_loop(before, tick, begin)[:2]
        return jnp.where(now >= time, step, most)


def rule_of(optimizer: optax.GradientTransformation, label: str) -> str:
    """The clock of an optimizer: `FORCE`, or `STEPS` if its steps depend on the value of the loss.

    If the optimizer uses the value, three steps under the force decide, along which the loss falls as fast as it can.
    """
    # Only shapes, because an array would start JAX and so fix the number of devices.
    point = jax.eval_shape(lambda: Point(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1)))
    try:
        uses = on_points(optimizer, label, point).uses
    except UsageError:  # raised later if the optimizer fails on the shapes of the run, too
        return FORCE
    if "value_fn" in uses:
        return STEPS
    if "value" not in uses:
        return FORCE
    with jax.ensure_compile_time_eval():
        tick, carry = Clock(optimizer, label, FORCE).ticking(point.X.dtype)
        for _ in range(3):
            carry = tick(carry)
    return FORCE if not is_traced(carry[0]) and 0 < float(carry[0]) < np.inf else STEPS


def checked_clock(clock: Any, num_steps: int) -> tuple[str | Callable, Any]:
    """The rule and the numbers of a user's clock.

    Raises:
        UsageError: for anything but a positive number, a function, or one increasing time per step.
    """
    if callable(clock):
        return clock, None
    if is_traced(clock):
        return GIVEN, clock
    wanted = f"the time that a step takes, a function from the step to it, or the {num_steps} times of the steps"
    try:
        times = np.asarray(clock, float)
    except (TypeError, ValueError):
        raise UsageError(f"clock must be {wanted}, got {clock!r}: give one of these.") from None
    if times.ndim == 0:
        check_positive("clock", clock)
        return GIVEN, clock
    if times.shape == (num_steps,) and times[0] != 0:
        times = np.concatenate([[0.0], times])
    if times.shape != (num_steps + 1,):
        raise UsageError(f"clock must be {wanted}, got an array of shape {np.shape(clock)}: give one of these.")
    increase = np.all(np.isfinite(times)) and np.all(np.diff(times) >= 0)
    if times[0] != 0 or not increase or times[-1] == 0:
        raise UsageError(f"clock must be finite and increase from 0, got {times}: start it at 0 and let no time fall.")
    return GIVEN, times


def check_times(times: np.ndarray, label: str) -> None:
    """Check that the times of the steps are usable.

    Raises:
        UsageError: if they are not finite, decrease, or stay at 0.
    """
    if np.all(np.isfinite(times)) and np.all(np.diff(times) >= 0) and times[-1] > 0:
        return
    shown = f"{', '.join(f'{time:.4g}' for time in times[:4])}{', ..' if len(times) > 4 else ''}"
    raise UsageError(
        f"{label}: the time of its steps cannot be told, it would be {shown}. It is the distance under a unit force, "
        "which must be positive and the same for W and H: give clock=, such as the time that a step takes, clock=0.05."
    )


def checked_saves(steps: np.ndarray, last: int, ts: Any, label: str) -> Any:
    """The save times or their number, as `Descent.saves` returns them; `steps` holds the times of the steps."""
    if isinstance(ts, int):
        kept = steps[spread(last, min(ts, len(steps)))]
        return ts if np.all(np.diff(kept) > 0) else np.unique(kept)
    times = np.asarray(ts)
    if almost(float(times[-1])) > steps[last]:
        raise UsageError(
            f"ts ends at {times[-1]:.6g}, but {label} ends at {steps[last]:.6g}: raise num_steps, or end ts earlier."
        )
    chosen = steps[np.minimum(nearest(steps, times), last)]
    twice = np.flatnonzero(np.diff(chosen) <= 0)
    if twice.size:
        first, second = times[twice[0] : twice[0] + 2]
        raise UsageError(
            f"ts holds {first:.6g} and {second:.6g}, which both fall on the step at time {chosen[twice[0]]:.6g}, and "
            "a descent has states at its steps only: ask for times that are at least a step apart, or for a number of "
            "them."
        )
    return ts


def spread(last: Any, count: int) -> Any:
    """`count` evenly spaced step indices from 0 to `last`; a single one is `last`."""
    xp = np if isinstance(last, int) else jnp
    return xp.round(xp.linspace(last, 0, count)[::-1]).astype(int)


def almost(time: float) -> float:
    """A time just before the given one: clocks are sums of many steps, and schedules compute in single precision."""
    return time * (1 - max(1e-6, 1e4 * float(jnp.finfo(jnp.result_type(float)).eps)))


def nearest(times: Any, ts: Any) -> Any:
    """For each of `ts`, the index of the nearest of the increasing `times`; a NumPy array if `times` is one."""
    middles = (times[1:] + times[:-1]) / 2
    return np.searchsorted(middles, ts) if isinstance(times, np.ndarray) else jnp.searchsorted(middles, ts)

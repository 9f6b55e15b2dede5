"""Discrete descent by any optax optimizer, on the same problem, the same metrics and the same kind of trajectory."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ._checks import check_integer, check_positive, is_traced
from ._errors import UsageError
from .coordinates import check_coordinates
from .model import Point, Problem
from .stopping import Run, Verdict


class Descent(eqx.Module):
    """Gradient descent, or any optax optimizer, with a fixed number of steps.

    Args:
        optimizer: an optax `GradientTransformation` (`optax.sgd(0.05)`), or the name of an optax optimizer (`"sgd"`),
            or a function that makes one (`optax.adam`); the last two take their numbers from `hyperparameters`, so that
            one compilation serves all values.
        num_steps: how many steps.
        coordinates: `"auto"` (class means if the optimizer commutes with rotations, samples otherwise),
            `"class-mean"`, `"sample"`.
        **hyperparameters: `learning_rate=0.05`, `momentum=0.9`, ... for a name or function.

    The time of a step is the distance that the optimizer goes under a constant unit force, starting at rest: the sum of
    the learning rates for SGD and its schedules, `eta / (1 - beta)` a step for momentum once it has picked up, the
    learning rate for Adam and sign methods. In this time the gradient flow goes the same distance (derived here).

    Raises:
        UsageError: for an unknown optimizer, numbers that do not fit it, a num_steps that is not a positive integer, or
            class-mean coordinates for an optimizer that breaks them.

    Source: the paper descends with a fixed step size.
    """

    hyperparameters: dict[str, Any]
    optimizer: str | Callable | optax.GradientTransformation = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    coordinates: str = eqx.field(static=True)

    name = "descent"
    limit = Verdict.step_limit

    def __init__(self, optimizer, num_steps: int, *, coordinates: str = "auto", **hyperparameters):
        check_integer("num_steps", num_steps)
        if isinstance(optimizer, str) and not callable(getattr(optax, optimizer, None)):
            raise UsageError(
                f"optimizer {optimizer!r} is not one of optax's: use a name such as 'sgd', 'adam', 'lion'."
            )
        if isinstance(optimizer, optax.GradientTransformation) and hyperparameters:
            raise UsageError(f"{sorted(hyperparameters)} cannot be set on a ready optimizer: pass its name instead.")
        if not callable(optimizer) and not isinstance(optimizer, str | optax.GradientTransformation):
            raise UsageError(
                f"optimizer must be an optax optimizer, its name, such as 'sgd', or a function that makes one, "
                f"got {optimizer!r}."
            )
        if not callable(hyperparameters.get("learning_rate")):  # a schedule
            check_positive("learning_rate", hyperparameters.get("learning_rate"))
        numbers = {k: v for k, v in hyperparameters.items() if eqx.is_array_like(v) and not isinstance(v, bool)}
        self.hyperparameters = numbers
        self.options = tuple((k, v) for k, v in sorted(hyperparameters.items()) if k not in numbers)
        self.optimizer, self.num_steps = optimizer, num_steps
        self.coordinates = self._checked_coordinates(coordinates)

    def transformation(self) -> optax.GradientTransformation:
        """The optax optimizer itself."""
        return self._with(self.hyperparameters)

    def _with(self, hyperparameters: dict[str, Any]) -> optax.GradientTransformation:
        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        factory = getattr(optax, self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        try:
            return factory(**hyperparameters, **dict(self.options))
        except TypeError as error:
            raise UsageError(f"optimizer {self.label}: {error}.") from None

    @property
    def by_name(self) -> bool:
        """Whether a name and plain numbers say all about the optimizer."""
        plain = all(isinstance(value, bool | int | float | str | None) for _, value in self.options)
        return isinstance(self.optimizer, str) and plain

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its numbers, which vary without a new compilation."""
        return tuple(self.hyperparameters)

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Descent":
        """The same descent with some of its `numbers` replaced."""
        hyperparameters = dict(self.options) | self.hyperparameters | dict(numbers)
        return Descent(self.optimizer, self.num_steps, coordinates=self.coordinates, **hyperparameters)

    @property
    def label(self) -> str:
        """What tables call this method."""
        name = self.optimizer if isinstance(self.optimizer, str) else getattr(self.optimizer, "__name__", "optax")
        return f"descent ({name}, {self.num_steps} steps)"

    def _checked_coordinates(self, coordinates: str) -> str:
        check_coordinates(coordinates)
        if coordinates == "sample":
            return coordinates
        # Whether it commutes is a matter of the kind of optimizer: where a number is traced, another one will do.
        numbers = {k: 0.1 if is_traced(v) else v for k, v in self.hyperparameters.items()}
        exact = commutes_with_rotations(self._with(numbers))
        if coordinates == "class-mean" and not exact:
            raise UsageError(
                f'{self.label} does not commute with rotations of the features, so coordinates="class-mean" would '
                'change its path: use coordinates="sample" or "auto".'
            )
        return coordinates if exact else "sample"

    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any]) -> Run:
        """Descend from `start` and observe at the steps whose times are nearest to `ts`, or at that many of them."""
        optimizer, dtype = self.transformation(), start.X.dtype
        times = self._clock(optimizer, dtype)
        if isinstance(ts, int):
            steps = jnp.round(jnp.linspace(self.num_steps, 0, min(ts, self.num_steps + 1))[::-1]).astype(int)
        else:
            steps = _nearest(times, ts)

        def advance(carry):
            step, point, state = carry
            gradient = jax.tree.map(jnp.negative, problem.field(point))
            updates, state = optimizer.update(gradient, state, point)
            return step + 1, jax.tree.map(jnp.add, point, updates), state

        def descend(carry, step):
            return eqxi.while_loop(lambda c: c[0] < step, advance, carry, max_steps=self.num_steps, kind="checkpointed")

        def to_save(carry, step):
            carry = descend(carry, step)
            return carry, observe(carry[1])

        carry = (jnp.zeros((), int), start, optimizer.init(start))
        carry, observed = jax.lax.scan(to_save, carry, steps)
        end = descend(carry, jnp.asarray(self.num_steps))[1]
        stats = {"taken": jnp.asarray(self.num_steps)}
        return Run(times[steps], observed, end, times[-1], jnp.asarray(False), stats)

    def duration(self) -> Float[Array, ""]:
        """The time after the last step."""
        return self._ticks(self.transformation(), jnp.result_type(float), keep=False)[0]

    def _clock(self, optimizer: optax.GradientTransformation, dtype) -> Float[Array, " steps_and_start"]:
        """The time after each step."""
        times = self._ticks(optimizer, dtype, keep=True)[1]
        return jnp.concatenate([jnp.zeros(1, dtype), cast(Array, times)])

    def _ticks(self, optimizer: optax.GradientTransformation, dtype, keep: bool):
        """How far the optimizer takes one number under a constant unit force: at the end, and after each step."""

        def tick(carry, _):
            position, state = carry
            updates, state = optimizer.update(-jnp.ones((), dtype), state, jnp.zeros((), dtype))
            return (position + updates, state), position + updates if keep else None

        zero = jnp.zeros((), dtype)
        (end, _), times = jax.lax.scan(tick, (zero, optimizer.init(zero)), None, self.num_steps)
        return end, times


def _nearest(times: Float[Array, " steps"], ts: Float[Array, " time"]):
    """For each of `ts`, the index of the nearest of the increasing `times`."""
    middles = (times[1:] + times[:-1]) / 2
    return jnp.searchsorted(middles, ts)


def commutes_with_rotations(optimizer: optax.GradientTransformation) -> bool:
    """Whether the optimizer's steps commute with orthogonal maps of the features, tried out on a rotated matrix.

    True for SGD with schedules, momentum and decay; false for Adam and whatever else looks at single entries. False
    too where it cannot be tried, because the optimizer's own numbers are traced.
    """
    with jax.ensure_compile_time_eval():
        parameters = jnp.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.6]], jnp.float32)
        gradients = [jnp.array(g, jnp.float32) for g in _TRIAL_GRADIENTS]
        rotation = jnp.array([[0.6, -0.8], [0.8, 0.6]], jnp.float32)
        plain = _updates(optimizer, parameters, gradients)
        rotated = _updates(optimizer, parameters @ rotation, [g @ rotation for g in gradients])
        differences = [
            jnp.max(jnp.abs(u @ rotation - v)) / jnp.max(jnp.abs(u)) for u, v in zip(plain, rotated, strict=True)
        ]
    if any(is_traced(d) for d in differences):
        return False
    return max(float(d) for d in differences) < 1e-4


_TRIAL_GRADIENTS = (
    [[1.0, 0.2], [-0.3, 0.7], [0.1, -0.9]],
    [[0.4, -1.2], [0.8, 0.3], [-0.6, 0.2]],
    [[-0.7, 0.5], [0.2, 1.1], [0.9, -0.4]],
)


def _updates(optimizer: optax.GradientTransformation, parameters: Array, gradients: list[Array]) -> list[Array]:
    state, updates = optimizer.init(parameters), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, parameters)
        updates.append(update)
    return updates

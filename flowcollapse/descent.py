"""Discrete descent by any optax optimizer, on the same problem, the same metrics and the same kind of trajectory."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from ._checks import Number, check_integer, check_positive, is_traced
from ._errors import UsageError
from .coordinates import check_coordinates
from .method import Method
from .model import Point, Problem
from .optimizers import check_arguments, factory_of, structural
from .stopping import Run, Verdict


class Descent(Method):
    """Gradient descent, or any optax optimizer, with a fixed number of steps.

    Args:
        optimizer: an optax `GradientTransformation` (`optax.sgd(0.05)`), or the name of an optax optimizer (`"sgd"`),
            or a function that makes one (`optax.adam`); the last two take their numbers from `hyperparameters`, so that
            one compilation serves all values.
        num_steps: how many steps.
        t1: end at the step whose time is nearest to this, if that is before the last one.
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
    t1: Number | None
    optimizer: str | Callable | optax.GradientTransformation = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    coordinates: str = eqx.field(static=True)

    name = "descent"

    def __init__(
        self, optimizer, num_steps: int, *, t1: Number | None = None, coordinates: str = "auto", **hyperparameters
    ):
        check_integer("num_steps", num_steps)
        check_positive("t1", t1)
        if isinstance(optimizer, optax.GradientTransformation) and hyperparameters:
            raise UsageError(f"{sorted(hyperparameters)} cannot be set on a ready optimizer: pass its name instead.")
        if not callable(optimizer) and not isinstance(optimizer, str | optax.GradientTransformation):
            raise UsageError(
                f"optimizer must be an optax optimizer, its name, such as 'sgd', or a function that makes one, "
                f"got {optimizer!r}."
            )
        if not callable(hyperparameters.get("learning_rate")):  # a schedule
            check_positive("learning_rate", hyperparameters.get("learning_rate"))
        self.optimizer, self.num_steps, self.t1 = optimizer, num_steps, t1
        fixed: tuple[str, ...] = ()
        if not isinstance(optimizer, optax.GradientTransformation):
            factory = factory_of(optimizer) if isinstance(optimizer, str) else optimizer
            check_arguments(self._kind, factory, hyperparameters)
            fixed = structural(factory) if isinstance(optimizer, str) else ()
        numbers = {
            name: value
            for name, value in hyperparameters.items()
            if eqx.is_array_like(value) and not isinstance(value, bool) and name not in fixed
        }
        self.hyperparameters = numbers
        self.options = tuple((k, v) for k, v in sorted(hyperparameters.items()) if k not in numbers)
        self.coordinates = self._checked_coordinates(coordinates)

    def transformation(self) -> optax.GradientTransformation:
        """The optax optimizer itself."""
        return self._with(self.hyperparameters)

    def _with(self, hyperparameters: dict[str, Any]) -> optax.GradientTransformation:
        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        factory = factory_of(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        try:
            return factory(**hyperparameters, **dict(self.options))
        except TypeError as error:
            raise UsageError(f"optimizer {self._kind}: {error}.") from None

    @property
    def by_name(self) -> bool:
        """Whether a name and plain numbers say all about the optimizer."""
        plain = all(isinstance(value, bool | int | float | str | None) for _, value in self.options)
        return isinstance(self.optimizer, str) and plain

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its numbers, which vary without a new compilation."""
        return (*self.hyperparameters, "t1")

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Descent":
        """The same descent with some of its `numbers` replaced."""
        if not callable(numbers.get("learning_rate")):
            check_positive("learning_rate", numbers.get("learning_rate"))
        check_positive("t1", numbers.get("t1"))
        if not numbers:
            return self

        def places(one: Descent) -> list:
            return [one.t1 if name == "t1" else one.hyperparameters[name] for name in numbers]

        # The kind of optimizer, and with it the coordinates, are known already.
        return eqx.tree_at(places, self, list(numbers.values()), is_leaf=lambda x: x is None)

    def with_steps(self, num_steps: int) -> "Descent":
        """The same descent with another number of steps."""
        numbers = dict(self.options) | self.hyperparameters
        return Descent(self.optimizer, num_steps, t1=self.t1, coordinates=self.coordinates, **numbers)

    @property
    def limit(self) -> Verdict:
        """The verdict of a run that ended before the plateau, as it was told to."""
        return Verdict.step_limit if self.t1 is None else Verdict.time_limit

    @property
    def _kind(self) -> str:
        return self.optimizer if isinstance(self.optimizer, str) else getattr(self.optimizer, "__name__", "optax")

    @property
    def label(self) -> str:
        """What tables call this method."""
        return f"descent ({self._kind}, {self.num_steps} steps)"

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
        times = self.clock(dtype)
        last = jnp.asarray(self.num_steps) if self.t1 is None else _nearest(times, jnp.asarray(self.t1, dtype))
        if isinstance(ts, int):
            steps = jnp.round(jnp.linspace(last, 0, min(ts, self.num_steps + 1))[::-1]).astype(int)
        else:
            steps = jnp.minimum(_nearest(times, ts), last)

        def advance(carry):
            step, point, state = carry
            gradient = jax.tree.map(jnp.negative, problem.field(point))
            updates, state = optimizer.update(gradient, state, point)
            return step + 1, jax.tree.map(jnp.add, point, updates), state

        def to_save(carry, step):
            carry = eqxi.while_loop(
                lambda c: c[0] < step, advance, carry, max_steps=self.num_steps, kind="checkpointed"
            )
            return carry, observe(carry[1])

        # The end is one more save, so that the step is compiled once.
        carry = (jnp.zeros((), int), start, optimizer.init(start))
        (_, end, _), observed = jax.lax.scan(to_save, carry, jnp.append(steps, last))
        observed = jax.tree.map(lambda x: x[:-1], observed)
        return Run(times[steps], observed, end, times[last], jnp.asarray(False), {"taken": last})

    def clock(self, dtype) -> Float[Array, " steps_and_start"]:
        """The time after each step, from 0 before the first."""
        tick, begin = self._ticking(dtype)

        def step(carry, _):
            carry = tick(carry)
            return carry, carry[0]

        return jnp.concatenate([jnp.zeros(1, dtype), jax.lax.scan(step, begin, None, self.num_steps)[1]])

    def duration(self) -> Float[Array, ""]:
        """The time after the last step."""
        tick, begin = self._ticking(jnp.result_type(float))
        return jax.lax.fori_loop(0, self.num_steps, lambda _, carry: tick(carry), begin)[0]

    def steps_until(self, time: Float[Array, ""], most: int) -> Int[Array, ""]:
        """How many steps it takes until a time is reached; `most` if that many are not enough."""
        tick, begin = self._ticking(time.dtype)

        def before(carry):
            step, (now, _) = carry
            return (now < time) & (step < most) & (now >= 0)

        step, (now, _) = jax.lax.while_loop(before, lambda c: (c[0] + 1, tick(c[1])), (jnp.zeros((), int), begin))
        return jnp.where(now >= time, step, most)

    def _ticking(self, dtype):
        """How the optimizer takes one number along under a constant unit force: a step, and what it begins with."""
        optimizer, rest = self.transformation(), jnp.zeros(1, dtype)  # an array, as some optimizers need one

        def tick(carry):
            time, state = carry
            updates, state = optimizer.update(-jnp.ones(1, dtype), state, rest)
            return time + jnp.squeeze(cast(Array, updates)), state

        return tick, (jnp.zeros((), dtype), optimizer.init(rest))


def _nearest(times: Float[Array, " steps"], ts: Float[Array, "*times"]) -> Int[Array, "*times"]:
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
        gradients = list(jnp.asarray(np.random.default_rng(0).standard_normal((TRIALS, 3, 2)), jnp.float32))
        rotation = jnp.array([[0.6, -0.8], [0.8, 0.6]], jnp.float32)
        plain = _updates(optimizer, parameters, gradients)
        rotated = _updates(optimizer, parameters @ rotation, [g @ rotation for g in gradients])
        differences = [
            jnp.max(jnp.abs(u @ rotation - v)) / jnp.max(jnp.abs(u)) for u, v in zip(plain, rotated, strict=True)
        ]
    if any(is_traced(d) for d in differences):
        return False
    return max(float(d) for d in differences) < 1e-4


TRIALS = 8
"""Steps that are tried: RAdam is momentum alone for the first five."""


def _updates(optimizer: optax.GradientTransformation, parameters: Array, gradients: list[Array]) -> list[Array]:
    state, updates = optimizer.init(parameters), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, parameters)
        updates.append(update)
    return updates

"""Discrete descent with any optax optimizer, with the same problem, metrics and kind of trajectory as a flow."""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import cloudpickle
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._checks import Number, check_choice, check_integer, check_positive, is_traced, shown
from .._errors import UsageError
from ..endings.verdict import Verdict
from ..model.coordinates import check_coordinates, enter
from ..model.problem import Point, Problem
from ..model.state import State
from ..model.ufm import UFM
from .base import Run, SteppedMethod
from .clock import Clock, check_times, checked_clock, checked_saves, nearest, rule_of, spread
from .equivariance import obstacle
from .optimizers import check_arguments, factory_of, missing, structural
from .transformation import Loss, on_points

LOOPS: Mapping[str, Any] = {"reverse": "checkpointed", "forward": "lax"}
"""The kind of loop for each way to differentiate a run."""


class Descent(SteppedMethod):
    """Gradient descent, or any optax optimizer, with a fixed number of steps.

    Args:
        optimizer: an optax `GradientTransformation` (`optax.sgd(0.05)`), or the name of an optax optimizer (`"sgd"`),
            or a function that makes one (`optax.adam`). The last two take their numbers from `hyperparameters`, so
            one compilation serves all values.
        num_steps: the number of steps.
        t1: end at the step whose time is nearest to this, if that is before the last step.
        coordinates: `"auto"` (class means if the optimizer is proved to commute with the change of coordinates, samples
            otherwise), `"class-mean"`, `"sample"`.
        clock: the time that a step takes, a function from the index of a step (0, 1, ...) to this time, or the times of
            all steps. Default: the distance that the optimizer moves under a unit force.
        adjoint: how the run is differentiated: `"reverse"` (for `jax.grad`, with checkpoints) or `"forward"` (for
            `jax.jvp`, `jax.jacfwd` and nested uses of them).
        **hyperparameters: `learning_rate=0.05`, `momentum=0.9`, ... for a name or function. With a name, a required
            number may be left open, for an axis of a sweep.

    The optimizer sees the parameters as `{"W": ..., "H": ..., "b": ...}`. Masks and labels are dictionaries with these
    keys, as in `optax.multi_transform({"moves": optax.sgd(0.05), "rests": optax.set_to_zero()}, {"W": "moves", "H":
    "moves", "b": "rests"})`. An optimizer that uses the loss (`value`, `grad`, `value_fn`), such as `optax.lbfgs()`,
    gets it.

    The time of a step is the distance that the optimizer moves, starting at rest, under a constant unit force on an
    entry of W. It must be the same for H if both move. It is the learning rate for SGD and its schedules,
    `eta / (1 - beta)` for momentum once the momentum has built up, and the learning rate for Adam and sign methods. The
    gradient flow moves the same distance in this time (derived here). b does not affect the time. If the steps of an
    optimizer depend on the value of the loss, as in L-BFGS, each step takes the time 1.

    Class means and compressed rows are used if every update is proved to be a sum of gradients, parameters and earlier
    updates times norms, inner products and numbers. Then all steps commute with the isometries between the coordinates,
    at every magnitude and for any number of steps (see `flowcollapse/methods/equivariance.py`).

    Raises:
        UsageError: for an unknown optimizer, numbers that do not fit it, a num_steps that is not a positive integer, a
            clock that does not increase, an unknown adjoint, or class-mean coordinates for an optimizer that may not
            commute with them.

    Source: the paper descends with a fixed step size.

    Example:
        >>> import optax, flowcollapse as fc
        >>> fc.Descent("sgd", num_steps=100, learning_rate=0.05).coordinates
        'auto'
        >>> fc.Descent(optax.adam(0.01), num_steps=100).coordinates
        'sample'
    """

    hyperparameters: dict[str, Any]
    t1: Number | None
    clock: Any
    optimizer: str | Callable | optax.GradientTransformation = eqx.field(static=True)
    options: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    coordinates: str = eqx.field(static=True)
    ticks: str | Callable = eqx.field(static=True)
    adjoint: str = eqx.field(static=True)

    name = "descent"

    def __init__(
        self,
        optimizer,
        num_steps: int,
        *,
        t1: Number | None = None,
        coordinates: str = "auto",
        clock: Any = None,
        adjoint: Any = "reverse",
        **hyperparameters,
    ):
        check_integer("num_steps", num_steps)
        check_positive("t1", t1)
        check_coordinates(coordinates)
        check_choice("adjoint", adjoint, LOOPS)
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        ready = isinstance(optimizer, optax.GradientTransformation)
        if ready and hyperparameters:
            raise UsageError(f"{sorted(hyperparameters)} cannot be set on a ready optimizer: pass its name instead.")
        if not ready and not callable(optimizer) and not isinstance(optimizer, str):
            raise UsageError(
                f"optimizer must be an optax optimizer, its name, such as 'sgd', or a function that makes one, "
                f"got {shown(optimizer)}: pass one of these."
            )
        if not callable(hyperparameters.get("learning_rate")):  # a schedule
            check_positive("learning_rate", hyperparameters.get("learning_rate"))
        self.optimizer, self.num_steps, self.t1, self.adjoint = optimizer, int(num_steps), t1, adjoint
        left, fixed = (), ()
        if not isinstance(optimizer, optax.GradientTransformation):
            factory = factory_of(optimizer) if isinstance(optimizer, str) else optimizer
            left = missing(factory, hyperparameters) if isinstance(optimizer, str) else ()
            hyperparameters |= dict.fromkeys(left)
            check_arguments(self._kind, factory, hyperparameters)
            fixed = structural(factory) if isinstance(optimizer, str) else ()
        numbers = {
            name: value
            for name, value in hyperparameters.items()
            if name in left or (eqx.is_array_like(value) and not isinstance(value, bool) and name not in fixed)
        }
        self.hyperparameters = numbers
        self.options = tuple((k, v) for k, v in sorted(hyperparameters.items()) if k not in numbers)
        # The rest depends only on the kind of optimizer, so 0.1 can replace a number that is traced or open.
        stands = {k: 0.1 if v is None or is_traced(v) else v for k, v in numbers.items()}
        example = self._with(stands)
        self.ticks, self.clock = (
            (rule_of(example, self._kind), None) if clock is None else checked_clock(clock, self.num_steps)
        )
        self.coordinates = self._checked_coordinates(coordinates, example)

    def transformation(self) -> optax.GradientTransformation:
        """The optax optimizer itself.

        Raises:
            UsageError: if a number is still open.
        """
        self.check_closed(self.open)
        return self._with(self.hyperparameters)

    def _with(self, hyperparameters: dict[str, Any]) -> optax.GradientTransformation:
        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        factory = factory_of(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        try:
            made = factory(**hyperparameters, **dict(self.options))
        except (TypeError, ValueError) as error:
            raise UsageError(f"optimizer {self._kind}: {error}; change these arguments.") from None
        if not isinstance(made, optax.GradientTransformation):
            raise UsageError(
                f"optimizer {self._kind} must make an optax optimizer, and it made {shown(made)}: "
                "pass a function such as optax.sgd."
            )
        return made

    @property
    def open(self) -> tuple[str, ...]:
        """The names of the numbers that the descent still needs."""
        return tuple(name for name, value in self.hyperparameters.items() if value is None)

    def check_closed(self, left: Sequence[str]) -> None:
        """Raise `UsageError` if numbers are still open."""
        if left:
            raise UsageError(
                f"optimizer {self._kind} needs {left[0]}, and it is open: give it, as in {left[0]}=0.05, or make it an "
                "axis."
            )

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the descent's numbers, which can vary without a new compilation."""
        return (*self.hyperparameters, "t1")

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Descent":
        """The same descent with some of its `numbers` replaced.

        Raises:
            UsageError: for anything but a number, such as a schedule, and for values out of range.
        """
        for name, value in numbers.items():
            if not is_traced(value) and np.asarray(value).dtype.kind not in "iuf":
                raise UsageError(
                    f"{name} takes numbers here, got {value!r}: run each schedule or option as a descent by itself, "
                    f'fc.Descent("sgd", 1000, {name}=...).'
                )
        check_positive("learning_rate", numbers.get("learning_rate"))
        check_positive("t1", numbers.get("t1"))
        if not numbers:
            return self

        def places(one: Descent) -> list:
            return [one.t1 if name == "t1" else one.hyperparameters[name] for name in numbers]

        # The kind of optimizer does not change, so the coordinates need no new check.
        return eqx.tree_at(places, self, list(numbers.values()), is_leaf=lambda x: x is None)

    def with_steps(self, num_steps: int) -> "Descent":
        """The same descent with another number of steps."""
        fields = vars(self) | {"num_steps": num_steps}
        return _revived(fields)

    @property
    def limit(self) -> Verdict:
        """The verdict of a run that stopped before the plateau, as requested."""
        return Verdict.step_limit if self.t1 is None else Verdict.time_limit

    @property
    def _kind(self) -> str:
        return self.optimizer if isinstance(self.optimizer, str) else getattr(self.optimizer, "__name__", "optax")

    @property
    def label(self) -> str:
        """The name of this method in tables."""
        return f"descent ({self._kind}, {self.num_steps} steps)"

    def _checked_coordinates(self, coordinates: str, example: optax.GradientTransformation) -> str:
        """The requested coordinates if the optimizer may use them, as judged by the example shapes."""
        return coordinates if coordinates == "sample" else self._proved(coordinates, example, *SHAPES)

    def coordinates_for(self, model: UFM, start: State) -> str:
        """The coordinates of a run: the requested ones if the path is proved to be the same on the run's shapes."""
        if self.coordinates == "sample":
            return "sample"
        reduced = jax.eval_shape(lambda one: enter(model, one, self.coordinates)[2], start)
        C, p, dtype = model.num_classes, model.num_features, start.X.dtype
        return self._proved(self.coordinates, self.transformation(), _shapes(C, p, model.num_samples, dtype), reduced)

    def _proved(self, coordinates: str, optimizer, samples: Point, reduced: Point) -> str:
        try:
            reason = obstacle(optimizer, self._kind, samples, reduced)
        except UsageError as error:
            reason = str(error).rstrip(".")
        if reason is None:
            return coordinates
        if coordinates == "class-mean":
            raise UsageError(
                f'{self.label} does not commute with rotations of the features, so coordinates="class-mean" would '
                f'change its path ({reason}): use coordinates="sample" or "auto".'
            )
        return "sample"

    def saves(self, ts: Any, dtype) -> Any:
        """The save times, or their number. A number becomes times if some of its evenly spaced steps share a time.

        Raises:
            UsageError: for an open number, steps without usable times, times beyond the last step, and two times that
                fall on one step. Only open numbers are known inside jit.
        """
        self.check_closed(self.open)
        steps = None if is_traced(ts) else _known_times(self, dtype)
        if steps is None:
            return ts
        check_times(steps, self.label)
        last = self.num_steps if self.t1 is None else int(nearest(steps, np.asarray(self.t1, dtype)))
        return checked_saves(steps, last, ts, self.label)

    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any] | None) -> Run:
        """Descend from `start` and observe at the steps whose times are nearest to `ts`, or at `ts` many steps."""
        dtype = start.X.dtype
        optimizer = on_points(self.transformation(), self._kind, start)
        times = self.step_times(dtype)
        last = jnp.asarray(self.num_steps) if self.t1 is None else nearest(times, jnp.asarray(self.t1, dtype))
        steps = (
            spread(last, min(ts, self.num_steps + 1)) if isinstance(ts, int) else jnp.minimum(nearest(times, ts), last)
        )

        def gradient(point: Point) -> Point:
            return jax.tree.map(jnp.negative, problem.field(point))

        def advance(carry):
            step, point, state = carry
            loss = Loss(problem.risk(point), problem.risk, gradient) if optimizer.uses else None
            updates, state = optimizer.update(gradient(point), state, point, loss)
            return step + 1, jax.tree.map(jnp.add, point, updates), state

        def to_save(carry, step):
            carry = eqxi.while_loop(
                lambda c: c[0] < step, advance, carry, max_steps=self.num_steps, kind=LOOPS[self.adjoint]
            )
            return carry, carry[1] if observe is None else observe(carry[1])

        # The end is an additional save, so that the step is compiled only once.
        carry = (jnp.zeros((), int), start, optimizer.init(start))
        (_, end, _), observed = jax.lax.scan(to_save, carry, jnp.append(steps, last))
        observed = jax.tree.map(lambda x: x[:-1], observed)
        return Run(times[steps], observed, end, times[last], jnp.asarray(False), {"taken": last})

    def _clock(self) -> Clock:
        return Clock(self.transformation(), self._kind, self.ticks, self.clock)

    def step_times(self, dtype) -> Float[Array, " steps_and_start"]:
        """The time after each step, starting with 0 before the first step."""
        return self._clock().times(self.num_steps, dtype)

    def duration(self) -> Float[Array, ""]:
        """The time after the last step."""
        return self._clock().duration(self.num_steps, jnp.result_type(float))

    def steps_until(self, time: Float[Array, ""], most: int) -> Int[Array, ""]:
        """The number of steps until a time is reached, or `most` if more would be needed."""
        return self._clock().steps_until(time, most)

    def __reduce__(self):
        """Optimizers are closures, which `cloudpickle` can pickle and `pickle` cannot."""
        fields = vars(self)
        functions = {name: fields[name] for name in ("optimizer", "options", "ticks")}
        try:
            packed = cloudpickle.dumps(functions)
        except Exception as error:  # the user's objects may raise anything
            raise UsageError(
                f"{self.label} cannot be pickled: {type(error).__name__}: {error}; name the optimizer, as in "
                'fc.Descent("sgd", 1000, learning_rate=0.05).'
            ) from error
        return _unpacked, ({name: value for name, value in fields.items() if name not in functions}, packed)

    def __deepcopy__(self, memo: dict) -> "Descent":
        return jax.tree.map(lambda x: copy.deepcopy(x, memo), self)


def _revived(fields: Mapping[str, Any]) -> Descent:
    """A descent with the given fields, which have been checked before."""
    descent = object.__new__(Descent)
    for name, value in fields.items():
        object.__setattr__(descent, name, value)
    return descent


def _unpacked(fields: Mapping[str, Any], functions: bytes) -> Descent:
    return _revived({**fields, **cloudpickle.loads(functions)})


def _shapes(C: int, p: int, n: int, dtype) -> Point:
    return Point(*(cast(Any, jax.ShapeDtypeStruct(shape, dtype)) for shape in ((C, p), (p, n), (C,))))


SHAPES = (_shapes(3, 11, 13, np.float32), _shapes(3, 7, 5, np.float32))
"""Example shapes of points in samples and in reduced coordinates; most optimizers can be judged from them alone."""


def _known_times(method: Descent, dtype) -> np.ndarray | None:
    """The times of the steps, or None if they are traced."""
    if any(map(is_traced, jax.tree.leaves(method))):
        return None
    with contextlib.suppress(jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError):
        with jax.ensure_compile_time_eval():
            times = _step_times(method, np.dtype(dtype))
        return None if is_traced(times) else np.asarray(times)
    return None


@eqx.filter_jit
def _step_times(method: Descent, dtype: np.dtype) -> Float[Array, " steps_and_start"]:
    return method.step_times(dtype)

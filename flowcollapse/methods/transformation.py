"""An optax optimizer applied to the points of a problem: the tree that it sees, and the loss if it uses the loss.

An optimizer sees the parameters as `{"W": ..., "H": ..., "b": ...}`: the classifier, the features and the bias. Labels
and masks are dictionaries with the same keys: `{"W": "slow", "H": "slow", "b": "fast"}`. Named tuples with the fields
W, X, b and plain tuples in the order W, H, b also work.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._errors import UsageError
from ..model.problem import Point


class Form(NamedTuple):
    """A form of the tree that optimizers see, and the inverse map to the point."""

    wrap: Callable[[Point], Any]
    unwrap: Callable[[Any], Point]


FORMS = (
    Form(lambda point: {"W": point.W, "H": point.X, "b": point.b}, lambda tree: Point(tree["W"], tree["H"], tree["b"])),
    Form(lambda point: point, lambda tree: tree),
    Form(tuple, lambda tree: Point(*tree)),
)
"""The forms of the tree that an optimizer is tried on, in this order. Labels and masks must have one of them."""


class Loss(NamedTuple):
    """The inputs of an optimizer besides the gradient: the value at the point, and the functions."""

    value: Float[Array, ""]
    value_fn: Callable[[Point], Float[Array, ""]]
    gradient_fn: Callable[[Point], Point]


class OnPoints(NamedTuple):
    """An optimizer of points, and the parts of the loss that it uses: "value", "value_fn", "grad_fn"."""

    optimizer: optax.GradientTransformation
    label: str
    form: Form
    takes: tuple[str, ...]
    uses: frozenset[str]

    def init(self, point: Point) -> Any:
        """The state at the start, in the precision that it has after an update."""
        state = self.optimizer.init(self.form.wrap(point))
        zero = Loss(jnp.zeros((), point.X.dtype), _sum, _ones)
        after = jax.eval_shape(lambda s: self._updated(point, s, point, zero)[1], state)
        if jax.tree.structure(after) != jax.tree.structure(state):
            raise UsageError(
                f"optimizer {self.label} changes the structure of its state: use one whose state keeps it."
            )
        return jax.tree.map(_like, state, after)

    def update(self, gradient: Point, state: Any, point: Point, loss: Loss | None) -> tuple[Point, Any]:
        """The step to add to the point, and the next state. `loss` may be None if the optimizer does not use it."""
        loss = loss or Loss(jnp.zeros((), point.X.dtype), _sum, _ones)
        updates, after = self._updated(gradient, state, point, loss)
        return jax.tree.map(_like, updates, point), jax.tree.map(_like, after, state)

    def _updated(self, gradient: Point, state: Any, point: Point, loss: Loss) -> tuple[Point, Any]:
        wrap, unwrap = self.form
        tree = wrap(gradient)
        offered = {
            "value": loss.value,
            "grad": tree,
            "value_fn": lambda at, *_, **__: loss.value_fn(unwrap(at)),
            "grad_fn": lambda at, *_, **__: wrap(loss.gradient_fn(unwrap(at))),
        }
        offered["obj_fn"] = offered["value_fn"]
        more = {name: offered[name] for name in self.takes}
        updates, after = self.optimizer.update(tree, state, wrap(point), **more)  # pyright: ignore[reportCallIssue]
        return unwrap(updates), after

    def init_program(self, point: Point) -> Any:
        """The program of `init`."""
        return jax.make_jaxpr(self.init)(point)

    def update_program(self, point: Point) -> Any:
        """The program of a step, from gradient, state, point and value to step and state."""
        state = jax.eval_shape(self.init, point)
        value = jax.ShapeDtypeStruct((), point.X.dtype)

        def step(gradient, state, point, value):
            return self.update(gradient, state, point, Loss(value, _sum, _ones))

        return jax.make_jaxpr(step)(point, state, point, value)


OFFERED = ("value", "grad", "value_fn", "grad_fn", "obj_fn")
"""The names an optimizer may accept besides gradients, state and parameters. optax uses the first three."""


def on_points(optimizer: optax.GradientTransformation, label: str, point: Point) -> OnPoints:
    """An optimizer for points of the shapes of `point`, with the first of `FORMS` that its labels fit.

    Raises:
        UsageError: if the optimizer fails on all forms; the message gives the first reason.
    """
    point = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), point)
    first: Exception | None = None
    for form, takes in itertools.product(FORMS, _taken(optimizer)):
        one = OnPoints(optimizer, label, form, takes, frozenset())
        try:
            return one._replace(uses=_used(one, point))
        except UsageError:
            raise
        except Exception as error:  # the user's optimizer may raise anything
            first = first or error
    reason = str(first).strip().splitlines()
    raise UsageError(
        f"optimizer {_called(optimizer, label)} fails on the parameters {{'W', 'H', 'b'}}: {type(first).__name__}"
        f"{': ' + reason[0] if reason else ''}. Make labels and masks dictionaries with these keys."
    ) from first


def _called(optimizer: optax.GradientTransformation, label: str) -> str:
    """The name of an optimizer. A ready optimizer has the name of the function that made it."""
    made, _, inner = getattr(optimizer.update, "__qualname__", "").partition(".")
    return f"{label}.{made}" if label == "optax" and inner else label


def _taken(optimizer: optax.GradientTransformation) -> list[tuple[str, ...]]:
    """The sets of names in `OFFERED` to try, from the signature of the update: some optimizers refuse other names."""
    try:
        parameters = inspect.signature(optimizer.update).parameters
    except (TypeError, ValueError):  # a built-in function does not tell
        return [()]
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return [OFFERED[:3], OFFERED]
    return [tuple(name for name in OFFERED if name in parameters)]


def _used(one: OnPoints, point: Point) -> frozenset[str]:
    """The parts of the loss that the optimizer uses, found by tracing a step."""
    uses = set()

    def told(name, function):
        def telling(at):
            uses.add(name)
            return function(at)

        return telling

    def step(value, gradient, point):
        loss = Loss(value, told("value_fn", _sum), told("grad_fn", _ones))
        state = one.init(point)
        uses.clear()
        return one.update(gradient, state, point, loss)

    found = jax.make_jaxpr(step)(jax.ShapeDtypeStruct((), point.X.dtype), point, point)
    value = found.jaxpr.invars[0]
    if any(variable is value for equation in found.jaxpr.eqns for variable in equation.invars):
        uses.add("value")
    return frozenset(uses)


def _sum(point: Point) -> Float[Array, ""]:
    return sum(map(jnp.sum, point), jnp.zeros((), point.X.dtype))


def _ones(point: Point) -> Point:
    return jax.tree.map(jnp.ones_like, point)


def _like(value: Any, wanted: Any) -> Any:
    """A value in the dtype of another value."""
    if value.shape != wanted.shape:
        raise ValueError(f"an array of shape {value.shape} where {wanted.shape} was to be")
    return value if value.dtype == wanted.dtype else value.astype(wanted.dtype)

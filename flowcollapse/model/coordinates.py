"""Exact changes of coordinates: samples to class means, features to the rows that move, bias to mean residual.

Three maps, each with an inverse, that can be combined:

- columns: `H` to `[B, L]` (see `columns.py`), exact for the squared error, and for any loss if all samples of each
  class are equal, so that `L = 0`; no size depends on the samples per class;
- rows: the columns of `W^T` and `X` never leave the span of the columns at the start, so p features become
  `q = min(p, 2C + r)`; exact for any loss of the logits with L2 decay;
- mean residual: `b` to `e = (W X u + a b - T u) / a`, `a = ||u||^2 = n_tot`, the only stiff variable of the flow, which
  obeys a linear diagonal equation plus a mild forcing.

The first two are isometries: gradient steps, momentum and Runge-Kutta steps commute with them (all derived here).
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_choice, is_traced
from .._errors import UsageError
from .._linalg.algebra import qr
from ..programs import SMALL, Program
from .columns import ClassMeanColumns, Columns, class_mean_columns, root_counts
from .problem import Point, Problem, problem_of
from .requirements import check_one, check_state
from .state import State
from .ufm import UFM

COORDINATES = ("auto", "sample", "class-mean")


class Frame(eqx.Module):
    """The coordinates of a run: the columns of the features and, if compressed, an orthonormal basis of their rows."""

    columns: Columns
    rows: Float[Array, "*lanes p q"] | None = None

    def leave(self, point: Point) -> State:
        """The state with all p rows that a point of this frame represents. Leading axes are allowed."""
        W, X, b = point
        if self.rows is not None:
            W, X = _all_rows(self.rows, W, X, quick=X.size <= SMALL)
        return State(X=X, W=W, b=b, columns=self.columns)

    def without_samples(self) -> "Frame":
        """The same frame without the map back to the samples, which a program would copy."""
        return Frame(self.columns.without_arrays(), self.rows)

    def of(self, start: State) -> "Frame":
        """The same frame with the map back to the samples of the start that it was made for."""
        if not self.columns.reduced:
            return self
        return Frame(start.columns if start.columns.reduced else self.columns.leading_to(start.X), self.rows)

    def problem(self, model: UFM) -> Problem:
        """The problem in this frame."""
        return Problem(model, self.columns.of_counts(model.counts))

    @property
    def name(self) -> str:
        """The name of the coordinates in a trajectory."""
        columns = self.columns.name
        return columns if self.rows is None else f"{columns}, {self.rows.shape[-2]} rows as {self.rows.shape[-1]}"


@Program
def _all_rows(rows: Array, W: Array, X: Array) -> tuple[Array, Array]:
    rows = rows.reshape(rows.shape[:-2] + (1,) * (W.ndim - rows.ndim) + rows.shape[-2:])
    return W @ jnp.swapaxes(rows, -1, -2), rows @ X


def check_coordinates(coordinates: str) -> None:
    """Raise `UsageError` unless `coordinates` is one of `COORDINATES`."""
    check_choice("coordinates", coordinates, COORDINATES)


def enter(model: UFM, state: State, coordinates: str) -> tuple[Frame, Problem, Point]:
    """The frame for `coordinates`, the problem in this frame and the state as a point of it.

    `"sample"` takes the features as they are (and computes the features of a state that was drawn already reduced).
    `"class-mean"` reduces the columns. `"auto"` reduces the columns if that is exact, and also compresses the rows if
    that at least halves them. Whether a state is collapsed within its classes is decided before, by `reducible`.

    Raises:
        UsageError: if `coordinates` is unknown, or for class means with a loss that does not allow them.
    """
    check_state(model, state)
    exact = ClassMeanColumns(model.counts).admits(model.loss)
    reduced = state.columns.reduced
    check_coordinates(coordinates)
    if coordinates == "class-mean" and not exact and not reduced:
        raise _not_collapsed(model, "the samples may differ")
    if coordinates == "sample":
        state = State(H=state.H, W=state.W, b=state.b)
    elif exact and not reduced:
        state = to_class_means(model, state)
    problem, point = problem_of(model, state)
    rows = None
    if coordinates == "auto" and 2 * (model.num_classes + point.X.shape[1]) <= model.num_features:
        rows = qr(jnp.concatenate([point.W.T, point.X], axis=1))[0]
        point = Point(point.W @ rows, rows.T @ point.X, point.b)
    return Frame(state.columns, rows), problem, point


def reducible(model: UFM, state: State, coordinates: str = "class-mean") -> State:
    """The state in class means alone, if the loss allows no other class-mean columns and the state is collapsed.

    A state is collapsed if all samples of a class are equal, which must be known. Then the part within the classes
    stays zero along every flow and every descent that commutes with the permutations of the samples, for any loss
    (derived here). Any other state is returned as it is.

    Raises:
        UsageError: for `coordinates="class-mean"` with a state that is not collapsed, or not known to be.
    """
    reduced = ClassMeanColumns(model.counts)
    if state.columns.reduced or reduced.admits(model.loss) or coordinates == "sample":
        return state
    if is_traced(state.X):
        if coordinates == "class-mean":
            raise _not_collapsed(model, "the start is traced, so they may differ")
        return state
    H = np.asarray(state.X)
    first = np.cumsum((0, *model.counts[:-1]))
    if np.array_equal(H, np.repeat(H[..., first], model.counts, axis=-1)):
        means = jnp.asarray(H[..., first]) * root_counts(model.counts, state.X.dtype)
        return State(X=means, W=state.W, b=state.b, columns=reduced)
    if coordinates == "class-mean":
        raise _not_collapsed(model, "they do differ")
    return state


def _not_collapsed(model: UFM, reason: str) -> UsageError:
    return UsageError(
        f"class-mean columns of samples that differ within a class are exact for quadratic losses only, the loss is "
        f'{model.loss.text!r}, and {reason}: use the samples, coordinates="sample".'
    )


def to_class_means(model: UFM, state: State) -> State:
    """The same state in class-mean columns `state.B` and `state.L`; `state.H` is still the same up to rounding.

    Args:
        model: the model.
        state: one state, without leading axes.

    Raises:
        UsageError: if the shapes of the state do not fit the model, for leading axes, or if class means change the
            loss: they do unless it is quadratic, or all samples of each class are equal.

    Source: derived here; see `columns.py`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=50, num_features=4)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> fc.to_class_means(model, start).L.shape
        (4, 4)
    """
    check_state(model, state)
    if state.columns.reduced:
        return state
    check_one(state, "state")
    state = reducible(model, state)
    if state.columns.reduced:
        return state
    X, columns = class_mean_columns(state.X, model.counts)
    return State(X=X, W=state.W, b=state.b, columns=columns)


def state_size(model: UFM) -> int:
    """The size of a state in compressed rows and, if the loss allows them, class-mean columns."""
    C = model.num_classes
    within = model.num_samples - C
    columns = C + (min(model.num_features, within) if ClassMeanColumns(model.counts).admits(model.loss) else within)
    return min(model.num_features, C + columns) * (C + columns) + C

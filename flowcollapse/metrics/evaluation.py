"""Metrics of a state, or of the points of a run."""

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from .._errors import UsageError
from .._linalg.algebra import in_blocks
from ..model.batch import of_states
from ..model.problem import Point, Problem, problem_of
from ..model.requirements import check_state
from ..model.state import State
from ..model.ufm import UFM
from .balance import Reference
from .registry import METRICS, checked_names, usual
from .view import View


def reference(start: Point | None, names: Sequence[str]) -> Reference | None:
    """The data of the start that the named metrics need; they are the same for all points of a run."""
    return None if start is None or "balancedness" not in names else Reference.of(start)


def prepared(problem: Problem, names: Sequence[str], point: Point, start: Point | None) -> tuple[Problem, Any]:
    """Compute once what the named metrics need at all points of a run: single samples in the problem, and the start.

    `point` is any point of the run.
    """
    if any(METRICS[name].samples for name in names):
        problem = Problem(problem.model, problem.columns.ready(point.X))
    return problem, reference(start, names)


def observe(
    problem: Problem, point: Point, names: Sequence[str], start: Point | Reference | None
) -> dict[str, Float[Array, ""]]:
    """The named metrics of one point."""
    start = start if isinstance(start, Reference) else reference(start, names)
    view = View(problem, point, *problem.split(point.X), start)
    return {name: METRICS[name].function(view) for name in names}


def observe_many(
    problem: Problem, points: Point, names: Sequence[str], start: Point | None
) -> dict[str, Float[Array, " time"]]:
    """The named metrics of points with one leading axis, computed in blocks to bound the memory."""
    first = jax.tree.map(lambda x: x[0], points)
    problem, origin = prepared(problem, names, first, start)
    return in_blocks(lambda point: observe(problem, point, names, origin), points, observed_size(first))


def observed_size(point: Point) -> int:
    """The size of the largest intermediate array in the metrics of a point: Gram matrices, logits, imbalances."""
    (C, p), n = point.W.shape, point.X.shape[1]
    return max(C, p) * max(C, p, n)


def evaluate(
    model: UFM, state: State, names: Any = None, *, start: State | None = None
) -> dict[str, Float[Array, "*batch"]]:
    """Metrics of a state, by name.

    Args:
        model: the model.
        state: a state of it, with any leading axes.
        names: the metrics, as a text with commas or any iterable of texts. Default: all metrics of the model and the
            state that are not only on request, see the table; those of margins and logits for losses of the softmax
            only.
        start: the reference state of `balancedness`, in the same columns. Default: the state itself, which gives 0.

    Raises:
        UsageError: for unknown or unavailable metrics and states that do not fit the model.

    Source: the table in `fc.metrics` names the paper of each metric.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.collapsed(model, key=jax.random.key(0))
        >>> bool(fc.metrics.evaluate(model, state, ["snc2"])["snc2"] < 1e-6)
        True
    """
    check_state(model, state)
    names = usual(model, state.columns) if names is None else names
    names = checked_names(model, state.columns, names)
    reference = None
    if start is not None:
        check_state(model, start, "start")
        if start.W.ndim != 2:
            raise UsageError(
                f"start has leading axes {start.W.shape[:-2]}, and it must be one state: take one of them."
            )
        reference = problem_of(model, start)[1]
    return of_states(_observe, model, state, names, reference)


def _observe(model: UFM, state: State, names: tuple[str, ...], start: Point | None) -> dict[str, Float[Array, ""]]:
    return observe(*problem_of(model, state), names, start)


def snc(model: UFM, state: State) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The errors of strong neural collapse `(SNC1, SNC2, SNC3)` as the paper's figures plot them.

    For a loss of the softmax they are the errors against its collapsed minimum, with the weight decay of the model.

    Args:
        model: the model, with balanced classes.
        state: a state of it, with any leading axes.

    Returns:
        Three errors, one number each for each leading axis.

    Raises:
        UsageError: if the classes are not balanced, the state does not fit the model or the loss has no minimum.

    Source: Mixon, Parshall and Pi, the definition of strong neural collapse; for other losses Zhu et al. 2021 name the
    minimum, with the constants derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> bool(max(fc.metrics.snc(model, fc.initial.collapsed(model, key=jax.random.key(0)))) < 1e-5)
        True
    """
    values = evaluate(model, state, ("snc1", "snc2", "snc3"))
    return values["snc1"], values["snc2"], values["snc3"]

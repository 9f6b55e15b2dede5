"""`simulate`: run a method on a model from a start."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Real

from ._checks import check_flag, check_integer, is_traced, real_numbers, shown
from ._errors import UsageError
from .endings.choice import verdict
from .endings.verdict import Ending, Verdict
from .methods.base import Method, check_method
from .metrics.balance import Reference
from .metrics.evaluation import observe, observe_many, prepared
from .metrics.registry import checked_names
from .model.coordinates import enter, reducible
from .model.problem import Point, Problem
from .model.requirements import check_model, check_one, check_state
from .model.state import State
from .model.ufm import UFM
from .programs import SMALL, Program
from .results.trajectory import Trajectory

NUM_SAVES = 101

KEPT = 2**22
"""If the points at all save times have at most this many numbers, they are kept and observed after the run. Otherwise
each point is observed during the run."""


def simulate(
    model: UFM,
    start: State,
    method: Method,
    ts: Real[Array | np.ndarray, " time"] | Sequence[float | int] | int = NUM_SAVES,
    *,
    save_states: bool = False,
    metrics: Any = None,
) -> Trajectory:
    """Run the gradient flow or a discrete descent from a start.

    Args:
        model: the model.
        start: one state of it (use `jax.vmap` for more).
        method: `fc.Flow(...)`, `fc.Descent(...)`, `fc.ModifiedFlow(...)` or `fc.HeavyBallFlow(...)`.
        ts: increasing times of at least 0 at which metrics are saved, shape (time,), or the number of save times. Given
            a number, the times are equally spaced up to the escape from the origin, and logarithmically in a slow
            approach after it.
        save_states: keep `path.states`, the state at every time of `ts`.
        metrics: names of the metrics to save, as a text with commas or any iterable of texts. Default: all metrics of
            the model and the start except `sharpness`, `residual_norm` and, for more than 2^20 entries of H, those of
            single samples.

    Returns:
        The `Trajectory`. A run that cannot finish says so in `path.result`; it does not raise an exception.

    Raises:
        UsageError: for shapes that do not fit, times that do not increase, a precision that is not enabled in JAX,
            unknown metrics, or options that contradict each other. Values are checked only outside jit, where they are
            known.

    Works inside `jax.jit`, `jax.vmap`, `jax.lax.scan` and `jax.grad`; inside `jax.jvp` and `jax.jacfwd` if the method
    has `adjoint="forward"`; and inside `jax.shard_map` with `check_vma=False`, because the loops of diffrax do not say
    how their values vary over the devices. One compilation serves all values of eps, rtol, t1, learning rates and
    decays.

    Source: the paper's flow and descent; each method names the source of its equation.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> path = fc.simulate(model, start, fc.Flow(rtol=1e-4))
        >>> path.result.name, path.final.H.shape
        ('plateau', (15, 9))
    """
    save_states = check_flag("save_states", save_states)
    model, start, method, times, names = _checked(model, start, method, ts, metrics)
    # If the points at all save times fit into memory, a program that all methods share observes them after the run.
    num_saves = times if isinstance(times, int) else len(times)
    afterwards = (bool(names) or save_states) and num_saves * (start.X.size + start.W.size) <= KEPT
    return _simulate(model, start, method, times, save_states, names, afterwards)


def simulate_lane(model: UFM, start: State, method: Method, ts: Any, metrics: Any) -> Trajectory:
    """`simulate` for one of many lanes in a program: each point is observed during the run.

    The points of all lanes at all save times would not fit into a processor's cache.
    """
    model, start, method, times, names = _checked(model, start, method, ts, metrics)
    return _simulate(model, start, method, times, False, names, afterwards=False)


def _checked(
    model: UFM, start: State, method: Method, ts: Any, metrics: Any
) -> tuple[UFM, State, Method, Array | int, tuple[str, ...]]:
    """Everything that a run needs, checked and in one precision, and the names of its metrics."""
    start = checked_start(model, start)
    check_method(method)
    start = reducible(model, start, method.coordinates)
    names = checked_names(model, start.columns, metrics)
    dtype = start.X.dtype
    times = check_integer("ts", ts) if isinstance(ts, int | np.integer) else checked_times(ts, method, dtype)
    method = method.prepared(model, times)
    model, method = as_arrays((model, method), dtype)
    times = method.saves(times if isinstance(times, int) or is_traced(ts) else np.asarray(ts, dtype), dtype)
    return model, start, method, times if isinstance(times, int) else jnp.asarray(times), names


def _simulate(
    model: UFM, start: State, method: Method, ts, save_states: bool, names: tuple[str, ...], afterwards: bool
) -> Trajectory:
    quick = sum(x.size for x in (start.X, start.W, start.b)) <= SMALL
    inside = None if afterwards else (names, save_states)
    frame, point, run = _run(model, start, method, ts, inside, quick=quick)
    frame = frame.of(start)
    problem, points = frame.problem(model), None
    if afterwards:
        observed = _observed(problem, run.observed, names, point, quick=quick) if names else {}
        points = run.observed if save_states else None
    else:
        observed, points = run.observed
    code = _verdict(without_arrays(problem), point, run.ending, method.limit, quick=quick)
    return Trajectory(run.ts, observed, run.t_end, code, run.stats, model, method, frame, run.end, points)


@Program
def _run(model: UFM, start: State, method: Method, ts, inside: tuple[tuple[str, ...], bool] | None):
    """The frame, the start in it, and the run with metrics and states observed `inside` it, or with its points."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in (start.X, start.W, start.b)]))
    # A non-finite start is replaced by the origin, which costs little, and its results become NaN afterwards.
    start = jax.tree.map(lambda x: jnp.where(finite, x, 0.0) if eqx.is_inexact_array(x) else x, start)
    frame, problem, point = enter(model, start, method.coordinates_for(model, start))
    observe = None if inside is None else _observer(problem, point, *inside)
    run = method.run(without_arrays(problem), point, ts, observe)
    observed, end = jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), (run.observed, run.end))
    return frame.without_samples(), point, run._replace(observed=observed, end=end)


@Program
def _observed(problem: Problem, points: Point, names: tuple[str, ...], start: Point) -> dict[str, Array]:
    """The metrics of points; NaN for points that are not finite."""
    values = observe_many(problem, points, names, start)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x), axis=range(1, x.ndim)) for x in points]), axis=0)
    return {name: jnp.where(finite, value, jnp.nan) for name, value in values.items()}


@Program
def _verdict(problem: Problem, start: Point, ending: Ending, limit: Verdict) -> Int[Array, ""]:
    return verdict(problem, start, ending, limit)


def without_arrays(problem: Problem) -> Problem:
    """The problem without the arrays that lead back to the samples, which the field and the verdict do not need."""
    return Problem(problem.model, problem.columns.without_arrays())


def _observer(problem: Problem, start: Point, names: tuple[str, ...], save_states: bool) -> "Observer":
    return Observer(*prepared(problem, names, start, start), names, save_states)


class Observer(eqx.Module):
    """Computes the saved data of a point: its metrics, and the point itself if states are saved."""

    problem: Problem
    start: Reference | None
    names: tuple[str, ...] = eqx.field(static=True)
    save_states: bool = eqx.field(static=True)

    def __call__(self, point: Point) -> tuple[dict[str, Array], Point | None]:
        values = observe(self.problem, point, self.names, self.start)
        return values, point if self.save_states else None


def as_arrays(tree, dtype):
    """All numbers, also those of Python and NumPy, as arrays of one precision, so that new values reuse a program."""

    def of_leaf(x):
        kind = getattr(x, "dtype", type(x))
        number = eqx.is_array_like(x) and (jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.floating))
        return jnp.asarray(x, dtype) if number else x

    return jax.tree.map(of_leaf, tree)


def checked_start(model: UFM, start: State) -> State:
    """A single start in one precision, checked against the model."""
    start = checked_starts(model, start)
    check_one(start)
    return start


def checked_starts(model: UFM, start: State) -> State:
    """One or several starts in one precision, checked against the model."""
    check_model(model)
    if not isinstance(start, State):
        raise UsageError(
            f"start must be an fc.State, got {type(start).__name__}: make one with fc.initial or fc.State."
        )
    if not all(hasattr(part, "shape") for part in (start.X, start.W, start.b)):
        check_state(model, start)
    for name in ("X", "W", "b"):
        array = getattr(start, name)
        if getattr(array, "dtype", None) == np.float64 and not jax.config.read("jax_enable_x64"):
            raise UsageError(
                f"start.{'H' if name == 'X' else name} is float64 but JAX runs in 32 bits: call fc.enable_x64() first, "
                "or pass float32."
            )
    X, W, b = (jnp.asarray(x) for x in (start.X, start.W, start.b))
    dtype = jnp.result_type(X, W, b, jnp.float32)
    start = State(X=X.astype(dtype), W=W.astype(dtype), b=b.astype(dtype), columns=start.columns)
    check_state(model, start)
    if not model.use_bias and not is_traced(start.b) and np.any(np.asarray(start.b)):
        raise UsageError("start.b is not zero but the model has no bias: pass zeros, or use_bias=True.")
    return start


def checked_times(ts, method: Method, dtype) -> Array:
    """The save times as an array, checked to be at least 0, to increase and to end no later than the method."""
    if is_traced(ts):
        return ts.astype(dtype)
    times = real_numbers(ts)
    if times is None or times.ndim != 1 or times.size == 0:
        shape = "" if times is None else f" of shape {times.shape}"
        raise UsageError(
            f"ts must be a list of increasing times or a number of them, got {shown(ts)}{shape}: give one of these."
        )
    times = times.astype(dtype)
    if not (np.all(np.isfinite(times)) and np.all(np.diff(times) > 0)):
        raise UsageError(f"ts must be finite and increase, got {times}: sort the times and keep each once.")
    if times[0] < 0:
        raise UsageError(f"ts starts at {times[0]}, before 0: start it at 0 or later.")
    t1 = getattr(method, "t1", None)
    if t1 is not None and not is_traced(t1) and np.any(times[-1] > np.asarray(t1, dtype)):
        raise UsageError(f"ts ends at {times[-1]}, after t1={t1}: raise t1 or leave it out.")
    return jnp.asarray(times)

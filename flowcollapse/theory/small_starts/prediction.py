"""Predictions of the flow from a small start: states in closed form, and every metric of these states."""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._errors import UsageError
from ..._linalg.algebra import in_blocks
from ...endings.choice import verdict
from ...endings.modes import fixed
from ...endings.plateau import plateau_time
from ...endings.verdict import Ending, Verdict
from ...metrics.evaluation import observe, observed_size, prepared
from ...metrics.registry import checked_names
from ...model.batch import floating, is_small
from ...model.coordinates import Frame, to_class_means
from ...model.problem import problem_of
from ...model.state import State
from ...model.ufm import UFM
from ...programs import Program
from ...results.trajectory import Trajectory
from ...simulation import NUM_SAVES
from .escape import Escape, check_small_start

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["predict", "states", "trajectory"]


class Prediction(eqx.Module):
    """Takes the place of the method in the result of a prediction."""

    name = "prediction"
    label = "prediction (small start), not a run"
    time_name = "time"


def predict(model: UFM, start: State, ts: Any = None, *, metrics: Any = None) -> "xr.Dataset":
    """Predict the flow from a small start without running it: the result replaces `fc.simulate(...).to_xarray()`.

    The state is predicted in closed form at each time, from the saddle at the origin through the escape to the plateau
    and beyond (see `states`), and the metrics are those of the predicted states. With
    `x = (||H0||^2 + ||W0||^2)/(2 sqrt N)`, the relative error of each metric is O(x ln 1/x) at all times up to the
    plateau. A start must therefore have `x <= 1/32`: an eps of 0.17 at N = 1, 0.23 at N = 3 and 0.55 at N = 100. A
    start on S, where the prediction is exact, may have any size.

    Args:
        model: the model: balanced, without decay, at any p, with or without a bias.
        start: one small state with `b0 = beta0 1`.
        ts: times, shape (time,). Default: 101 equally spaced times up to the plateau.
        metrics: names of the metrics, as for `fc.simulate`.

    Returns:
        An `xarray.Dataset` with dimension `time`, one variable per metric, and the verdict.

    Raises:
        UsageError: for a model with decay or unequal counts, a start that is not small or has a mode so faint that the
            rest of the start drives it, times that are invalid or too late for the slow motion after the plateau, or
            unknown metrics. Inside jit and vmap the start is not known, so its size is not checked.

    Derived here. Measured against the flow (rtol 1e-12) at C = N = 3, p = 15, as the largest relative error over all
    times to the plateau and over 12 starts: at eps = 1e-2 and 1e-3, at most 3 eps^2 for SNC1-SNC3, the distance to S,
    the ratio of traces and the risk, and at most 20 eps^2 for every other metric. At 1e-4, again 3 eps^2 for metrics of
    order eps and for the ratio of traces; for smaller metrics the flow itself has too few digits. At the bound
    x = 1/32, the state is off by at most 3 %, SNC1-SNC3 and the distance to S by at most 12 %, and the risk by at most
    0.5 % of the risk at the start, over 6 starts at each of six sizes (C from 2 to 10, N from 1 to 100, p from 2 to
    30). At x = 1, SNC1 is off by 20 to 80 %. Metrics that decay to zero are predicted down to their next order, the
    risk down to O(eps^8).

    Source: derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-2, key=jax.random.key(0))
        >>> found = fc.simulate(model, start, fc.Flow(), metrics=["risk"]).to_xarray()
        >>> bool((abs(fc.predict(model, start, metrics=["risk"])["risk"] / found["risk"] - 1) < 1e-3).all())
        True
    """
    return trajectory(model, start, ts, metrics=metrics).to_xarray().assign_attrs(title="flowcollapse prediction")


def trajectory(model: UFM, start: State, ts: Any = None, *, metrics: Any = None) -> Trajectory:
    """The prediction as a `Trajectory`, for use inside `jax.jit` and `jax.vmap`.

    Args:
        model: the model: balanced, without decay, at any p, with or without a bias.
        start: one small state with `b0 = beta0 1`.
        ts: times, shape (time,). Default: 101 equal times up to the plateau.
        metrics: names of the metrics, as for `fc.simulate`.

    Raises:
        UsageError: as for `predict`.

    Source: derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> fc.theory.prediction.trajectory(model, start).result.name
        'plateau'
    """
    times = check_small_start(model, start, ts)
    names = checked_names(model, start.columns, metrics)
    numbers, first = floating(model, start)
    path, frame = _trajectory(numbers, first, times, names, quick=is_small(start))
    return dataclasses.replace(path, frame=frame.of(start), model=model)


@Program
def _trajectory(model: UFM, start: State, ts: Float[Array, " time"] | None, names: tuple[str, ...]):
    """The predicted run, and its frame without the arrays that lead back to the samples."""
    escape, start = Escape.of(model, start), to_class_means(model, start)
    problem, first = problem_of(model, start)
    if ts is None:
        ts = plateau_time(*fixed((problem, first))) * jnp.linspace(1, 0, NUM_SAVES, dtype=start.X.dtype)[::-1]

    ready, origin = prepared(problem, names, first, first)

    def observed(t):
        return observe(ready, escape.at(t).point, names, origin)

    values = in_blocks(observed, ts, observed_size(first))
    # Balancedness is conserved; a nonzero value would only be the error of the prediction.
    values |= {name: jnp.zeros_like(ts) for name in names if name == "balancedness"}
    end = escape.at(ts[-1]).point
    code = verdict(problem, first, Ending(end, ts[-1], jnp.asarray(False), jnp.asarray(False)), Verdict.time_limit)
    frame = Frame(start.columns).without_samples()
    path = Trajectory(
        ts=ts,
        metrics=values,
        t_end=ts[-1],
        code=code,
        stats={},
        model=model,
        method=Prediction(),
        frame=frame,
        end=end,
        points=None,
    )
    return path, frame


def states(model: UFM, start: State, ts: Any) -> State:
    """The predicted states at `ts`, with a leading axis of times, in class-mean columns.

    They are exact at t = 0, and at all times on S. `escape.py` has the formulas for the modes, u, v, L and b.
    Orthogonal to the modes, u and L drift at the rate eps^2; the drift is predicted to first order in `t eps^2`.

    Args:
        model: the model: balanced, without decay.
        start: one small state with `b0 = beta0 1`.
        ts: times, shape (time,).

    Raises:
        UsageError: for the reasons `predict` has.

    Source: derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
        >>> path = fc.theory.prediction.states(model, start, [0.0, 5.0, 20.0])
        >>> fc.risk(model, path).round(4).tolist()
        [4.5, 0.3758, 0.0]
    """
    if ts is None:
        raise UsageError("ts is missing: give a list of times, such as [0.0, 5.0].")
    times = check_small_start(model, start, ts)
    return _states(model, start, times, quick=is_small(start))


@Program
def _states(model: UFM, start: State, ts: Float[Array, " time"]) -> State:
    escape = Escape.of(model, start)
    return escape.state(jax.vmap(lambda t: escape.at(t).point)(ts))

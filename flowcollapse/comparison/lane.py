"""One lane of a comparison: the flow and its candidates from one start, and how far apart they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..endings.choice import ending_of
from ..methods.base import Method
from ..metrics.evaluation import observe_many
from ..model.coordinates import enter
from ..model.problem import problem_of
from ..model.state import State
from ..model.ufm import UFM
from ..results.labels import STATE_VARIABLES
from ..results.trajectory import Trajectory
from ..simulation import simulate
from ..sweeps.grid import of_lane


class Shared(NamedTuple):
    """The data all lanes share: the numbers of the model and the methods, the starts if given, and the times."""

    numbers: list[Array]
    starts: State | None
    ts: Float[Array, " time"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Maps the numbers of a lane to its model, its methods and its start.

    `structure` is the tree structure of the model, the kind of start and the methods, whose numbers are shared. `open`
    names the numbers of each method that the lane sets. If the starts are given, there is no kind of start, and the
    lane holds the index of its start.
    """

    structure: Any
    open: tuple[tuple[str, ...], ...]

    def __call__(self, shared: Shared, lane: Mapping[str, Any]) -> tuple[UFM, list[Method], State]:
        model, random, methods = jax.tree.unflatten(self.structure, shared.numbers)
        if random is None:
            (model,) = of_lane((model,), lane)
            start = jax.tree.map(lambda x: x[lane["lane"]], shared.starts)
        else:
            model, random = of_lane((model, random), lane)
            start = random(model, lane["eps"], key=jax.random.key(lane["seed"]))
        chosen = zip(methods, self.open, strict=True)
        return model, [method.with_numbers({n: lane[n] for n in names}) for method, names in chosen], start


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The escape time and the plateau time of a lane's start."""

    setting: Inputs

    def __call__(self, shared: Shared, lane: Mapping[str, Any]) -> Float[Array, "2"]:
        model, _, start = self.setting(shared, lane)
        problem, point = problem_of(model, start)
        ending = ending_of(problem)
        return jnp.stack([ending.escape_time(point), ending.end_time(point)])


@dataclasses.dataclass(frozen=True)
class ComparedLane:
    """The results of a lane: variables by name, whose leading axis is the methods, with the flow first."""

    setting: Inputs
    metrics: tuple[str, ...]
    keep_final: bool

    def __call__(self, shared: Shared, lane: Mapping[str, Any]) -> dict[str, Array]:
        model, (flow, *others), start = self.setting(shared, lane)
        paths = [simulate(model, start, method, shared.ts, save_states=True, metrics=self.metrics) for method in others]
        # The flow is saved at every time at which any method was saved.
        times = jnp.stack([shared.ts, *(path.ts for path in paths)])
        order = jnp.argsort(times.ravel())
        along = simulate(model, start, flow, times.ravel()[order], save_states=True, metrics=())
        place = jnp.argsort(order).reshape(times.shape)
        with jax.default_matmul_precision("highest"):
            _, problem, origin = enter(model, start, flow.coordinates)
            at_ts = jax.tree.map(lambda x: x[place[0]], along.points)
            values = observe_many(problem, at_ts, self.metrics, origin)
        zero = jnp.zeros_like(shared.ts, times.dtype)
        kept = [self._kept(along, values, zero)]
        for path, there in zip(paths, place[1:], strict=True):
            kept.append(self._kept(path, path.metrics, relative_distance(path, along, there)))
        return jax.tree.map(lambda *parts: jnp.stack(parts), *kept) | {"t": times}

    def _kept(self, path: Trajectory, metrics: dict[str, Array], distance: Float[Array, " time"]) -> dict[str, Array]:
        taken = path.stats["taken"] if "taken" in path.stats else path.stats["accepted"]
        kept = dict(metrics) | {
            "distance_to_flow": distance,
            "max_distance_to_flow": jnp.max(distance),
            "verdict": path.code,
            "t_end": path.t_end,
            "steps": taken,
            "steps_rejected": path.stats.get("rejected", jnp.zeros_like(taken)),
        }
        return kept | ({name: getattr(path.final, name) for name, *_ in STATE_VARIABLES} if self.keep_final else {})


def relative_distance(path: Trajectory, flow: Trajectory, there: Array) -> Float[Array, " time"]:
    """`||z - z_flow||_E / ||z_flow||_E` at the saves of a path.

    `there` holds the index of the flow's save at each of these times. If both ran in the same coordinates, the distance
    is measured in them, because they are isometric; otherwise it is measured sample by sample.
    """
    assert path.points is not None
    here, reference = path.points, jax.tree.map(lambda x: x[there], flow.points)
    if path.coordinates != flow.coordinates:
        states = path.frame.leave(here), flow.frame.leave(reference)
        here, reference = ((state.W, state.H, state.b) for state in states)
    difference = [x - y for x, y in zip(here, reference, strict=True)]
    return _norms(difference) / _norms(reference)


def _norms(parts) -> Float[Array, " time"]:
    return jnp.sqrt(sum(jnp.sum(part**2, axis=tuple(range(1, part.ndim))) for part in parts))

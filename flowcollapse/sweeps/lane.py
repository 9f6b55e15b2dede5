"""A lane of a sweep, and the plan that says what each lane computes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from ..initial import Start
from ..metrics.registry import asked_names, common_names
from ..model.state import State
from ..model.ufm import UFM
from ..results.labels import STATE_VARIABLES, STATS
from ..simulation import as_arrays, simulate_lane
from .grid import SHAPE_AXES, Grid, decayed, of_lane


@dataclasses.dataclass(frozen=True)
class Lane:
    """The function that computes one lane of given shapes. Two sweeps that differ only in numbers share it.

    `structure` is the tree structure of the model, the start and the method, whose numbers are the leaves. `shapes`
    holds the values of the axes that change shapes.
    """

    structure: Any
    shapes: tuple[tuple[str, Any], ...]
    num_saves: int | None
    metrics: tuple[str, ...]
    keep_final: bool

    def __call__(self, shared: Any, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the lane, by name.

        Args:
            shared: the numbers of the model and the method, and the save times if all lanes have the same ones.
            numbers: the lane's values on the axes.
        """
        program, outcome = self.traced(shared, numbers)
        found = jaxpr_as_fun(program)(*jax.tree.leaves((shared, numbers)))
        return jax.tree.unflatten(jax.tree.structure(outcome), found)

    def traced(self, shared: Any, numbers: Mapping[str, Any]) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
        """The lane as a jaxpr, and the shapes of its variables, for arguments of the kind of these.

        The plan and the engine share it, because tracing a run takes about as long as compiling it.
        """
        leaves, structure = jax.tree.flatten((shared, numbers))
        kinds = (jax.typeof(leaf) for leaf in leaves)  # a key without shardings, which the devices of a mesh add
        return _traced(self, structure, tuple((kind.shape, kind.dtype, kind.weak_type) for kind in kinds))

    def compute(self, shared: Any, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of the lane, operation by operation."""
        of_all, ts = shared
        parts = jax.tree.unflatten(self.structure, of_all)
        model, start, method = of_lane(parts, {**dict(self.shapes), **numbers})
        drawn = start(model, numbers["eps"], key=jax.random.key(numbers["seed"]))
        path = simulate_lane(model, drawn, method, self.num_saves or ts, self.metrics)
        kept = dict(path.metrics) | ({"t": path.ts} if self.num_saves else {})
        kept |= {f"steps_{name}": path.stats[name] for name in STATS if name in path.stats}
        if self.keep_final:
            kept |= {name: getattr(path.final, name) for name, *_ in STATE_VARIABLES}
        return kept | {"t_end": path.t_end, "verdict": path.code}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides the numbers of a sweep: the grid, and the results kept per lane.

    `ts` holds the save times that all lanes share, or the number of times that each lane saves up to its own end.
    """

    grid: Grid
    ts: tuple[float, ...] | int
    metrics: tuple[str, ...]
    keep_final: bool

    @property
    def saves(self) -> int:
        """How many points of a lane are observed."""
        return (self.ts if isinstance(self.ts, int) else len(self.ts)) if self.metrics else 0

    def __reduce__(self):
        return Plan, (self.grid, self.ts, self.metrics, self.keep_final)  # without what is cached

    def lane(self, shapes: Mapping[str, Any]) -> tuple[Lane, Any]:
        """The function of a lane of given shapes, and the numbers that all lanes share."""
        return self._lanes[tuple(shapes.items())]

    @functools.cached_property
    def _lanes(self) -> dict[tuple[tuple[str, Any], ...], tuple[Lane, Any]]:
        return {tuple(shapes.items()): self._lane(shapes) for shapes in self.grid.shapes()}

    def _lane(self, shapes: Mapping[str, Any]) -> tuple[Lane, Any]:
        dtype = jnp.result_type(float)
        model, method = self.grid.model, self.grid.method
        if not {"weight_decay", "t1"} & set(self.grid.axes):  # with these axes, `prepared` would differ between lanes
            method = method.prepared(model.with_numbers(shapes), self.ts)
        everything = as_arrays((model, self.grid.start, method), dtype)
        numbers, structure = jax.tree.flatten(everything)
        num_saves, ts = (self.ts, None) if isinstance(self.ts, int) else (None, jnp.asarray(self.ts, dtype))
        lane = Lane(structure, tuple(shapes.items()), num_saves, self.metrics, self.keep_final)
        return lane, (numbers, ts)

    @functools.cached_property
    def outcomes(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """The shapes of a lane's variables, for each combination of the axes that change shapes."""
        axes = self.grid.axes
        numbers = {name: np.asarray(values[0]) for name, values in axes.items() if name not in SHAPE_AXES}
        return tuple(self._outcome(*self.lane(shapes), numbers) for shapes in self.grid.shapes())

    def _outcome(self, lane: Lane, shared: Any, numbers: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        _, outcome = lane.traced(shared, numbers)
        return {name: outcome[name] for name in (*self.metrics, *sorted(set(outcome) - set(self.metrics)))}


@functools.lru_cache(maxsize=64)
def _traced(lane: Lane, structure: Any, kinds: tuple[tuple[Any, ...], ...]) -> tuple[Any, dict[str, Any]]:
    leaves = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in kinds]
    return jax.make_jaxpr(lane.compute, return_shape=True)(*jax.tree.unflatten(structure, leaves))


def common_metrics(grid: Grid, names: Any) -> tuple[str, ...]:
    """The requested metrics, checked, or the default metrics that every lane has."""
    asked = None if names is None else asked_names(names)
    common: tuple[str, ...] | None = None
    for shapes in grid.shapes():
        model = grid.model.with_numbers(shapes)
        state = jax.eval_shape(_drawn, grid.start, model)
        of_model = common_names(decayed(model, grid.axes), state.columns, asked)
        common = of_model if common is None else tuple(name for name in common if name in of_model)
    return common or ()


def _drawn(start: Start, model: UFM) -> State:
    return start(model, jnp.ones(()), key=jax.random.key(0))

"""What becomes of one lane, and the labelled dataset that all of them make."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..initial import STARTS
from ..metrics import METRICS, asked_names, checked_names
from ..simulation import as_arrays, simulate
from ..trajectory import STATE_VARIABLES, STATS, verdict_attributes
from .grid import SHAPE_AXES, Grid, of_lane, with_values

if TYPE_CHECKING:
    import xarray as xr

MISSING = -1
"""What integers hold where a lane has not run yet; floats hold NaN."""

AXES = {
    "num_classes": "number of classes C",
    "samples_per_class": "samples per class N",
    "num_features": "number of features p",
    "weight_decay": "L2 decay of W, H and b",
    "eps": "norm of H0 and of W0",
    "seed": "seed of the start's random key",
    "rtol": "relative tolerance",
    "atol": "absolute tolerance",
    "t1": "time at the end",
    "learning_rate": "learning rate",
    "lane": "number of the start",
}
"""Long names of the axes; others are numbers of the method and go by their own name."""


@dataclasses.dataclass(frozen=True)
class Lane:
    """What becomes of one lane of given shapes: a function that two sweeps share if they differ in numbers alone.

    `structure` is that of the model and the method, whose numbers are its leaves, and `shapes` holds the values of the
    axes that change shapes.
    """

    structure: Any
    shapes: tuple[tuple[str, Any], ...]
    start: str
    num_saves: int | None
    metrics: tuple[str, ...]
    keep_final: bool

    def __call__(self, shared: Any, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Variables by name. `shared` holds the numbers of model and method and the save times, if all lanes have the
        same, `numbers` those of the lane's axes."""
        of_all, ts = shared
        everything = jax.tree.unflatten(self.structure, of_all)
        model, method = of_lane(everything[0], everything[1], {**dict(self.shapes), **numbers})
        start = STARTS[self.start](model, numbers["eps"], key=jax.random.key(numbers["seed"]))
        path = simulate(model, start, method, self.num_saves or ts, metrics=self.metrics)
        kept = dict(path.metrics) | ({"t": path.ts} if self.num_saves else {})
        kept |= {f"steps_{name}": path.stats[name] for name in STATS if name in path.stats}
        if self.keep_final:
            kept |= {name: getattr(path.final, name) for name, *_ in STATE_VARIABLES}
        return kept | {"t_end": path.t_end, "verdict": path.code}


class Plan(NamedTuple):
    """All that decides the numbers of a sweep: the grid, the kind of start, and what is kept of each lane.

    `ts` holds the save times that all lanes share, or how many times each lane has up to its own end.
    """

    grid: Grid
    start: str
    ts: tuple[float, ...] | int
    metrics: tuple[str, ...]
    keep_final: bool

    def lane(self, shapes: Mapping[str, Any]) -> tuple[Lane, Any]:
        """The function of a lane of given shapes, and the numbers that all lanes share."""
        dtype = jnp.result_type(float)
        model, method = self.grid.model, self.grid.method
        if not {"weight_decay", "t1"} & set(self.grid.axes):  # else the lanes differ in what it depends on
            method = method.prepared(with_values(model, shapes), self.ts)
        everything = as_arrays((model, method), dtype)
        numbers, structure = jax.tree.flatten(everything)
        num_saves, ts = (self.ts, None) if isinstance(self.ts, int) else (None, jnp.asarray(self.ts, dtype))
        lane = Lane(structure, tuple(shapes.items()), self.start, num_saves, self.metrics, self.keep_final)
        return lane, (numbers, ts)

    def outcomes(self) -> tuple[dict[str, jax.ShapeDtypeStruct], ...]:
        """The shapes of a lane's variables, for each combination of the axes that change shapes."""
        axes = self.grid.axes
        numbers = {name: np.asarray(values[0]) for name, values in axes.items() if name not in SHAPE_AXES}
        return tuple(self._outcome(*self.lane(shapes), numbers) for shapes in self.grid.shapes())

    def _outcome(self, lane: Lane, shared: Any, numbers: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
        leaves, structure = jax.tree.flatten((shared, numbers))
        outcome = _outcome_of(lane, structure, tuple(jax.typeof(leaf) for leaf in leaves))
        return {name: outcome[name] for name in (*self.metrics, *sorted(set(outcome) - set(self.metrics)))}


@functools.lru_cache(maxsize=64)
def _outcome_of(lane: Lane, structure: Any, leaves: tuple[Any, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lane, *jax.tree.unflatten(structure, leaves))


def common_metrics(grid: Grid, start: str, names: Any) -> tuple[str, ...]:
    """The metrics asked for, checked, or the default ones that every lane has."""
    asked = None if names is None else asked_names(names)
    common: tuple[str, ...] | None = None
    for shapes in grid.shapes():
        model = with_values(grid.model, shapes)
        state = jax.eval_shape(lambda m=model: STARTS[start](m, jnp.ones(()), key=jax.random.key(0)))
        of_model = checked_names(model, state.columns, asked)
        common = of_model if common is None else tuple(name for name in common if name in of_model)
    return common or ()


def empty_dataset(plan: Plan, chunks: Sequence[int] | None = None) -> "xr.Dataset":
    """The dataset of a sweep of which nothing has run: floats NaN, integers and the verdict -1.

    Args:
        plan: the sweep.
        chunks: lengths of the chunks along the grid's axes, for arrays that are on disk alone; default in memory.
    """
    import xarray as xr

    grid, outcomes = plan.grid, plan.outcomes()
    axes = tuple(grid.axes)
    data: dict[str, Any] = {}
    for name in outcomes[0]:
        parts = [outcome[name] for outcome in outcomes]
        tail = tuple(map(max, *(part.shape for part in parts))) if len(parts) > 1 else parts[0].shape
        fill = np.nan if jnp.issubdtype(parts[0].dtype, jnp.floating) else MISSING
        values = _filled((*grid.shape, *tail), fill, parts[0].dtype, None if chunks is None else (*chunks, *tail))
        data[name] = ((*axes, *dimensions(name)), values, attributes(name))
    coords = axis_coordinates(grid.axes)
    if not isinstance(plan.ts, int):
        coords["time"] = ("time", np.asarray(plan.ts, float), {"long_name": "time", "units": "1"})
    return xr.Dataset(data, coords)


def axis_coordinates(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The values of the axes as coordinates of a Dataset."""
    coords: dict[str, Any] = {}
    for name, values in axes.items():
        about = {"long_name": AXES.get(name, name.replace("_", " ")), "units": "1"}
        parts = [value if isinstance(value, tuple) else (value,) for value in values]
        if all(len(part) == 1 for part in parts):
            coords[name] = (name, np.asarray([part[0] for part in parts]), about)
        else:  # three decays, or counts that differ between the classes: rows of a table, filled up with NaN
            table = np.full((len(parts), max(map(len, parts))), np.nan)
            for row, part in zip(table, parts, strict=True):
                row[: len(part)] = part
            coords[f"{name}_values"] = ((name, f"{name}_part"), table, about)
    return coords


def _filled(shape: tuple[int, ...], fill: int | float, dtype, chunks: tuple[int, ...] | None) -> Any:
    if chunks is None:
        return np.full(shape, fill, dtype)
    import dask.array

    return dask.array.full(shape, fill, dtype=dtype, chunks=tuple(max(1, side) for side in chunks))


def dimensions(name: str) -> tuple[str, ...]:
    """The dimensions that a variable has beyond the axes of the grid."""
    states = {state: over for state, over, _ in STATE_VARIABLES}
    return states.get(name, ("time",) if name in METRICS or name == "t" else ())


def attributes(name: str) -> dict[str, Any]:
    """Long name and units of a variable; the meanings of the verdict's codes."""
    if name == "verdict":
        about = verdict_attributes()
        values = np.concatenate([np.array([MISSING], np.int8), about["flag_values"]])
        return about | {"flag_values": values, "flag_meanings": "missing " + about["flag_meanings"]}
    states = {state: f"{what} at the end" for state, _, what in STATE_VARIABLES}
    known = states | {"t": "time", "t_end": "time at the end"}
    if name in METRICS:
        known[name] = METRICS[name].long_name
    return {"long_name": known.get(name, name.replace("_", " ")), "units": "1"}

"""Flow against descent: a flow and any number of optimizers from the same starts, matched in time, in one dataset."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from .._checks import check_flag, check_integer, shown
from .._errors import UsageError
from ..initial import Start
from ..methods.base import Method
from ..methods.flow import AbstractFlow
from ..metrics.registry import checked_names
from ..model.coordinates import state_size
from ..model.requirements import check_model
from ..model.state import State
from ..model.ufm import UFM
from ..results.description import options
from ..results.labels import attributes, axis_coordinates, dimensions
from ..results.provenance import provenance
from ..settings import take_cpu_cores, tell_idle_cores, tell_precision
from ..simulation import as_arrays, checked_starts
from ..sweeps.capacity import CPU_WIDTH, LANES_A_TASK, block_width, expected_cost
from ..sweeps.engine import Device, Engine, chosen_devices
from ..sweeps.grid import SHAPE_AXES, Grid, Task, checked_axes, checked_axis, lane_values
from .candidates import Candidate, candidate, candidates_of, check_axes
from .lane import ComparedLane, Inputs, Plateau, Shared
from .times import ending_at, given_times, save_times

if TYPE_CHECKING:
    import xarray as xr

NUM_SAVES = 101
NUM_SEEDS = 16

BYTES_UNDER_WAY = 2**30
"""The states that a block of lanes holds at once fit into this."""

STARTING = ("eps", "seed", "lane")
"""The axes that the plateau time depends on, beside the numbers of the model and of the start."""

LONG_NAMES = {
    "distance_to_flow": "distance to the flow at the same time, over the norm of the flow",
    "max_distance_to_flow": "largest distance to the flow over the saved times",
    "t": "time of the save, for descent that of the nearest step",
    "steps": "steps accepted (flow) or taken (descent)",
}


def compare(
    model: UFM,
    start: State | Start | str = "sphere",
    optimizers: Mapping[str, Any] | Sequence[str] | str = (),
    ts: Sequence[float] | np.ndarray | int = NUM_SAVES,
    *,
    eps: Sequence[float] | None = None,
    seeds: int | Sequence[int] | None = None,
    metrics: Any = None,
    flow: AbstractFlow | str = "flow",
    num_steps: int | None = None,
    keep_final: bool = False,
    devices: int | Sequence[Device] | None = None,
    width: int | None = None,
    progress: bool = False,
    **axes: Sequence[Any],
) -> "xr.Dataset":
    """A flow and optimizers from the same starts, at the same times, and how far they are from each other.

    Args:
        model: the model.
        start: a `State`, with one leading axis for several starts, or the kind of random starts: `"sphere"`,
            `"on-subspace"` or `"balanced"`, the functions of `fc.initial`.
        optimizers: from names to what is compared: a text with the name of an optax optimizer and its numbers
            (`"adam:learning_rate=0.01,b1=0.8"`), a ready optimizer (`optax.sgd(0.05)`), or a method (`fc.Descent(...)`,
            `fc.ModifiedFlow(0.05)`; as a text `"modified-flow:learning_rate=0.05"`). Or a list of texts, which are then
            the names too.
        ts: times at which all are saved, shape (time,), or about how many of them, up to the latest plateau time of the
            starts, or the flow's `t1`. The latter are times of steps of the descent that takes the fewest, unless its
            step size is an axis.
        eps, seeds: norms and seeds of the random starts, as for `fc.sweep`; default 16 seeds.
        metrics: names of the metrics. Default: all that there are.
        flow: what the others are compared with, a flow or its text.
        num_steps: how many steps the optimizers may take. Default: what they need to reach the last time.
        keep_final: keep `H`, `W` and `b` at the last time.
        devices: how many, or which; default all local ones, every CPU core, as in `fc.sweep`.
        width: lanes that run in lockstep; default by the platform and the size of the state.
        progress: show a bar on standard error.
        **axes: further axes: `learning_rate=[...]`, or any other number that optimizers given as texts leave open, and
            `weight_decay` of the model. All values are one compiled batch.

    Returns:
        A Dataset with the dimensions `method` (the flow first; choose with `.sel({"method": "adam"})`), the axes, `eps`
        and `seed` (`lane` for several states, none for one), and `time`:

        - the metrics; `balancedness` is the drift of `W^T W - H H^T`, which descent has and the flow has not;
        - `t`: the time of each save; a descent is saved at its step nearest to `time`;
        - `distance_to_flow`: `||z_k - z(t_k)||_E / ||z(t_k)||_E` with the flow at exactly the descent's time, and
          `max_distance_to_flow`, the largest over time;
        - `verdict`, `t_end`, `steps`, `steps_rejected`; a lane that diverges is `non_finite` and harms no other.

    Raises:
        UsageError: for optimizers, numbers or axes that are unknown or cannot be, starts that do not fit the model, or
            a number of steps that is too small.
        DevicesWarning: as a warning, if cores stay idle because JAX was in use before.

    Source: the time of a step is the distance that the optimizer goes under a unit force, see `fc.Descent`. In this
    time the distance of descent to the gradient flow is O(step size), and to `fc.ModifiedFlow` O(its square).

    Example:
        >>> import flowcollapse as fc
        >>> fc.enable_x64()
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> rates = [0.01, 0.02]
        >>> runs = fc.compare(model, "sphere", ["sgd"], [1.0], eps=[0.1], seeds=1, metrics=(), learning_rate=rates)
        >>> near, far = runs.max_distance_to_flow.sel({"method": "sgd"}).values.ravel()
        >>> bool(near < 0.6 * far)
        True
    """
    take_cpu_cores(devices)
    check_model(model)
    for name, value in (("num_steps", num_steps), ("width", width)):
        if value is not None:
            check_integer(name, value)
    ts = check_integer("ts", ts) if isinstance(ts, int | np.integer) else ts
    keep_final, progress = check_flag("keep_final", keep_final), check_flag("progress", progress)
    axes = {name: checked_axis(name, values) for name, values in axes.items()}
    reference = candidate("flow", flow, axes)
    if not isinstance(reference.method, AbstractFlow):
        raise UsageError(
            f"flow must be a flow, such as fc.Flow() or fc.ModifiedFlow(0.05), got {shown(flow)}: pass one."
        )
    candidates = candidates_of(optimizers, axes, num_steps, reference._replace(name=reference.method.name))
    check_axes(candidates, axes)
    grid, starts = _grid(model, start, eps, seeds, candidates, axes)
    random = grid.start if starts is None else None
    shape = starts or jax.eval_shape(lambda: grid.start(model, 1.0, key=jax.random.key(0)))
    names = checked_names(model, shape.columns, metrics)
    chosen, dtype = chosen_devices(devices), shape.W.dtype
    told = tell_precision(dtype)

    if isinstance(ts, int):
        t1 = reference.method.t1
        escape, plateau = _latest(grid, random, starts, dtype, chosen)
        times = save_times(ts, candidates, axes, escape, plateau if t1 is None else float(np.asarray(t1)))
    else:
        times = given_times(ts)
    methods = [ending_at(one, axes, float(times[-1])) for one in candidates]
    decided = methods if "weight_decay" in axes else [method.prepared(model, times) for method in methods]
    numbers, structure = jax.tree.flatten(as_arrays((model, random, tuple(decided)), dtype))
    setting = Inputs(structure, tuple(one.open for one in candidates))
    shared = Shared(numbers, starts, jnp.asarray(times, dtype))
    width = width or _lane_width(model, methods, len(times), chosen, grid.num_lanes)
    if devices is None:
        tell_idle_cores(chosen, -(-grid.num_lanes // width))
    outcome = _outcome(ComparedLane(setting, names, keep_final), shared, grid, width, chosen, progress)
    dataset = _dataset(outcome, grid, [one.name for one in candidates], times)
    if isinstance(start, State) and start.W.ndim == 2:
        dataset = dataset.isel(lane=0, drop=True)
    by_name = {one.name: {"name": m.name} | options(m) for one, m in zip(candidates, methods, strict=True)}
    begun = "given" if random is None else random.described()
    about = provenance(model, methods[0], title="flowcollapse comparison", start=begun)
    return dataset.assign_attrs(about | told | {"method": json.dumps(by_name)})


def _grid(model, start, eps, seeds, candidates: list[Candidate], axes) -> tuple[Grid, State | None]:
    """The lanes: the axes of numbers, then those of the random starts or the one of the given ones; and the latter."""
    allowed = [name for name in dict.fromkeys((*axes, *model.numbers)) if name not in SHAPE_AXES]
    random = Start("sphere")
    if isinstance(start, str | Start):
        random = Start(start)
        if eps is None:
            raise UsageError("eps is missing: give the norms of the random starts, as eps=[0.1], or a state as start.")
        checked = checked_axes(allowed, eps, NUM_SEEDS if seeds is None else seeds, axes)
        starts = None
    else:
        if eps is not None or seeds is not None:
            raise UsageError("eps and seeds are for random starts, and start is a state: leave them out.")
        starts = _in_lanes(checked_starts(model, start))
        checked = checked_axes(allowed, [1.0], 1, axes)
        checked = {name: checked[name] for name in checked if name in axes} | {"lane": tuple(range(len(starts.W)))}
    for name in model.numbers:
        for value in checked.get(name, ()):
            model.with_numbers({name: value})
    return Grid(model, candidates[0].method, checked, random), starts


def _in_lanes(starts: State) -> State:
    """The starts with one leading axis on every array, also on those of the columns."""
    if starts.W.ndim == 2:
        return jax.tree.map(lambda x: x[None], starts)
    if starts.W.ndim > 3:
        raise UsageError(f"start has leading axes {starts.W.shape[:-2]}, and at most one is taken: flatten them first.")
    if not starts.columns.reduced or starts.columns.batch_ndim == 1:
        return starts
    columns = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(starts.W), *x.shape)), starts.columns)
    return State(X=starts.X, W=starts.W, b=starts.b, columns=columns)


def _all_lanes(grid: Grid) -> dict[str, np.ndarray]:
    return lane_values(grid, Task(0, tuple(slice(0, length) for length in grid.shape)))


def _latest(grid: Grid, start: Start | None, starts: State | None, dtype, devices) -> tuple[float, float]:
    """The latest escape time and the latest plateau time of the starts."""
    matters = (*STARTING, *grid.model.numbers, *grid.start.numbers)
    only = grid._replace(axes={name: values for name, values in grid.axes.items() if name in matters})
    numbers, structure = jax.tree.flatten(as_arrays((grid.model, start, ()), dtype))
    function, shared = Plateau(Inputs(structure, ())), Shared(numbers, starts, jnp.zeros(0, dtype))
    lanes = _all_lanes(only)
    engine = Engine(function, width=CPU_WIDTH, devices=devices, shared=shared)
    escape, plateau = np.max(engine.submit(lanes).result(), axis=0)
    return float(escape), float(plateau)


def _lane_width(model: UFM, methods: Sequence[Method], saves: int, devices: Sequence[Device], lanes: int) -> int:
    """How many lanes run in lockstep: as in a sweep, but no more than have room for their states at all times."""
    whole = any(method.coordinates == "sample" for method in methods)
    size = model.num_features * model.num_samples if whole else state_size(model)
    bytes_a_lane = 8 * size * saves * 2 * len(methods)
    factorises = any(method.factorises for method in methods)
    return max(1, min(block_width(model, devices, lanes, factorises), BYTES_UNDER_WAY // bytes_a_lane))


def _outcome(
    lane: ComparedLane, shared: Shared, grid: Grid, width: int, devices, progress: bool
) -> dict[str, np.ndarray]:
    """The variables of all lanes, lanes in front in the grid's order."""
    lanes = _all_lanes(grid)
    # Lanes of like cost run side by side: descents of equal step sizes take equally many steps.
    order = expected_cost({"eps": np.zeros(grid.num_lanes), "seed": np.arange(grid.num_lanes)} | lanes)
    capacity = min(grid.num_lanes, max(LANES_A_TASK, width * len(devices)))
    engine = Engine(lane, width=width, devices=devices, shared=shared)
    parts = []
    with tqdm(desc="compare", total=grid.num_lanes, unit="lane", disable=not progress) as bar:
        for first in range(0, grid.num_lanes, capacity):
            which = order[first : first + capacity]
            parts.append(engine.submit({name: values[which] for name, values in lanes.items()}).result())
            bar.update(len(which))
    back = np.argsort(order)
    return jax.tree.map(lambda *several: np.concatenate(several)[back], *parts)


def _dataset(outcome: Mapping[str, np.ndarray], grid: Grid, names: Sequence[str], times: np.ndarray) -> "xr.Dataset":
    import xarray as xr

    data = {}
    for name, values in outcome.items():
        values = np.moveaxis(values.reshape(*grid.shape, *values.shape[1:]), len(grid.shape), 0)
        tail = ("time",) if name == "distance_to_flow" else dimensions(name)
        about = attributes(name) | ({"long_name": LONG_NAMES[name]} if name in LONG_NAMES else {})
        data[name] = (("method", *grid.axes, *tail), values, about)
    coords = axis_coordinates(grid.axes)
    coords["method"] = ("method", list(names), {"long_name": "the flow and what is compared with it"})
    coords["time"] = ("time", times, {"long_name": "time", "units": "1"})
    return xr.Dataset(data, coords)

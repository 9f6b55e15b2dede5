"""Compares a flow with any number of optimizers from the same starts, matched in time, in one dataset."""

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
from ..metrics.registry import common_names
from ..model.coordinates import reducible, state_size
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
from ..sweeps.grid import SHAPE_AXES, Grid, Task, checked_axes, checked_axis, decayed, lane_values
from .candidates import Candidate, candidate, candidates_of, check_axes
from .lane import ComparedLane, Inputs, Plateau, Shared
from .times import ending_at, given_times, save_times

if TYPE_CHECKING:
    import xarray as xr

NUM_SAVES = 101
NUM_SEEDS = 16

BYTES_UNDER_WAY = 2**30
"""Bytes that the states of one block of lanes may take."""

STARTING = ("eps", "seed", "lane")
"""The axes that the plateau time depends on, besides the numbers of the model and the start."""

LONG_NAMES = {
    "distance_to_flow": "distance to the flow at the same time, over the norm of the flow",
    "max_distance_to_flow": "largest distance to the flow over the saved times",
    "t": "time of the save; for descent, the time of the nearest step",
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
    **axes: Any,
) -> "xr.Dataset":
    """Run a flow and optimizers from the same starts, and measure how far apart they are at the same times.

    Args:
        model: the model.
        start: a `State`, with one leading axis for several starts, or the kind of random starts: `"sphere"`,
            `"class-means"`, `"on-subspace"` or `"balanced"`, the functions of `fc.initial`.
        optimizers: a mapping from names to methods. A method is a text with the name of an optax optimizer and its
            numbers (`"adam:learning_rate=0.01,b1=0.8"`), a ready optimizer (`optax.sgd(0.05)`), or a method object
            (`fc.Descent(...)`, `fc.ModifiedFlow(0.05)`; as a text `"modified-flow:learning_rate=0.05"`). A list of
            texts also works; the texts are then the names.
        ts: the times at which all methods are saved, shape (time,), or roughly how many times to save up to the latest
            plateau time of the starts (or the flow's `t1`). Given a count, the times are those of steps of the descent
            with the fewest steps, unless its step size is an axis.
        eps, seeds: norms and seeds of the random starts, as for `fc.sweep`; default 16 seeds.
        metrics: names of the metrics. Default: all metrics.
        flow: the reference that the others are compared with, as a flow or its text.
        num_steps: the most steps that the optimizers may take. Default: as many as they need to reach the last time.
        keep_final: keep `H`, `W` and `b` at the last time.
        devices: the number of devices, or a list of them; default all local devices, with every CPU core as a device,
            as in `fc.sweep`.
        width: lanes that run in lockstep; the default depends on the platform and the size of the state.
        progress: show a progress bar on standard error.
        **axes: further axes: `learning_rate=[...]`, or any other number that optimizers given as texts leave open, and
            the model's `weight_decay`. All values run as one compiled batch.

    Returns:
        A Dataset with the dimensions `method` (the flow first; choose with `.sel({"method": "adam"})`), the axes, `eps`
        and `seed` (`lane` for several given states, neither for a single state), and `time`:

        - the metrics; `balancedness` is the drift of `W^T W - H H^T`, which descent changes and the flow conserves;
        - `t`: the time of each save; a descent is saved at its step nearest to `time`;
        - `distance_to_flow`: `||z_k - z(t_k)||_E / ||z(t_k)||_E`, with the flow at exactly the descent's time, and
          `max_distance_to_flow`, its largest value over time;
        - `verdict`, `t_end`, `steps`, `steps_rejected`; a diverging lane is `non_finite` and does not affect others.

    Raises:
        UsageError: for unknown or invalid optimizers, numbers or axes, starts that do not fit the model, or too few
            steps.
        DevicesWarning: as a warning, if cores stay idle because JAX was used before.

    Source: the time of a step is the distance that the optimizer moves under a unit force, see `fc.Descent`. In this
    time, descent is O(step size) away from the gradient flow and O(step size squared) away from `fc.ModifiedFlow`.

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
    for one in candidates:
        one.method.check_fits(model)
        if one.method.time_name != "time":
            raise UsageError(
                f"{one.name!r} has times {one.method.time_name}, and a comparison needs the times t: use "
                'clock="log-steps", or leave it out.'
            )
    check_axes(candidates, axes)
    grid, starts = _grid(model, start, eps, seeds, candidates, axes)
    random = grid.start if starts is None else None
    shape = starts or jax.eval_shape(lambda: grid.start(model, 1.0, key=jax.random.key(0)))
    names = common_names(decayed(model, axes), shape.columns, metrics)
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
    """The grid of lanes, and the given starts if there are any.

    The axes are the numbers, then `eps` and `seed` for random starts, or `lane` for given ones.
    """
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
        starts = _in_lanes(reducible(model, checked_starts(model, start), candidates[0].method.coordinates))
        checked = checked_axes(allowed, [1.0], 1, axes)
        checked = {name: checked[name] for name in checked if name in axes} | {"lane": tuple(range(len(starts.W)))}
    for name in model.numbers:
        for value in checked.get(name, ()):
            model.with_numbers({name: value})
    return Grid(model, candidates[0].method, checked, random), starts


def _in_lanes(starts: State) -> State:
    """The starts with one leading axis on every array, including the arrays of the columns."""
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
    """How many lanes run in lockstep: as in a sweep, but few enough that their states at all times fit into memory."""
    whole = any(method.coordinates == "sample" for method in methods)
    size = model.num_features * model.num_samples if whole else state_size(model)
    bytes_a_lane = 8 * size * saves * 2 * len(methods)
    factorises = any(method.factorises for method in methods)
    return max(1, min(block_width(model, devices, lanes, factorises, saves), BYTES_UNDER_WAY // bytes_a_lane))


def _outcome(
    lane: ComparedLane, shared: Shared, grid: Grid, width: int, devices, progress: bool
) -> dict[str, np.ndarray]:
    """The variables of all lanes; the lanes are the leading axis, in the order of the grid."""
    lanes = _all_lanes(grid)
    # Lanes of similar cost run together: descents with equal step sizes take equally many steps.
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
    coords["method"] = ("method", list(names), {"long_name": "the flow and the methods compared with it"})
    coords["time"] = ("time", times, {"long_name": "time", "units": "1"})
    return xr.Dataset(data, coords)

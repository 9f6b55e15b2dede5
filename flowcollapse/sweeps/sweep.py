"""The verb `sweep`: every lane of a grid, on every device, into memory or into a store that can be resumed."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import Number, check_flag, check_integer, shown
from .._errors import UsageError
from .._files import local_path
from ..initial import STARTS, Start
from ..methods.base import Method
from ..metrics.registry import METRICS
from ..model.ufm import UFM
from ..results.provenance import provenance
from ..settings import take_cpu_cores, tell_precision
from ..simulation import checked_times
from .capacity import default_lanes
from .dataset import empty_dataset
from .engine import Device, chosen_devices
from .filling import fill
from .grid import Batch, Grid, Task, batches, chunk_sides, make_grid, task_sides, tasks
from .identity import configuration, united
from .lane import Plan, common_metrics
from .local import Local, Result
from .store import GROUP, Store, check_place, configuration_of, locked, open_sweep, put

if TYPE_CHECKING:
    import xarray as xr

NUM_SAVES = 41


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep: `dataset` holds the finished lanes, and the message says how to resume.

    Example:
        >>> import flowcollapse as fc
        >>> def patient(**options):
        ...     try:
        ...         return fc.sweep(**options)
        ...     except fc.Interrupted as stop:
        ...         return stop.dataset
    """

    def __init__(self, message: str, dataset: "xr.Dataset"):
        super().__init__(message)
        self.dataset = dataset


def sweep(
    model: UFM,
    method: Method,
    *,
    eps: Number | Iterable[Any],
    seeds: Number | Iterable[Any] = 256,
    ts: Number | Iterable[Any] | None = None,
    metrics: Any = None,
    store: str | os.PathLike[str] | None = None,
    devices: int | Iterable[Device] | None = None,
    progress: bool = True,
    start: Any = "sphere",
    keep_final: bool = False,
    width: int | None = None,
    lanes_per_task: int | None = None,
    scheduler: Any = None,
    distributed: bool = False,
    **axes: Any,
) -> "xr.Dataset":
    """Run a method from many starts: over scales and seeds, and over any other number by name.

    Args:
        model: the model.
        method: `fc.Flow(...)`, `fc.Descent("sgd", ...)`, `fc.ModifiedFlow(...)` or `fc.HeavyBallFlow(...)`.
        eps: norms of the starts: a list, an array of any library, a generator, or a single number.
        seeds: the number of seeds, or a list of them. The start of a lane is
            `fc.initial.sphere(model, eps, key=jax.random.key(seed))`, so it depends only on its seed and eps.
        ts: save times that all lanes share, shape (time,), or the number of equally spaced times that each lane saves
            up to its own end; default 41.
        metrics: names of the metrics to keep. Default: every metric that all lanes have, except `sharpness`.
        store: a local folder that the sweep is written to while it runs. The same call resumes it. A call with more
            seeds, or other values on any axis, adds them and computes only the new lanes; a call with fewer returns
            just those lanes. Both leave the existing lanes unchanged.
        devices: the number of devices, or a list of them; default all local devices. Every CPU core is a device, unless
            the program used JAX before: see `fc.use_cpu_cores`.
        progress: show a progress bar on standard error.
        start: `"sphere"`, `"class-means"`, `"on-subspace"` or `"balanced"`, the functions of `fc.initial`, or
            `"module:name"` for your own.
        keep_final: keep `H`, `W` and `b` at the end of every lane.
        width: lanes that run in lockstep; the default depends on the platform and the size of the state.
        lanes_per_task: the most lanes computed, held in memory and written at once; the default depends on the size of
            the state. A store keeps the chunks it was made with.
        scheduler: address or client of a Dask cluster whose workers run the tasks; needs `flowcollapse[cluster]`.
        distributed: whether this is one of several processes of `jax.distributed` that share the tasks and the store.
        **axes: further axes by name: `weight_decay`, or a number of the method (such as `rtol`, `t1` or
            `learning_rate`), of the loss or of the start; also `num_classes`, `samples_per_class` and `num_features`,
            which compile once per shape.

    Returns:
        A Dataset with a dimension for each axis, then `eps`, `seed` and `time`: the metrics, the `verdict` (int8, with
        `flag_meanings`; -1 is missing), `t_end`, steps, units, long names, provenance. A dataset from a store is lazy.
        The attributes `lanes_computed`, `lanes_per_second` and `lane_efficiency` describe the run. Lane efficiency is
        the number of steps that lanes took, divided by the number computed: lanes of a block wait for the slowest.

    Raises:
        UsageError: for axes that are empty or repeat a value, unknown names, times beyond the end, no devices, or a
            store that holds another sweep, is in use or cannot be written. With a store, also for a method that cannot
            be described exactly: a ready optimizer, or a schedule or function that is not a named object of a module.
        PrecisionWarning: as a warning, for float32.
        DevicesWarning: as a warning, if cores stay idle because JAX was used before.
        Interrupted: after Ctrl-C, once the running batches are finished and written.

    Example:
        >>> import flowcollapse as fc
        >>> fc.enable_x64()
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> grid = fc.sweep(model, fc.Flow(rtol=1e-4), eps=[1.0, 0.1], seeds=4, ts=5, metrics=["snc1"], progress=False)
        >>> dict(grid.sizes)
        {'eps': 2, 'seed': 4, 'time': 5}
    """
    take_cpu_cores(devices)
    for name, value in (("progress", progress), ("keep_final", keep_final), ("distributed", distributed)):
        check_flag(name, value)
    _check_start(start)
    plan = _plan(make_grid(model, method, eps, seeds, axes, start), ts, metrics, keep_final)
    for name, value in (("width", width), ("lanes_per_task", lanes_per_task)):
        if value is not None:
            check_integer(name, value)
    if distributed and (store is None or scheduler is not None):
        raise UsageError("distributed=True needs a store, which the processes share, and no scheduler: pass store=.")
    path = None if store is None else local_path(store, "store")
    if path is not None:
        configuration(plan)  # refuses what cannot be described
        check_place(path)
    chosen = chosen_devices(devices)
    capacity = lanes_per_task or default_lanes(plan, chosen, width)
    about = tell_precision(jnp.result_type(float))
    with contextlib.ExitStack() as stack:
        client = None if scheduler is None else stack.enter_context(_cluster().connected(scheduler))

        def compute(plan: Plan, todo: Iterator[Batch], capacity: int) -> Iterator[Result]:
            if client is None:
                return Local(plan, capacity, chosen, width, by_default=devices is None).results(todo)
            return _cluster().on_cluster(client, plan, capacity, width, todo)

        if path is None:
            return _into_memory(plan, capacity, compute, progress, about)
        return _into_store(path, plan, capacity, compute, progress, distributed, about)


def _cluster() -> Any:
    from . import cluster

    return cluster


def _check_start(start: Any) -> None:
    """Raise `UsageError` for a state, or anything else that is not a kind of random start."""
    if not isinstance(start, str | Start):
        raise UsageError(
            f"start must be the name of a random start, {', '.join(map(repr, STARTS))}, got {type(start).__name__}: "
            "give eps and seeds, or pass states to fc.compare or fc.simulate."
        )


def _plan(grid: Grid, ts: Any, metrics: Any, keep_final: Any) -> Plan:
    """The plan of a sweep, checked.

    Raises:
        UsageError: for bad times or metrics, or objects without a name.
    """
    times = _times(NUM_SAVES if ts is None else ts, grid)
    names = tuple(dict.fromkeys(common_metrics(grid, metrics)))
    return Plan(grid, times, names, bool(keep_final))


Compute = Callable[[Plan, Iterator[Batch], int], Iterator[Result]]
"""Maps a sweep, its remaining batches and the most lanes in a batch to the results of the batches."""


def _into_memory(plan: Plan, capacity: int, compute: Compute, progress: bool, about: dict[str, Any]) -> "xr.Dataset":
    dataset = empty_dataset(plan)
    arrays = {str(name): values.values for name, values in dataset.data_vars.items()}

    def keep(task: Task, variables: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            put(array, task, variables[name])

    begun = plan.grid.start.described(without=plan.grid.axes)
    dataset.attrs = provenance(plan.grid.model, plan.grid.method, title="flowcollapse sweep", start=begun)
    sides = task_sides(plan.grid, capacity)
    todo, most = [(task,) for task in tasks(plan.grid, sides)], math.prod(sides)
    report = fill(plan, todo, plan.grid.num_lanes, lambda left: compute(plan, left, most), keep, progress)
    dataset.attrs |= report.attributes | about
    if report.interrupted:
        raise Interrupted("Interrupted. The lanes that were finished are in this exception's `dataset`.", dataset)
    return dataset


def _into_store(
    path: Path, plan: Plan, capacity: int, compute: Compute, progress: bool, distributed: bool, about: dict[str, Any]
) -> "xr.Dataset":
    index, count = (jax.process_index(), jax.process_count()) if distributed else (0, 1)
    with contextlib.ExitStack() as stack:
        if index == 0:
            if not (path / GROUP).exists():
                Store.create(path, plan, chunk_sides(task_sides(plan.grid, capacity), plan.grid, capacity))
            stack.enter_context(locked(path))
            found = configuration_of(path)
            if (grown := united(path, found, plan)).grid.shape != tuple(map(len, found["axes"].values())):
                Store.grow(path, grown)
        if count > 1:  # the other processes must find the store; they do not wait for each other after this
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("the store of the sweep is there")
        whole = united(path, configuration_of(path), plan)
        store, asked = Store(path), _places(plan.grid, whole.grid)
        capacity = min(max(capacity, math.prod(store.sides)), plan.grid.num_lanes)
        mine = (task for task in tasks(whole.grid, store.sides) if task.index % count == index)
        lanes, left = _left(mine, store, asked)
        todo = list(batches(whole.grid, left, capacity))
        report = fill(plan, todo, lanes, lambda left: compute(whole, left, capacity), store.write, progress)
    dataset = _selected(open_sweep(path), plan, asked).assign_attrs(report.attributes)
    if report.interrupted:
        left = lanes - report.lanes_before - report.lanes
        message = f"Interrupted: {path} holds all finished lanes, {left} lanes are left. Run the same again to resume."
        raise Interrupted(message, dataset)
    return dataset


def _places(grid: Grid, whole: Grid) -> dict[str, np.ndarray]:
    """The positions of a grid's values on the axes of a larger grid that holds them all."""
    found = {}
    for name, values in whole.axes.items():
        place = {value: i for i, value in enumerate(values)}
        found[name] = np.asarray([place[value] for value in grid.axes[name]])
    return found


def _left(todo: Iterable[Task], store: Store, asked: Mapping[str, np.ndarray]) -> tuple[int, list[Task]]:
    """The number of requested lanes among the tasks, and the tasks with requested lanes the store does not hold yet."""
    lanes, left = 0, []
    for task in todo:
        sides = zip(asked.values(), task.box, strict=True)
        of_box = [np.isin(np.arange(side.start, side.stop), places) for places, side in sides]
        number = math.prod(int(one.sum()) for one in of_box)
        if number == 0:
            continue
        lanes += number
        missing = store.missing(task) & functools.reduce(np.logical_and.outer, of_box)
        if missing.any():
            left.append(task if missing.all() else task._replace(lanes=np.flatnonzero(missing)))
    return lanes, left


def _selected(dataset: "xr.Dataset", plan: Plan, asked: Mapping[str, np.ndarray]) -> "xr.Dataset":
    """The requested lanes and metrics of a store's dataset, in the requested order."""
    whole = {name: np.array_equal(places, np.arange(dataset.sizes[name])) for name, places in asked.items()}
    dataset = dataset.isel({name: places for name, places in asked.items() if not whole[name]})
    dataset = dataset.drop_vars([name for name in dataset.data_vars if name in METRICS and name not in plan.metrics])
    return dataset.transpose(*plan.grid.axes, ...)


def _times(ts: Any, grid: Grid) -> tuple[float, ...] | int:
    """The save times as Python numbers, or the number of save times."""
    try:
        ts = np.asarray(list(ts) if isinstance(ts, Iterator) else ts)
        ts = ts if ts.ndim else ts.item()
    except Exception:  # objects of other libraries raise their own errors when converted
        raise UsageError(
            f"ts must be a list of increasing times or a number of them, got {shown(ts)}: give one of these."
        ) from None
    if isinstance(ts, int | np.integer) and not isinstance(ts, bool):
        check_integer("ts", ts)
        first = {name: grid.axes[name][0] for name in grid.method.numbers if name in grid.axes}
        grid.method.with_numbers(first).saves(int(ts), jnp.result_type(float))
        return int(ts)
    for value in grid.axes.get("t1", (None,)):
        method = grid.method if value is None else grid.method.with_numbers({"t1": value})
        times = np.asarray(checked_times(ts, method, np.float64))
    stepped = grid.method.stepped
    if stepped is not None:
        names = [name for name in grid.axes if name in stepped.numbers]
        places = np.meshgrid(*(np.asarray(grid.axes[name]) for name in names), indexing="ij") if names else []
        numbers = {name: place.ravel() for name, place in zip(names, places, strict=True)}
        ends = jax.jit(jax.vmap(lambda n, _: stepped.with_numbers(n).duration(), (0, 0)))(
            numbers, np.zeros(max(1, *(len(v) for v in numbers.values())) if numbers else 1)
        )
        shortest = int(np.argmin(ends))
        if times[-1] > float(ends[shortest]) * (1 + 1e-6):
            which = {name: float(values[shortest]) for name, values in numbers.items()}
            raise UsageError(
                f"ts ends at {times[-1]:.6g}, but {stepped.label}{f' with {which}' if which else ''} ends at "
                f"{float(ends[shortest]):.6g}: raise num_steps, or end ts earlier."
            )
    return tuple(times.tolist())

"""The verb `sweep`: every lane of a grid, on every device, into memory or into a store that can be resumed."""

import contextlib
import dataclasses
import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from .._checks import check_integer
from .._errors import UsageError, nearest
from ..descent import Descent
from ..initial import STARTS
from ..method import Method
from ..model import UFM
from ..provenance import provenance
from ..simulation import checked_times
from ..stopping import Verdict
from .engine import Device, chosen_devices
from .grid import Grid, Task, make_grid, task_sides, tasks
from .lanes import Plan, common_metrics, empty_dataset
from .local import Local, Result, default_lanes
from .store import MARK, Store, check_place, check_same, locked, open_sweep, put

if TYPE_CHECKING:
    import xarray as xr

NUM_SAVES = 41


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a sweep. What was finished by then is in `dataset`; the message says how to go on."""

    def __init__(self, message: str, dataset: "xr.Dataset"):
        super().__init__(message)
        self.dataset = dataset


def sweep(
    model: UFM,
    method: Method,
    *,
    eps: Sequence[float],
    seeds: int | Sequence[int] = 256,
    ts: Sequence[float] | np.ndarray | int | None = None,
    metrics: Any = None,
    store: str | Path | None = None,
    devices: int | Sequence[Device] | None = None,
    progress: bool = True,
    start: str = "sphere",
    keep_final: bool = False,
    width: int | None = None,
    lanes_per_task: int | None = None,
    scheduler: Any = None,
    distributed: bool = False,
    **axes: Sequence[Any],
) -> "xr.Dataset":
    """Run a method from many starts: over scales and seeds, and over any other number by name.

    Args:
        model: the model.
        method: `fc.Flow(...)`, `fc.Descent("sgd", ...)`, `fc.ModifiedFlow(...)` or `fc.HeavyBallFlow(...)`.
        eps: norms of the starts.
        seeds: how many, or which. The start of a lane is `fc.initial.sphere(model, eps, key=jax.random.key(seed))`, so
            that it depends on its seed and eps alone.
        ts: save times that all lanes share, or how many equal times each lane has up to its own end; default 41.
        metrics: names of the metrics to keep; default all that every lane can have but `sharpness`.
        store: a folder that the sweep is written to while it runs. The same call resumes it.
        devices: how many, or which; default all local ones. See `fc.use_cpu_cores`.
        progress: show a bar on standard error.
        start: `"sphere"`, `"on-subspace"` or `"balanced"`, the functions of `fc.initial`.
        keep_final: keep `H`, `W` and `b` at the end of every lane.
        width: lanes that run in lockstep; default by the platform and the size of the state.
        lanes_per_task: most lanes that are computed, held in memory and written at once; default by the size of the
            state. A store keeps what it was made with.
        scheduler: address or client of a Dask cluster whose workers run the tasks; needs `flowcollapse[cluster]`.
        distributed: this is one of several processes of `jax.distributed`, which share the tasks and the store.
        **axes: further axes by name: `weight_decay`, `rtol`, `t1`, or a number of the optimizer such as
            `learning_rate`; and `num_classes`, `samples_per_class`, `num_features`, one compilation for each shape.

    Returns:
        A Dataset with a dimension for each axis, then `eps`, `seed` and `time`: the metrics, the `verdict` (int8, with
        `flag_meanings`; -1 is missing), `t_end`, steps, units, long names, provenance. From a store it is lazy. Its
        attributes `lanes_computed`, `lanes_per_second` and `lane_efficiency` (steps that lanes took over steps that
        were paid for because lanes of a block wait for each other) tell how the sweep went.

    Raises:
        UsageError: for empty or doubled axes, unknown names, times beyond the end, no devices, or a store that holds
            another sweep, is in use or cannot be written to.
        Interrupted: after Ctrl-C, once what was under way is finished and written.

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> grid = fc.sweep(model, fc.Flow(rtol=1e-4), eps=[1.0, 0.1], seeds=4, ts=5, metrics=["snc1"], progress=False)
        >>> dict(grid.sizes)
        {'eps': 2, 'seed': 4, 'time': 5}
    """
    grid = make_grid(model, method, eps, seeds, axes)
    if start not in STARTS:
        raise UsageError(f"start {start!r} is not one of {', '.join(STARTS)}{nearest(start, STARTS) or '.'}")
    times = _times(NUM_SAVES if ts is None else ts, grid)
    plan = Plan(grid, start, times, common_metrics(grid, start, metrics), keep_final)
    for name, value in (("width", width), ("lanes_per_task", lanes_per_task)):
        if value is not None:
            check_integer(name, value)
    if distributed and (store is None or scheduler is not None):
        raise UsageError("distributed=True needs a store, which the processes share, and no scheduler: pass store=.")
    chosen = chosen_devices(devices)
    sides = task_sides(grid, lanes_per_task or default_lanes(plan, chosen, width))

    def compute(todo: Iterator[Task], capacity: int) -> Iterator[Result]:
        if scheduler is None:
            return Local(plan, capacity, chosen, width).results(todo)
        from .cluster import on_cluster

        return on_cluster(scheduler, plan, capacity, width, todo)

    if store is None:
        return _into_memory(plan, sides, compute, progress)
    return _into_store(Path(store), plan, sides, compute, progress, distributed)


Compute = Callable[[Iterator[Task], int], Iterator[Result]]
"""From the tasks that are left and the most lanes that one has, to their results."""


def _into_memory(plan: Plan, sides: tuple[int, ...], compute: Compute, progress: bool) -> "xr.Dataset":
    dataset = empty_dataset(plan)
    arrays = {str(name): values.values for name, values in dataset.data_vars.items()}

    def keep(result: Result) -> None:
        for name, array in arrays.items():
            put(array, result.task, result.variables[name])

    dataset.attrs = provenance(plan.grid.model, plan.grid.method, title="flowcollapse sweep")
    todo = list(tasks(plan.grid, sides))
    report = _fill(plan, todo, plan.grid.num_lanes, lambda left: compute(left, int(np.prod(sides))), keep, progress)
    dataset.attrs |= report.attributes
    if report.interrupted:
        raise Interrupted("Interrupted. The lanes that were finished are in this exception's `dataset`.", dataset)
    return dataset


def _into_store(
    path: Path, plan: Plan, sides: tuple[int, ...], compute: Compute, progress: bool, distributed: bool
) -> "xr.Dataset":
    index, count = (jax.process_index(), jax.process_count()) if distributed else (0, 1)
    with contextlib.ExitStack() as stack:
        if index == 0:
            check_place(path)
            if not path.exists():
                Store.create(path, plan, sides)
            stack.enter_context(locked(path))
        if count > 1:  # the others find the store made; after this the processes wait for each other no more
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("the store of the sweep is there")
        check_same(path, plan)
        store = Store(path)
        mine = [task for task in tasks(plan.grid, store.sides) if task.index % count == index]
        todo = [task for task in mine if not store.is_complete(task)]
        lanes, capacity = sum(task.num_lanes for task in mine), int(np.prod(store.sides))

        def keep(result: Result) -> None:
            store.write(result.task, result.variables)

        report = _fill(plan, todo, lanes, lambda left: compute(left, capacity), keep, progress)
    dataset = open_sweep(path).assign_attrs(report.attributes)
    if report.interrupted:
        left = lanes - report.lanes_before - report.lanes
        message = (
            f"Interrupted: {path} holds all that was finished, {left} lanes are left. Run the same again to resume."
        )
        raise Interrupted(message, dataset)
    return dataset


@dataclasses.dataclass
class Report:
    """How a sweep went: lanes finished before and now, steps taken and paid for, seconds."""

    lanes_before: int
    lanes: int = 0
    taken: int = 0
    paid: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    verdicts: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "lanes_computed": self.lanes,
            "lanes_per_second": self.lanes / self.seconds if self.seconds else 0.0,
            "lane_efficiency": self.taken / self.paid if self.paid else 1.0,
        }


def _fill(
    plan: Plan,
    todo: list[Task],
    lanes: int,
    compute: Callable[[Iterator[Task]], Iterator[Result]],
    keep: Callable[[Result], None],
    progress: bool,
) -> Report:
    """Keep each result as it comes. After Ctrl-C no task is begun, and those under way are finished and kept."""
    report = Report(lanes_before=lanes - sum(task.num_lanes for task in todo))
    begin = time.perf_counter()
    bar = tqdm(
        desc=plan.grid.method.name,
        total=lanes,
        initial=report.lanes_before,
        unit="lane",
        unit_scale=True,
        disable=not progress,
    )
    with bar, _interruptible() as asked:
        for result in compute(itertools.takewhile(lambda _: not asked.is_set(), todo)):
            keep(result)
            report.lanes += result.task.num_lanes
            report.taken, report.paid = report.taken + result.taken, report.paid + result.paid
            report.seconds = time.perf_counter() - begin
            codes, counts = np.unique(result.variables[MARK], return_counts=True)
            for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
                report.verdicts[Verdict(code).name] += number
            bar.set_postfix(report.verdicts, refresh=False)
            bar.update(result.task.num_lanes)
    report.interrupted = report.lanes_before + report.lanes < lanes
    return report


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts at once. Signals reach the main thread only."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        signal.signal(signal.SIGINT, before)
        tqdm.write("Ending after what is under way; Ctrl-C again ends at once.", file=sys.stderr)
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _times(ts: Any, grid: Grid) -> tuple[float, ...] | int:
    """The save times as Python's own numbers, or how many of them."""
    if isinstance(ts, int | np.integer) and not isinstance(ts, bool):
        check_integer("ts", ts)
        return int(ts)
    for value in grid.axes.get("t1", (None,)):
        method = grid.method if value is None else grid.method.with_numbers({"t1": value})
        times = np.asarray(checked_times(ts, method, np.float64))
    if isinstance(grid.method, Descent):
        method = grid.method
        names = [name for name in grid.axes if name in method.numbers]
        places = np.meshgrid(*(np.asarray(grid.axes[name]) for name in names), indexing="ij") if names else []
        numbers = {name: place.ravel() for name, place in zip(names, places, strict=True)}
        ends = jax.jit(jax.vmap(lambda n, _: method.with_numbers(n).duration(), (0, 0)))(
            numbers, np.zeros(max(1, *(len(v) for v in numbers.values())) if numbers else 1)
        )
        shortest = int(np.argmin(ends))
        if times[-1] > float(ends[shortest]) * (1 + 1e-6):
            which = {name: float(values[shortest]) for name, values in numbers.items()}
            raise UsageError(
                f"ts ends at {times[-1]:.6g}, but {method.label}{f' with {which}' if which else ''} ends at "
                f"{float(ends[shortest]):.6g}: raise num_steps, or end ts earlier."
            )
    return tuple(times.tolist())

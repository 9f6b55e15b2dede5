"""Runs the tasks of a sweep on this process's devices, with one program for each combination of shapes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..settings import tell_idle_cores
from .capacity import COSTLY, block_width, blocks_a_call, bytes_kept, expected_cost
from .engine import Device, Engine
from .grid import Batch, Task, lane_values, shape_values
from .lane import Plan


class Result(NamedTuple):
    """A finished batch: its variables, with the lanes as the leading axis, the steps taken and the steps computed."""

    batch: Batch
    variables: dict[str, np.ndarray]
    taken: int
    paid: int

    @property
    def num_lanes(self) -> int:
        return sum(task.num_lanes for task in self.batch)

    def of_tasks(self) -> Iterator[tuple[Task, dict[str, np.ndarray]]]:
        """Each task with its variables."""
        first = 0
        for task in self.batch:
            lanes = slice(first, first := first + task.num_lanes)
            yield task, {name: values[lanes] for name, values in self.variables.items()}


class Local:
    """Runs batches of tasks on one or more devices.

    Args:
        plan: the sweep.
        capacity: the most lanes in a batch.
        devices: where to run.
        width: lanes in lockstep; the default depends on the platform and the size of the state.
        by_default: whether the devices are simply those JAX has, rather than the caller's choice.
    """

    def __init__(
        self, plan: Plan, capacity: int, devices: Sequence[Device], width: int | None, by_default: bool = False
    ):
        self.plan, self.capacity, self.devices, self.width = plan, capacity, devices, width
        self.by_default = by_default
        self._engines: dict[str, Engine] = {}

    def results(self, todo: Iterable[Batch]) -> Iterator[Result]:
        """The results of the batches, in order.

        The next batch starts before this one is awaited. A device that finishes early goes on with the next batch, and
        all devices compute while the caller handles a result.
        """
        running: Callable[[], Result] | None = None
        for batch in todo:
            following = self.submit(batch)
            if running is not None:
                yield running()
            running = following
        if running is not None:
            yield running()

    def submit(self, batch: Batch) -> Callable[[], Result]:
        """Start a batch, and return a function that waits for its result."""
        parts = [lane_values(self.plan.grid, task) for task in batch]
        lanes = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = expected_cost(lanes)
        engine = self._engine(batch[0])
        if self.by_default:
            tell_idle_cores(engine.devices, -(-len(order) // engine.width))
        submitted = engine.submit({name: values[order] for name, values in lanes.items()})

        def wait() -> Result:
            ordered = submitted.result()
            steps = np.sum([values for name, values in ordered.items() if name in COSTLY], axis=0)
            back = np.argsort(order)
            variables = {name: values[back] for name, values in ordered.items()}
            return Result(batch, variables, *submitted.lockstep(steps))

        return wait

    def _engine(self, task: Task) -> Engine:
        shapes = shape_values(self.plan.grid, task)
        name = repr(shapes)
        if name not in self._engines:
            model = self.plan.grid.model.with_numbers(shapes)
            factorises, saves = self.plan.grid.method.factorises, self.plan.saves
            width = self.width or block_width(model, self.devices, self.capacity, factorises, saves)
            lane, shared = self.plan.lane(shapes)
            blocks = blocks_a_call(bytes_kept(self.plan), width)
            self._engines[name] = Engine(lane, width=width, devices=self.devices, shared=shared, blocks=blocks)
        return self._engines[name]

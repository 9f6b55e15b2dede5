"""Stores the results of a sweep as they arrive: a progress bar, a count of verdicts, and a clean stop on Ctrl-C."""

import contextlib
import dataclasses
import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from ..endings.verdict import Verdict
from .grid import Batch, Task
from .lane import Plan
from .local import Result
from .store import MARK


@dataclasses.dataclass
class Report:
    """How a sweep went: lanes finished earlier and now, steps taken and steps computed, seconds."""

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


def fill(
    plan: Plan,
    todo: list[Batch],
    lanes: int,
    compute: Callable[[Iterator[Batch]], Iterator[Result]],
    keep: Callable[[Task, dict[str, np.ndarray]], None],
    progress: bool,
) -> Report:
    """Store each result as it arrives. After Ctrl-C no new batch starts; running batches finish and are stored."""
    report = Report(lanes_before=lanes - sum(task.num_lanes for batch in todo for task in batch))
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
            for task, variables in result.of_tasks():
                keep(task, variables)
            report.lanes += result.num_lanes
            report.taken, report.paid = report.taken + result.taken, report.paid + result.paid
            report.seconds = time.perf_counter() - begin
            codes, counts = np.unique(result.variables[MARK], return_counts=True)
            for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
                report.verdicts[Verdict(code).name] += number
            bar.set_postfix(report.verdicts, refresh=False)
            bar.update(result.num_lanes)
    report.interrupted = report.lanes_before + report.lanes < lanes
    return report


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second interrupts at once. Only the main thread receives signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame):
        signal.signal(signal.SIGINT, before)
        tqdm.write("Stopping once the running lanes finish; press Ctrl-C again to stop now.", file=sys.stderr)
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

"""How the results of a sweep are kept as they come: progress, a count of verdicts, and an orderly end after Ctrl-C."""

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


def fill(
    plan: Plan,
    todo: list[Batch],
    lanes: int,
    compute: Callable[[Iterator[Batch]], Iterator[Result]],
    keep: Callable[[Task, dict[str, np.ndarray]], None],
    progress: bool,
) -> Report:
    """Keep each result as it comes. After Ctrl-C no batch is begun, and those under way are finished and kept."""
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

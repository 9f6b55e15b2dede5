"""The command that makes a page to explore results in a browser."""

import dataclasses
from pathlib import Path

import tyro

from .console import Console
from .options import Command


@dataclasses.dataclass(frozen=True)
class Report(Command):
    """Make one page about the results of simulate, sweep, compare, measure or reproduce. It opens in any browser, from
    disk and without a network: curves with bands, limits against eps, verdicts, and the slowest and the failed runs. A
    click on a run shows the command that repeats it. Needs the extra report."""

    file: tyro.conf.Positional[Path]
    """A netCDF file, or the store of a sweep, finished or not."""
    out: Path = Path("report.html")
    """The page: a name that ends in .html."""

    def run(self, console: Console) -> None:
        from ..reporting.page import report

        report(self.file, self.out)
        console.say(f"Wrote {self.out} ({self.out.stat().st_size / 1e6:.1f} MB)")

"""The command that makes a page to explore results in a browser."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from .._errors import UsageError
from .console import Console
from .options import Command


@dataclasses.dataclass(frozen=True)
class Report(Command):
    """Make one page about the results of simulate, sweep, compare, measure, reproduce or show. It opens in any browser,
    from disk and without a network: curves with bands, limits against eps, verdicts, and the slowest and the failed
    runs. A click on a run shows the command that repeats it. Needs the extra report.

    Example:
        flowcollapse report run.nc --out run.html
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A netCDF file or zarr store of one of these commands; the store of a sweep may be unfinished."""
    out: Path = Path("report.html")
    """The page: a name that ends in .html."""

    def run(self, console: Console) -> None:
        if self.file is None:
            raise UsageError("the file of the results is missing: give one, as in flowcollapse report run.nc.")
        from ..reporting.page import report

        report(self.file, self.out)
        console.say(f"Wrote {self.out} ({self.out.stat().st_size / 1e6:.1f} MB)")

"""The command that draws the files of the other commands."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .._errors import UsageError
from .console import Console, check_picture_file, draw_without_a_window
from .options import Command

if TYPE_CHECKING:
    import xarray as xr

DRAWN = {
    "run": ("overview",),
    "sweep": ("overview", "stability", "figure1", "figure2"),
    "comparison": ("overview",),
    "measurement": ("overview",),
    "picture": ("overview",),
    "figures": ("overview", "figure1", "figure2"),
}
"""The kinds of pictures for each kind of file."""


@dataclasses.dataclass(frozen=True)
class Plot(Command):
    """Draw the results of simulate, sweep, compare, measure, reproduce and show. A run shows its metrics against time.
    A sweep shows bands over seeds against time, the limit against eps, a heat map over two axes, and the verdicts. A
    comparison shows the paths, their distance to the flow, and where they end. A measurement shows NC1 to NC4,
    and a picture of show is drawn again.

    Example:
        flowcollapse plot run.nc --metric snc1 --out snc1.png
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A netCDF file or zarr store of one of these commands; the store of a sweep may be unfinished."""
    kind: Literal["overview", "stability", "figure1", "figure2"] = "overview"
    """overview: the pictures named above. stability: where descent ends, in a sweep over learning_rate. figure1 and
    figure2: the paper's figures, from the runs of reproduce or a sweep over eps."""
    metric: str | None = None
    """The metric to draw. Default: snc1, or the first one saved; for a run, several metrics."""
    out: Path | None = None
    """File for the picture: .png, .pdf or .svg. Default: run.png, sweep.png, stability.png and so on."""

    def run(self, console: Console) -> None:
        if self.file is None:
            raise UsageError("the file to draw is missing: give one, as in flowcollapse plot run.nc.")
        check_picture_file(self.out)
        draw_without_a_window()
        from .. import plot
        from ..plot._read import kind_of, read

        dataset = read(self.file)
        what = kind_of(dataset)
        if what not in DRAWN:
            raise UsageError(
                f"{self.file} holds no run, sweep, comparison, measurement or picture: give the file or store of one."
            )
        if self.kind not in DRAWN[what]:
            known = ", ".join(DRAWN[what])
            raise UsageError(
                f"kind {self.kind} cannot be drawn from {self.file}, which holds a {what}: choose from {known}."
            )
        name = dataset.attrs["picture"] if what == "picture" else what if self.kind == "overview" else self.kind
        out = self.out or Path(f"{name}.png")
        check_picture_file(out)
        plot.save(self._draw(dataset, what), out)
        console.say(f"Wrote {out}")

    def _draw(self, dataset: "xr.Dataset", what: str) -> Any:
        """The axes of the picture."""
        from .. import gallery, plot

        if what == "picture":
            if self.metric is not None:
                raise UsageError(f"metric {self.metric!r} does not apply to a picture of the gallery: leave it out.")
            return gallery.draw(dataset)
        figure = self.kind if self.kind != "overview" else "figure1" if what == "figures" else ""
        if figure.startswith("figure"):
            if self.metric is not None:
                raise UsageError(f"metric {self.metric!r} does not apply to {figure}: leave it out.")
            return plot.figure1(dataset) if figure == "figure1" else plot.figure2(dataset)
        if figure == "stability":
            return plot.stability(dataset, name=self.metric or "snc1")
        if what == "measurement":
            return plot.measurement(dataset, name=self.metric)
        if what == "run":
            return plot.path(dataset, name=self.metric)
        return (plot.sweep if what == "sweep" else plot.comparison)(dataset, self.metric)

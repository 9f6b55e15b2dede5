"""The command that compares descent with the flow."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .console import Console, check_apart, check_output, check_picture_file, draw_without_a_window, options_of, write
from .options import Computing, Lanes, Model, check_devices, seeds_of
from .words import Kind


@dataclasses.dataclass(frozen=True)
class Against:
    """The methods to compare."""

    optimizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, Kind.TEXTS] = ()
    """An optax optimizer with its numbers. Give more in a list, or repeat the flag: --optimizer
    sgd:learning_rate=0.05,momentum=0.9 adam:learning_rate=0.01. A number you leave out can be an axis: --optimizer sgd
    --axis learning_rate=0.01,0.02. The flows modified-flow and heavy-ball-flow are written the same way. Default:
    sgd:learning_rate=0.02."""
    flow: str = "flow"
    """The reference: flow, optionally with its tolerance, as in flow:rtol=1e-10, or another flow, as in
    modified-flow:learning_rate=0.05."""
    num_steps: int | None = None
    """The most steps the optimizers may take. Default: as many as they need to reach the last time."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """The results to keep, and the files."""

    ts: tuple[float, ...] | None = None
    """Times at which all methods are saved. Default: times of steps, until every start has reached its plateau."""
    num_saves: int = 101
    """Approximate number of times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all metrics of the model and the starts."""
    keep_final: bool = False
    """Keep H, W and b at the last time."""
    out: Path | None = None
    """File for the comparison: .nc (netCDF), .zarr, .csv or .parquet."""
    plot: Path | None = None
    """File for a picture of the comparison: .png, .pdf or .svg."""
    metric: str | None = None
    """The metric whose paths the picture shows. Default: snc1, or the first one saved."""
    devices: int | None = None
    """Number of devices or CPU cores. Default: all."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point precision of the runs."""


@dataclasses.dataclass(frozen=True)
class Compare(Computing):
    """Run the flow and optimizers from the same starts, matched in time, and report how far apart they are.

    Example:
        flowcollapse compare --optimizer sgd:learning_rate=0.05 --eps 0.1 --seeds 2 --metrics snc1,risk --out both.nc
    """

    against: Against = dataclasses.field(default_factory=Against)
    lanes: Lanes = dataclasses.field(default_factory=lambda: Lanes(eps=(1e-1, 1e-2), seeds=("16",)))
    model: Model = dataclasses.field(default_factory=Model)
    kept: Kept = dataclasses.field(default_factory=Kept)

    def run(self, console: Console) -> None:
        import flowcollapse as fc

        kept = self.kept
        check_output(kept.out, states="--keep-final" * kept.keep_final)
        check_picture_file(kept.plot)
        check_apart(out=kept.out, plot=kept.plot)
        check_devices(kept.devices)
        seeds = seeds_of(self.lanes.seeds)
        axes: dict[str, Any] = self.lanes.axes(fc.compare)
        self.prepare(kept.precision)
        fc.use_cpu_cores(kept.devices)
        dataset = fc.compare(
            self.model.build(),
            self.lanes.start,
            self.against.optimizer or ("sgd:learning_rate=0.02",),
            kept.num_saves if kept.ts is None else kept.ts,
            eps=self.lanes.eps,
            seeds=seeds,
            metrics=kept.metrics,
            flow=self.against.flow,
            num_steps=self.against.num_steps,
            keep_final=kept.keep_final,
            devices=kept.devices,
            progress=console.bars,
            **axes,
        ).assign_attrs(options=options_of(self))
        from ..comparison.table import table

        if kept.out is not None:
            write(dataset, kept.out)
        console.say(table(dataset))
        if kept.out is not None:
            console.say(f"Wrote {kept.out}")
        if kept.plot is not None:
            draw_without_a_window()
            from .. import plot

            plot.save(plot.comparison(dataset, kept.metric)[0], kept.plot)
            console.say(f"Wrote {kept.plot}")

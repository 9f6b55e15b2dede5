"""The command that sets descent beside the flow."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .console import Console, check_apart, check_output, check_picture_file, draw_without_a_window, options_of, write
from .options import Computing, Lanes, Model, check_devices, seeds_of
from .words import Kind


@dataclasses.dataclass(frozen=True)
class Against:
    """What is compared."""

    optimizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, Kind.TEXTS] = ()
    """An optax optimizer with its numbers, once for each: --optimizer sgd:learning_rate=0.05,momentum=0.9 --optimizer
    adam:learning_rate=0.01. What it leaves open can be an axis: --optimizer sgd --axis learning_rate=0.01,0.02. The
    flows modified-flow and heavy-ball-flow are written alike. Default: sgd:learning_rate=0.02."""
    flow: str = "flow"
    """What they are compared with: flow, with its tolerance if you like, as flow:rtol=1e-10, or another flow, as
    modified-flow:learning_rate=0.05."""
    num_steps: int | None = None
    """How many steps the optimizers may take. Default: what they need to reach the last time."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept, and where."""

    ts: tuple[float, ...] | None = None
    """Times at which all are saved. Default: times of steps, up to where every start has reached its plateau."""
    num_saves: int = 101
    """About how many times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all that the model and the starts have."""
    keep_final: bool = False
    """Keep H, W and b of the last time."""
    out: Path | None = None
    """File for the comparison: .nc (netCDF), .zarr, .csv or .parquet."""
    plot: Path | None = None
    """File for a picture of it: .png, .pdf or .svg."""
    metric: str | None = None
    """Whose paths the picture shows. Default: snc1, or the first that there is."""
    devices: int | None = None
    """How many devices, or CPU cores. Default: all."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating point of the runs."""


@dataclasses.dataclass(frozen=True)
class Compare(Computing):
    """Run the flow and optimizers from the same starts, matched in time, and tell how far apart they are."""

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

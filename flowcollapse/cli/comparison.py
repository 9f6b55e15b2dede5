"""The command that sets descent beside the flow."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .options import Model, draw_without_a_window
from .sweeps import Lanes


@dataclasses.dataclass(frozen=True)
class Against:
    """What is compared."""

    optimizer: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
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
    """File for the comparison, netCDF."""
    plot: Path | None = None
    """File for a picture of it: .png, .pdf or .svg."""
    metric: str | None = None
    """Whose paths the picture shows. Default: snc1, or the first that there is."""
    devices: int | None = None
    """How many devices, or CPU cores. Default: all."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating point of the runs."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Run the flow and optimizers from the same starts, matched in time, and tell how far apart they are."""

    against: Against = dataclasses.field(default_factory=Against)
    lanes: Lanes = dataclasses.field(default_factory=lambda: Lanes(eps=(1e-1, 1e-2), seeds=16))
    model: Model = dataclasses.field(default_factory=Model)
    kept: Kept = dataclasses.field(default_factory=Kept)

    def run(self) -> None:
        import flowcollapse as fc

        from .._files import check_picture, check_writable, write_netcdf

        kept = self.kept
        if kept.plot is not None:
            check_picture(kept.plot)
        for file in (kept.out, kept.plot):
            if file is not None:
                check_writable(file)
        fc.enable_x64(kept.precision == "float64")
        fc.use_cpu_cores(kept.devices)
        axes: dict[str, Any] = self.lanes.axes()
        dataset = fc.compare(
            self.model.build(),
            self.lanes.start,
            self.against.optimizer or ("sgd:learning_rate=0.02",),
            kept.num_saves if kept.ts is None else kept.ts,
            eps=self.lanes.eps,
            seeds=self.lanes.seeds,
            metrics=kept.metrics,
            flow=self.against.flow,
            num_steps=self.against.num_steps,
            keep_final=kept.keep_final,
            devices=kept.devices,
            progress=True,
            **axes,
        ).assign_attrs(options=json.dumps(dataclasses.asdict(self), default=str))
        from ..comparison_table import table

        print(table(dataset))
        if kept.out is not None:
            write_netcdf(dataset, kept.out)
            print(f"Wrote {kept.out}")
        if kept.plot is not None:
            draw_without_a_window()
            from .. import plot

            plot.save(plot.comparison(dataset, kept.metric)[0], kept.plot)
            print(f"Wrote {kept.plot}")

"""The command that runs one trajectory."""

import dataclasses
from pathlib import Path
from typing import Literal

from .console import Console, check_apart, check_output, check_picture_file, draw_without_a_window, options_of, write
from .options import Computing, Method, Model, Start


@dataclasses.dataclass(frozen=True)
class Output:
    """The results to keep."""

    ts: tuple[float, ...] | None = None
    """Times at which metrics are saved. Default: equally spaced times up to the end."""
    num_saves: int = 101
    """Number of equally spaced times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all metrics of the model and the start, except sharpness, which is costly."""
    save_states: bool = False
    """Keep H, W and b at every saved time."""
    out: Path | None = None
    """File for the run: .nc (netCDF), .zarr, .csv or .parquet."""
    plot: Path | None = None
    """File for a picture of the run: .png, .pdf or .svg."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point precision of the run."""


@dataclasses.dataclass(frozen=True)
class Simulate(Computing):
    """Run one trajectory and print how it ended.

    Example:
        flowcollapse simulate --eps 0.01 --metrics snc1,snc2,snc3,risk --out run.nc
    """

    model: Model = dataclasses.field(default_factory=Model)
    start: Start = dataclasses.field(default_factory=Start)
    method: Method = dataclasses.field(default_factory=Method)
    output: Output = dataclasses.field(default_factory=Output)

    def run(self, console: Console) -> None:
        import flowcollapse as fc

        from .._checks import check_integer

        output = self.output
        check_integer("num_saves", output.num_saves)
        check_output(output.out, states="--save-states" * output.save_states)
        check_picture_file(output.plot)
        check_apart(out=output.out, plot=output.plot)
        self.prepare(output.precision)
        model = self.model.build()
        method = self.method.build()
        start = self.start.build(model)
        ts = output.num_saves if output.ts is None else output.ts
        path = fc.simulate(model, start, method, ts, save_states=output.save_states, metrics=output.metrics)
        console.say(str(path))
        if output.out is None and output.plot is None:
            return
        run = path.labelled()
        run.attributes["options"] = options_of(self)
        if output.out is not None:
            write(run, output.out)
            console.say(f"Wrote {output.out}")
        if output.plot is not None:
            draw_without_a_window()
            from .. import plot

            plot.save(plot.path(run.to_xarray()), output.plot)
            console.say(f"Wrote {output.plot}")

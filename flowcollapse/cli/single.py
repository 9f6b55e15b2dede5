"""Commands that run a few trajectories: the paper's figures, one run, and what is installed."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

from .options import Method, Model, Start, draw_without_a_window


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Draw the two figures of the paper (arXiv 2011.11619) from new runs: gradient flow and gradient descent from the
    same random starts, for C = N = 3 and p = 15."""

    eps: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
    """Norms of H and W at the start; b starts at zero. The list is our choice."""
    seeds: int = 100
    """Random starts for each eps: the seeds 0, 1, 2, ..."""
    out: Path = Path("reproduction")
    """Folder for reproduce.nc, figure1.png, figure1.pdf, figure2.png and figure2.pdf."""
    seed_shown: int = 0
    """The seed whose curves the figures show, beside the median and band over all seeds."""
    learning_rate: float = 0.02
    """Step size of the descent (our choice). Stable below 2 / (C N + sqrt N) = 0.186."""
    rtol: float = 1e-8
    """Relative tolerance of the flow."""
    solver: str = "exponential"
    """Solver of the flow: exponential, tsit5, dopri5, dopri8, kvaerno5 or kencarp5."""
    t1: float | None = None
    """End of all runs. Default: when every start has reached its plateau."""

    def run(self) -> None:
        import flowcollapse as fc

        fc.enable_x64()
        fc.use_cpu_cores()
        from .. import reproduce

        options = {name: getattr(self, name) for name in ("seed_shown", "learning_rate", "rtol", "solver", "t1")}
        reproduce.check(self.eps, self.seeds, **options)
        reproduce.check_folder(self.out)
        draw_without_a_window()
        dataset = reproduce.run(self.eps, self.seeds, **options, progress=True)
        files = reproduce.write(dataset, self.out)
        print(reproduce.table(dataset))
        print("\nWrote " + ", ".join(map(str, files)))


@dataclasses.dataclass(frozen=True)
class Output:
    """What is kept."""

    ts: tuple[float, ...] | None = None
    """Times at which metrics are saved. Default: equal times up to the end."""
    num_saves: int = 101
    """How many equal times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all that the model and the start have but sharpness, which is costly."""
    save_states: bool = False
    """Keep H, W and b at every saved time."""
    out: Path | None = None
    """File for the run, netCDF."""
    plot: Path | None = None
    """File for a picture of the run: .png, .pdf or .svg."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating point of the run."""


@dataclasses.dataclass(frozen=True)
class Simulate:
    """Run one trajectory and print what became of it."""

    model: Model = dataclasses.field(default_factory=Model)
    start: Start = dataclasses.field(default_factory=Start)
    method: Method = dataclasses.field(default_factory=Method)
    output: Output = dataclasses.field(default_factory=Output)

    def run(self) -> None:
        import flowcollapse as fc

        from .._checks import check_integer

        output = self.output
        check_integer("num_saves", output.num_saves)
        fc.enable_x64(output.precision == "float64")
        model = self.model.build()
        method = self.method.build()
        names = output.metrics
        self._check_files()
        start = self.start.build(model)
        ts = output.num_saves if output.ts is None else output.ts
        path = fc.simulate(model, start, method, ts, save_states=output.save_states, metrics=names)
        print(path)
        if output.out is None and output.plot is None:
            return
        dataset = path.to_xarray().assign_attrs(options=json.dumps(dataclasses.asdict(self), default=str))
        if output.out is not None:
            from .._files import write_netcdf

            write_netcdf(dataset, output.out)
            print(f"Wrote {output.out}")
        if output.plot is not None:
            draw_without_a_window()
            from .. import plot

            plot.save(plot.path(dataset), output.plot)
            print(f"Wrote {output.plot}")

    def _check_files(self) -> None:
        from .._files import check_picture, check_writable

        if self.output.plot is not None:
            check_picture(self.output.plot)
        for file in (self.output.out, self.output.plot):
            if file is not None:
                check_writable(file)


@dataclasses.dataclass(frozen=True)
class Info:
    """Print versions, devices and precision."""

    def run(self) -> None:
        import os

        import jax

        from ..provenance import versions

        rows = list(versions().items())
        rows += [(f"device {d.id}", f"{d.platform}, {d.device_kind}") for d in jax.devices()]
        rows += [
            ("CPU cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
        ]
        rows += [("precision", "float64 by default; simulate has --precision float32")]
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))

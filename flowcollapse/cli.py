"""The command line. Each command is a frozen dataclass: its fields are the flags, and the text under them the help.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ._errors import UsageError

if TYPE_CHECKING:
    from .descent import Descent
    from .flow import Flow
    from .model import UFM, State


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
        from . import reproduce

        options = {name: getattr(self, name) for name in ("seed_shown", "learning_rate", "rtol", "solver", "t1")}
        reproduce.check(self.eps, self.seeds, **options)
        reproduce.check_folder(self.out)
        _draw_without_a_window()
        dataset = reproduce.run(self.eps, self.seeds, **options, progress=True)
        files = reproduce.write(dataset, self.out)
        print(reproduce.table(dataset))
        print("\nWrote " + ", ".join(map(str, files)))


@dataclasses.dataclass(frozen=True)
class Model:
    """The model."""

    num_classes: int = 3
    """C, at least 2."""
    samples_per_class: tuple[int, ...] = (3,)
    """N, or one count for each class."""
    num_features: int = 15
    """p."""
    weight_decay: tuple[float, ...] = (0.0,)
    """One number, or three in the order W, H, b."""
    use_bias: bool = True
    """Without a bias, b is zero and stays there."""
    loss: str = "squared"
    """Loss of the logits."""

    def build(self) -> "UFM":
        from .model import UFM

        return UFM(
            num_classes=self.num_classes,
            samples_per_class=_one_or_all(self.samples_per_class),
            num_features=self.num_features,
            weight_decay=_one_or_all(self.weight_decay),
            use_bias=self.use_bias,
            loss=self.loss,
        )


@dataclasses.dataclass(frozen=True)
class Start:
    """The start."""

    start: Literal["sphere", "on-subspace", "balanced", "collapsed"] = "sphere"
    """Random directions as in the paper; a point of the invariant subspace S; W^T W = H H^T; strong collapse itself."""
    eps: float = 0.1
    """Norm of H and of W (not for collapsed)."""
    seed: int = 0
    """Seed of the random key."""
    reduced: bool | None = None
    """Draw class means and within-class part themselves (sphere only). Default: for large problems."""

    def build(self, model: "UFM") -> "State":
        import jax

        from . import initial

        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be an integer from 0 to 2^63 - 1, got {self.seed}.")
        if self.reduced is not None and self.start != "sphere":
            raise UsageError(f"reduced is for sphere starts, not for {self.start}: leave it out.")
        key = jax.random.key(self.seed)
        if self.start == "collapsed":
            return initial.collapsed(model, key=key)
        if self.start == "sphere":
            return initial.sphere(model, self.eps, key=key, reduced=self.reduced)
        make = {"on-subspace": initial.on_subspace, "balanced": initial.balanced}[self.start]
        return make(model, self.eps, key=key)


@dataclasses.dataclass(frozen=True)
class Method:
    """The method. Flow reads solver, tolerances, t1 and max-steps, descent the rest."""

    method: Literal["flow", "descent"] = "flow"
    """Gradient flow or discrete descent."""
    coordinates: str = "auto"
    """auto (class means where exact, compressed rows where it pays), class-mean or sample."""
    solver: str = "exponential"
    """exponential, tsit5, dopri5, dopri8, kvaerno5 or kencarp5."""
    rtol: float = 1e-8
    """Relative tolerance of each block."""
    atol: float | None = None
    """Absolute tolerance of each block's norm. Default: rtol times that norm at the start."""
    t1: float | None = None
    """End of the flow. Default: the plateau time of the start, or the last of ts."""
    max_steps: int = 65_536
    """Most steps of the flow, accepted and rejected together."""
    optimizer: str = "sgd"
    """Name of an optax optimizer."""
    learning_rate: float = 0.02
    """Its step size."""
    momentum: float | None = None
    """Its momentum, if it has any."""
    hyperparameters: dict[str, float] = dataclasses.field(default_factory=dict)
    """Its other numbers, in pairs: b1 0.9 b2 0.99"""
    num_steps: int = 1000
    """Steps of the descent."""

    def build(self) -> "Flow | Descent":
        from .descent import Descent
        from .flow import Flow

        if self.method == "flow":
            options: dict[str, Any] = {name: getattr(self, name) for name in ("rtol", "atol", "t1", "max_steps")}
            return Flow(self.solver, coordinates=self.coordinates, **options)
        numbers = {"learning_rate": self.learning_rate} | self.hyperparameters
        if self.momentum is not None:
            numbers["momentum"] = self.momentum
        return Descent(self.optimizer, self.num_steps, coordinates=self.coordinates, **numbers)


@dataclasses.dataclass(frozen=True)
class Output:
    """What is kept."""

    ts: tuple[float, ...] | None = None
    """Times at which metrics are saved. Default: equal times up to the end."""
    num_saves: int = 101
    """How many equal times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all that the model and the start have."""
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

    model: Model = Model()
    start: Start = Start()
    method: Method = Method()
    output: Output = Output()

    def run(self) -> None:
        import flowcollapse as fc

        from ._checks import check_integer

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
            from ._files import write_netcdf

            write_netcdf(dataset, output.out)
            print(f"Wrote {output.out}")
        if output.plot is not None:
            _draw_without_a_window()
            from . import plot

            plot.save(plot.path(dataset), output.plot)
            print(f"Wrote {output.plot}")

    def _check_files(self) -> None:
        from ._files import check_picture, check_writable

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

        from .provenance import versions

        rows = list(versions().items())
        rows += [(f"device {d.id}", f"{d.platform}, {d.device_kind}") for d in jax.devices()]
        rows += [
            ("CPU cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))
        ]
        rows += [("precision", "float64 by default; simulate has --precision float32")]
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {text}" for name, text in rows))


def main(args: Sequence[str] | None = None) -> int:
    """The `flowcollapse` command.

    Args:
        args: the words after the command's name. Default: those of this process.

    Returns:
        The exit code: 0, or 2 after bad input, which is told in one line on standard error.

    Raises:
        SystemExit: with code 2 for unknown flags, with 0 after `--help`.
    """
    command = tyro.extras.subcommand_cli_from_dict(
        {"reproduce": Reproduce, "simulate": Simulate, "info": Info},
        prog="flowcollapse",
        description="Gradient flow and gradient descent of the unconstrained features model, and how far they are from "
        "neural collapse.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        command.run()
    except UsageError as error:
        print("flowcollapse: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def _one_or_all(numbers: tuple) -> Any:
    return numbers[0] if len(numbers) == 1 else numbers


def _draw_without_a_window() -> None:
    import matplotlib

    matplotlib.use("Agg")


if __name__ == "__main__":
    sys.exit(main())

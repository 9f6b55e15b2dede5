"""Commands for many runs: a sweep, with its configuration file, and the pictures of one."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .._errors import UsageError, nearest
from .options import Method, Model, draw_without_a_window, one_or_all


@dataclasses.dataclass(frozen=True)
class Lanes:
    """What varies from lane to lane. The start of a lane depends on its seed and eps alone."""

    eps: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
    """Norms of H and W at the start."""
    seeds: int = 256
    """Random starts for each eps: the seeds 0, 1, 2, ..."""
    axis: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further axis, as in: --axis learning_rate=0.01,0.02 --axis samples_per_class=3,10,30. Values of several numbers
    are written with colons: --axis weight_decay=0:0:0,0.01:0.01:0."""
    start: Literal["sphere", "on-subspace", "balanced"] = "sphere"
    """Random directions as in the paper; a point of the invariant subspace S; W^T W = H H^T."""

    def axes(self) -> dict[str, list[Any]]:
        """The further axes by name."""
        found: dict[str, list[Any]] = {}
        for text in self.axis:
            name, equals, values = text.partition("=")
            try:
                found[name.strip().replace("-", "_")] = [
                    one_or_all(tuple(map(_number, value.split(":")))) for value in values.split(",")
                ]
            except ValueError:
                equals = ""
            if not equals:
                raise UsageError(f"axis {text!r} is not of the form name=number,number: as learning_rate=0.01,0.02.")
        return found


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


@dataclasses.dataclass(frozen=True)
class Keep:
    """What is kept, and where."""

    store: Path | None = None
    """Folder that the sweep is written to while it runs. The same command again resumes it."""
    out: Path | None = None
    """File for the whole sweep at its end, netCDF."""
    ts: tuple[float, ...] | None = None
    """Times at which metrics are saved, the same for all lanes. Default: equal times up to each lane's own end."""
    num_saves: int = 41
    """How many equal times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all that every lane can have but sharpness, which is costly."""
    keep_final: bool = False
    """Keep H, W and b at the end of every lane."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where it runs. Default: on all devices of this machine; every CPU core is one."""

    devices: int | None = None
    """How many devices, or CPU cores."""
    width: int | None = None
    """Lanes that run in lockstep. Default: by the platform and the size of the state."""
    lanes_per_task: int | None = None
    """Most lanes that are computed and written at once. Default: by the size of the state."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating point of the runs."""
    scheduler: str | None = None
    """Address of a Dask scheduler, whose workers run the tasks: tcp://host:8786 or tls://host:8786."""
    tls_ca_file: Path | None = None
    """Certificate of the authority that signed the scheduler's (PEM)."""
    tls_cert: Path | None = None
    """This client's certificate (PEM)."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    distributed: bool = False
    """This is one of several processes that share the sweep and its store: start one a host. SLURM and TPU pods tell
    each who it is; elsewhere give the next three."""
    coordinator: str | None = None
    """Address of the first process: host:port."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0 on."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run a method from many starts: over scales, seeds and any other numbers, on all devices. The first word may be a
    TOML file with any of these flags, which those of the command line replace."""

    lanes: Lanes = dataclasses.field(default_factory=Lanes)
    model: Model = dataclasses.field(default_factory=Model)
    method: Method = dataclasses.field(default_factory=Method)
    keep: Keep = dataclasses.field(default_factory=Keep)
    where: Devices = dataclasses.field(default_factory=Devices)

    def run(self) -> None:
        import flowcollapse as fc

        from .._files import check_writable, write_netcdf

        keep, where = self.keep, self.where
        if keep.out is not None:
            check_writable(keep.out)
        fc.enable_x64(where.precision == "float64")
        fc.use_cpu_cores(where.devices)
        scheduler: Any = None
        if where.distributed or where.scheduler is not None:
            from ..sweeps import cluster

            if where.distributed:
                cluster.join(where.coordinator, where.num_processes, where.process_id)
            if where.scheduler is not None:
                files = {"ca_file": where.tls_ca_file, "cert": where.tls_cert, "key": where.tls_key}
                scheduler = cluster.connect(where.scheduler, **files)
        axes: dict[str, Any] = self.lanes.axes()
        dataset = fc.sweep(
            self.model.build(),
            self.method.build(),
            eps=self.lanes.eps,
            seeds=self.lanes.seeds,
            start=self.lanes.start,
            ts=keep.num_saves if keep.ts is None else keep.ts,
            metrics=keep.metrics,
            keep_final=keep.keep_final,
            store=keep.store,
            devices=where.devices,
            width=where.width,
            lanes_per_task=where.lanes_per_task,
            scheduler=scheduler,
            distributed=where.distributed,
            **axes,
        )
        from ..sweeps.summary import summary

        print(summary(dataset))
        if keep.out is not None:
            write_netcdf(dataset, keep.out)
            print(f"Wrote {keep.out}")
        if keep.store is not None:
            print(f"All of it is in {keep.store}; to draw it: flowcollapse plot {keep.store}")


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw a sweep: bands over seeds against time, the limit against eps, a heat map over two axes, the verdicts; or
    where descent ends against its step size."""

    sweep: tyro.conf.Positional[Path]
    """Store of a sweep, or its netCDF file. A store need not be finished."""
    kind: Literal["overview", "stability"] = "overview"
    """All of the former in one figure, or the latter, for a sweep of descent over learning_rate."""
    metric: str = "snc1"
    """What is drawn."""
    out: Path = Path("sweep.png")
    """File for the picture: .png, .pdf or .svg."""

    def run(self) -> None:
        import flowcollapse as fc

        from .._files import check_picture, check_writable

        check_picture(self.out)
        check_writable(self.out)
        if self.sweep.is_file():
            import xarray as xr

            try:
                dataset = xr.open_dataset(self.sweep, engine="h5netcdf")
            except OSError as error:
                raise UsageError(f"{self.sweep} is not a netCDF file: {error.strerror or error}.") from None
        else:
            dataset = fc.open_sweep(self.sweep)
        draw_without_a_window()
        from .. import plot

        if self.kind == "stability":
            first = plot.stability(dataset, name=self.metric)
        else:
            first = plot.sweep(dataset, self.metric).flat[0]
        plot.save(first, self.out)
        print(f"Wrote {self.out}")


def with_config(args: list[str]) -> list[str]:
    """The words of a command, `sweep CONFIG.toml ...` with the flags of the file in its place.

    Raises:
        UsageError: if the file cannot be read or holds a key that is not a flag.
    """
    if len(args) < 2 or args[0] != "sweep" or args[1].startswith("-"):
        return args
    path = Path(args[1])
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.") from None
    return ["sweep", *_flags(path, table, ""), *args[2:]]


GROUPS: dict[str, Any] = {group.name: group.type for group in dataclasses.fields(Sweep)}
"""The sections that a configuration file may have; the keys may stand outside of them too."""


def _flags(path: Path, table: dict[str, Any], section: str) -> list[str]:
    """The keys of a file, or of one of its sections, as flags."""
    groups = [GROUPS[section]] if section else list(GROUPS.values())
    fields = [field.name for group in groups for field in dataclasses.fields(group)]
    words: list[str] = []
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == "axes" and not section and isinstance(value, dict):
            for axis, values in value.items():
                values = values if isinstance(values, list) else [values]
                words += ["--axis", f"{axis}={','.join(map(_colons, values))}"]
        elif not section and name in GROUPS and isinstance(value, dict):
            words += _flags(path, value, name)
        elif name in fields:
            words += _flag(name, value)
        else:
            known = fields if section else [*fields, *GROUPS, "axes"]
            hint = nearest(name, known) or f"; choose from {', '.join(known)}."
            raise UsageError(f"{path}: {key!r} is not a key{f' of [{section}]' if section else ''}{hint}")
    return words


def _flag(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    if isinstance(value, dict):
        return [flag, *(str(word) for pair in value.items() for word in pair)]
    return [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]


def _colons(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, list) else str(value)

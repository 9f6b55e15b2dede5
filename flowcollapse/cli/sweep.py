"""The command that runs many trajectories."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from .._errors import UsageError
from .console import Console, check_apart, check_output, options_of, write
from .options import Computing, Lanes, Method, Model, check_devices, seeds_of


@dataclasses.dataclass(frozen=True)
class Keep:
    """The results to keep, and the files."""

    store: Path | None = None
    """Folder that the sweep is written to while it runs. Run the same command again to resume it."""
    out: Path | None = None
    """File for the whole sweep, written at the end: .nc (netCDF), .zarr, .csv or .parquet."""
    ts: tuple[float, ...] | None = None
    """Times at which metrics are saved, the same for all lanes. Default: equally spaced times up to each lane's end."""
    num_saves: int = 41
    """Number of equally spaced times, if ts is not given."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all metrics that every lane has, except sharpness, which is costly."""
    keep_final: bool = False
    """Keep H, W and b at the end of every lane."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that run the sweep. Default: all devices of this machine; every CPU core counts as a device."""

    devices: int | None = None
    """Number of devices or CPU cores."""
    width: int | None = None
    """Lanes that run in lockstep. The default depends on the platform and the size of the state."""
    lanes_per_task: int | None = None
    """The most lanes computed and written at once. The default depends on the size of the state."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point precision of the runs."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers run the tasks: tcp://host:8786 or tls://host:8786."""
    tls_ca_file: Path | None = None
    """Certificate of the authority that signed the scheduler's certificate (PEM)."""
    tls_cert: Path | None = None
    """Certificate of this client (PEM)."""
    tls_key: Path | None = None
    """Private key of this client (PEM)."""
    distributed: bool = False
    """This is one of several processes that share the sweep and its store: start one per host. SLURM and TPU pods tell
    each process its number; elsewhere, also give the next three flags."""
    coordinator: str | None = None
    """Address of the first process: host:port."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, counted from 0."""


NEEDED = {
    "distributed": ("coordinator", "num_processes", "process_id"),
    "scheduler": ("tls_ca_file", "tls_cert", "tls_key"),
}
"""Flags that have no effect without another flag."""


@dataclasses.dataclass(frozen=True)
class Sweep(Computing):
    """Run a method from many starts, over scales, seeds and any other numbers, on all devices. The first word may be a
    TOML file, as with --config.

    Example:
        flowcollapse sweep --eps 0.1,0.01 --seeds 0:8 --metrics snc1,risk --store runs.zarr
    """

    lanes: Lanes = dataclasses.field(default_factory=Lanes)
    model: Model = dataclasses.field(default_factory=Model)
    method: Method = dataclasses.field(default_factory=Method)
    keep: Keep = dataclasses.field(default_factory=Keep)
    where: Devices = dataclasses.field(default_factory=Devices)

    def run(self, console: Console) -> None:
        import flowcollapse as fc

        keep, where = self.keep, self.where
        check_output(keep.out, states="--keep-final" * keep.keep_final)
        check_apart(store=keep.store, out=keep.out)
        check_devices(where.devices)
        for needed, names in NEEDED.items():
            for name in names:
                if getattr(where, name) is not None and not getattr(where, needed):
                    raise UsageError(f"{name} is for --{needed}, which is not given: add it, or leave {name} out.")
        seeds = seeds_of(self.lanes.seeds)
        axes: dict[str, Any] = self.lanes.axes(fc.sweep)
        self.prepare(where.precision)
        fc.use_cpu_cores(where.devices)
        scheduler = self._scheduler()  # must come before JAX is first used, by `Model.build`
        try:
            dataset = fc.sweep(
                self.model.build(),
                self.method.build(),
                eps=self.lanes.eps,
                seeds=seeds,
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
                progress=console.bars,
                **axes,
            )
        except fc.Interrupted as stop:
            if keep.store is not None:
                raise
            if keep.out is None:
                raise KeyboardInterrupt("Interrupted. With --store DIR, a sweep keeps its lanes and resumes.") from None
            self._write(stop.dataset, keep.out)
            told = f"Interrupted: {keep.out} holds the finished lanes. With --store DIR, a sweep resumes."
            raise KeyboardInterrupt(told) from None
        from ..sweeps.summary import summary

        if keep.out is not None:
            self._write(dataset, keep.out)
        console.say(summary(dataset))
        if keep.out is not None:
            console.say(f"Wrote {keep.out}")
        if keep.store is not None:
            console.say(f"The sweep is in {keep.store}; to draw it: flowcollapse plot {keep.store}")

    def _write(self, dataset: Any, out: Path) -> None:
        write(dataset.assign_attrs(options=options_of(self)), out)

    def _scheduler(self) -> Any:
        """Join the other processes or the cluster, if the sweep is shared."""
        where = self.where
        if not where.distributed and where.scheduler is None:
            return None
        from ..sweeps import cluster

        if where.distributed:
            cluster.join(where.coordinator, where.num_processes, where.process_id)
        if where.scheduler is None:
            return None
        files = {"ca_file": where.tls_ca_file, "cert": where.tls_cert, "key": where.tls_key}
        return cluster.connect(where.scheduler, **files)

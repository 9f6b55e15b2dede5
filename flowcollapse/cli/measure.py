"""The command that measures collapse in features kept in files."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .._errors import UsageError
from .console import (
    Console,
    check_apart,
    check_json_file,
    check_output,
    check_picture_file,
    draw_without_a_window,
    write,
)
from .options import Command
from .words import Kind

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Measure(Command):
    """Measure neural collapse in the features of a network, from files of one epoch or one layer each. The files may be
    larger than memory; nothing in them is executed.

    Example:
        flowcollapse measure epoch*.npz --out collapse.csv --plot collapse.png
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, Kind.TEXTS] = ()
    """Files with features, one row a sample: .npz, .npy, .csv, .h5, .zarr; and .parquet, .safetensors with the extra
    files. Arrays called features, labels, W and b are found by name."""
    labels: Path | None = None
    """File with the labels. Default: each file's own."""
    classifier: Path | None = None
    """File with W and b. Default: each file's own."""
    ood: Path | None = None
    """File with features outside all classes, for nc5."""
    by: Literal["epoch", "layer"] = "epoch"
    """How several files differ. The epoch of a file is the last number in its name."""
    arrays: dict[str, str] = dataclasses.field(default_factory=dict)
    """Names of arrays that are not found: features layer4 labels digit"""
    num_classes: int | None = None
    """The number of classes, if the labels are 0, 1, 2, ... Default: the labels that occur."""
    ignore_label: tuple[str, ...] | None = None
    """Labels of samples to leave out, or nan for missing ones."""
    metrics: tuple[str, ...] | None = None
    """Names of the metrics. Default: all that are cheap and have the data they need."""
    one_pass: bool = False
    """Read the files only once, without nc4 and ncc-error."""
    out: Path | None = None
    """File for the metrics: .nc (netCDF), .zarr, .csv or .parquet."""
    json: Path | None = None
    """File for the metrics as JSON: .json."""
    plot: Path | None = None
    """File for a picture: .png, .pdf or .svg."""

    def run(self, console: Console) -> None:
        if not self.files:
            raise UsageError("files are missing: name at least one file with features.")
        check_output(self.out)
        check_picture_file(self.plot)
        check_json_file(self.json)
        check_apart(out=self.out, json=self.json, plot=self.plot)
        from ..settings import enable_x64

        enable_x64()
        from ..measuring.measure import measure
        from ..measuring.table import table

        dataset = measure(
            list(self.files),
            labels=self.labels,
            classifier=self.classifier,
            ood=self.ood,
            by=self.by,
            arrays=self.arrays,
            classes=None if self.num_classes is None else range(self.num_classes),
            ignore_label=None if self.ignore_label is None else [_label(word) for word in self.ignore_label],
            metrics=self.metrics,
            two_passes=not self.one_pass,
            progress=console.bars,
        )
        console.say(table(dataset))
        self._write(dataset, console)

    def _write(self, dataset: "xr.Dataset", console: Console) -> None:
        from .._files import replacing
        from ..measuring.table import as_json

        if self.out is not None:
            write(dataset, self.out)
            console.say(f"Wrote {self.out}")
        if self.json is not None:
            with replacing(self.json) as part:
                part.write_text(json.dumps(as_json(dataset), indent=1) + "\n", encoding="utf-8")
            console.say(f"Wrote {self.json}")
        if self.plot is not None:
            draw_without_a_window()
            from .. import plot

            plot.save(plot.measurement(dataset), self.plot)
            console.say(f"Wrote {self.plot}")


def _label(word: str) -> int | float | str:
    """A label that is written as a word."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word

"""The command that makes a picture of the gallery."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from .._errors import UsageError
from .console import Console, check_folder_name, draw_without_a_window
from .options import Computing


@dataclasses.dataclass(frozen=True)
class Show(Computing):
    """Make a picture from new runs: the picture as PNG and PDF, its data as netCDF, and a table of each law against the
    measured value. The exit code is 1 if a law fails.

    Example:
        flowcollapse show order-of-learning --out pictures
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the picture, see --list."""
    list: bool = False
    """List the pictures."""
    out: Path = Path("pictures")
    """Folder for NAME.nc, NAME.png and NAME.pdf."""

    def run(self, console: Console) -> int:
        from ..results.tables import aligned

        self.prepare()
        from .. import gallery
        from ..gallery.registry import check_folder

        if self.list:
            console.say("\n".join(aligned([(name, one.title) for name, one in gallery.PICTURES.items()])))
            return 0
        if not self.name:
            raise UsageError(f"the name of a picture is missing: choose one of {', '.join(gallery.PICTURES)}.")
        name = gallery.PICTURES.name(self.name)
        check_folder_name(self.out)
        check_folder(name, self.out)
        draw_without_a_window()
        dataset = gallery.run(name, progress=console.bars)
        files = gallery.write(dataset, self.out)
        console.say(gallery.table(dataset))
        console.say("\nWrote " + ", ".join(map(str, files)))
        return 0 if all(check.holds for check in gallery.PICTURES[name].checks(dataset)) else 1

"""The command that draws the paper's two figures."""

import dataclasses
from pathlib import Path
from typing import Annotated

from .console import Console, check_folder_name, draw_without_a_window
from .options import Computing, seeds_of
from .words import Kind


@dataclasses.dataclass(frozen=True)
class Reproduce(Computing):
    """Draw the two figures of the paper (arXiv 2011.11619) from new runs: gradient flow and gradient descent from the
    same random starts, for C = N = 3 and p = 15.

    Example:
        flowcollapse reproduce --eps 0.1,0.01 --seeds 0:4 --out figures
    """

    eps: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
    """Norms of H and W at the start; b starts at zero. The list is our choice."""
    seeds: Annotated[tuple[str, ...], Kind.SEEDS] = ("100",)
    """Random starts for each eps: a count (the seeds 0, 1, 2, ...), a range such as 0:100, or a list such as 3,5,8."""
    out: Path = Path("reproduction")
    """Folder for reproduce.nc, figure1.png, figure1.pdf, figure2.png and figure2.pdf."""
    seed_shown: int | None = None
    """The seed whose curves the figures show, next to the median and band over all seeds. Default: the first seed."""
    learning_rate: float = 0.02
    """Step size of the descent (our choice). It is stable below 2 / (C N + sqrt N) = 0.186."""
    rtol: float = 1e-8
    """Relative tolerance of the flow."""
    solver: str = "exponential"
    """Solver of the flow: exponential, tsit5, dopri5, dopri8, kvaerno5 or kencarp5."""
    t1: float | None = None
    """End time of all runs. Default: when every start has reached its plateau."""

    def run(self, console: Console) -> None:
        import flowcollapse as fc

        from .. import reproduce

        self.prepare()
        fc.use_cpu_cores()
        options = {name: getattr(self, name) for name in ("seed_shown", "learning_rate", "rtol", "solver", "t1")}
        seeds = seeds_of(self.seeds)
        reproduce.check(self.eps, seeds, **options)
        check_folder_name(self.out)
        reproduce.check_folder(self.out)
        draw_without_a_window()
        try:
            dataset = reproduce.run(self.eps, seeds, **options, progress=console.bars)
        except fc.Interrupted:
            raise KeyboardInterrupt("Interrupted. Nothing was written, because the figures need all runs.") from None
        files = reproduce.write(dataset, self.out)
        console.say(reproduce.table(dataset))
        console.say("\nWrote " + ", ".join(map(str, files)))

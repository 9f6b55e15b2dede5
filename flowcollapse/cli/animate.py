"""The command that films a run."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .console import Console, draw_without_a_window
from .options import Computing, Method, Model, Start

if TYPE_CHECKING:
    from ..model.state import State
    from ..model.ufm import UFM

SAVES = 800
"""The save times of a run with small states."""

MOST = 2**27
"""The most numbers in all saved states together."""


@dataclasses.dataclass(frozen=True)
class Film:
    """The film."""

    out: Path = Path("collapse.gif")
    """File for the film: .gif, or .mp4 where ffmpeg is installed."""
    frames: int = 120
    """The most frames."""
    fps: int = 16
    """Frames a second, at most 50."""
    samples: int = 12
    """The most samples of each class that are drawn."""
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point precision of the run."""


@dataclasses.dataclass(frozen=True)
class Animate(Computing):
    """Film a new run: features, class means and the rows of W move onto the simplex, with risk and errors beside them.
    Two classes are drawn on a line, three in the plane of their triangle, four as a tetrahedron, more along the two
    longest axes of their class means.

    Example:
        flowcollapse animate --samples-per-class 10 --eps 0.7 --frames 40 --out collapse.gif
    """

    model: Model = dataclasses.field(default_factory=Model)
    start: Start = dataclasses.field(default_factory=Start)
    method: Method = dataclasses.field(default_factory=Method)
    film: Film = dataclasses.field(default_factory=Film)

    def run(self, console: Console) -> None:
        from .._files import check_film, check_writable

        film = self.film
        check_film(film.out)
        check_writable(film.out)
        self.prepare(film.precision)
        draw_without_a_window()
        import flowcollapse as fc

        from ..metrics.registry import available
        from ..plot._films import write_film
        from ..plot._motion import curves_shown
        from ..plot.moving import check_numbers

        check_numbers(film.frames, film.fps, film.samples)
        model = self.model.build()
        method = self.method.build()
        start = self.start.build(model)
        saves = self._saves(start, model)
        names = curves_shown(available(model, start.columns))
        path = fc.simulate(model, start, method, saves, save_states=True, metrics=names)
        console.say(str(path))
        made = fc.plot.animate(path, frames=film.frames, fps=film.fps, samples=film.samples)
        write_film(made, film.out, progress=console.bars)
        console.say(f"Wrote {film.out}")

    def _saves(self, start: "State", model: "UFM") -> int:
        """The number of save times: many, so that frames can be chosen among them, but fewer for large states."""
        from ..model.coordinates import state_size
        from ..simulation import KEPT

        whole = model.num_features * model.num_samples
        size = whole if self.method.coordinates == "sample" else min(state_size(model), start.X.size + start.W.size)
        return max(2, min(SAVES, max(KEPT // size, min(self.film.frames, MOST // size))))

"""A picture of the gallery: runs, a drawing of them with the theory's line, and a table of law against measurement."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import xarray as xr


class Check(NamedTuple):
    """A row of a picture's table: a law, its expected value and the measured value.

    - `law`: the law, in words.
    - `expected`, `measured`: the values.
    - `within`: the largest relative difference that the law itself leaves, for example because it is a limit.

    Example:
        >>> from flowcollapse.gallery import Check
        >>> Check("margin over half the squared norm", 0.2887, 0.2886, within=1e-3).holds
        True
    """

    law: str
    expected: float
    measured: float
    within: float

    @property
    def off(self) -> float:
        """The difference, relative to the expected value; to 1 if that is 0."""
        return abs(self.measured - self.expected) / (abs(self.expected) or 1.0)

    @property
    def holds(self) -> bool:
        return bool(self.off <= self.within)


class Picture(NamedTuple):
    """A picture that one command makes.

    - `title`: one line about it.
    - `sources`: the papers whose laws it shows. The picture itself is from new runs and is no figure of theirs.
    - `run`: makes the Dataset from real runs; it takes whether to show progress bars.
    - `draw`: draws the Dataset and returns the axes.
    - `checks`: the rows of the table, from the Dataset alone.

    Example:
        >>> import flowcollapse as fc
        >>> fc.gallery.PICTURES["margin"].title
        'Cross-entropy without decay to t = e^1000: margins, their limit, and the memory of the start'
    """

    title: str
    sources: str
    run: "Callable[[bool], xr.Dataset]"
    draw: "Callable[[xr.Dataset], Any]"
    checks: "Callable[[xr.Dataset], Sequence[Check]]"

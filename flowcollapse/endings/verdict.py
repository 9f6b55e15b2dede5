"""How a run ended: the verdicts, and the data they are derived from."""

import enum
from typing import NamedTuple

from jaxtyping import Array, Bool, Float

from ..model.problem import Point


class Verdict(enum.IntEnum):
    """How a run ended.

    Example:
        >>> import flowcollapse as fc
        >>> fc.Verdict.saddle.message
        'stopped at a saddle: the start lacks a mode, which therefore cannot grow'
    """

    plateau = 0
    saddle = 1
    time_limit = 2
    step_limit = 3
    non_finite = 4
    minimum = 5
    critical = 6
    separated = 7

    @property
    def message(self) -> str:
        """The verdict in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Verdict.plateau: "plateau reached: no mode of the targets is left to grow",
    Verdict.saddle: "stopped at a saddle: the start lacks a mode, which therefore cannot grow",
    Verdict.time_limit: "time limit: neither a plateau nor rest was reached by the end; raise t1",
    Verdict.step_limit: (
        "step limit: neither a plateau nor rest was reached by the end; raise max_steps or num_steps, or loosen rtol"
    ),
    Verdict.non_finite: "not finite: the start or an iterate holds NaN or infinity",
    Verdict.minimum: "at rest at a global minimum: no singular value of the residual exceeds sqrt(lam_W lam_H)",
    Verdict.critical: "at rest at a critical point that is not certified as a minimum",
    Verdict.separated: "all samples fitted with growing margins; the loss has no minimum, so there is no end",
}


class Ending(NamedTuple):
    """How a run ended: the point, the time, whether it ran out of steps, and whether it was at rest."""

    end: Point
    t_end: Float[Array, ""]
    steps_ran_out: Bool[Array, ""]
    at_rest: Bool[Array, ""]

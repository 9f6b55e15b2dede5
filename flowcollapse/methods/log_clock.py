"""The clock of a flow: the time t itself, or `l = ln(1 + t)`, in which the flow of cross-entropy never slows down.

Without decay, margins grow like `ln t`, and every rate of the flow falls like `1 / t`. In the clock l all rates stay of
order one, so a run to `t = e^1000` takes a few hundred steps. The field is `dz/dl = e^l z'`, and losses put the factor
`e^l` inside their exponentials (derived here).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import is_traced, shown
from .._errors import UsageError
from ..losses.base import AbstractLoss
from ..model.requirements import known_decays
from ..model.ufm import UFM

CLOCKS = ("auto", "time", "log", "log-steps")

LATEST = 1e6
"""The latest l. Exponents then lose 6 of the 16 digits of double precision to rounding."""


def is_logarithmic(clock: str) -> bool:
    """Whether the solver's time is l."""
    return clock.startswith("log")


def clock_for(clock: str, model: UFM) -> str:
    """The clock that `"auto"` stands for, if the decay is known; it is the time if it is not.

    Raises:
        UsageError: for a log clock if something decays, or if the loss has a minimum.
    """
    decays = known_decays(model)
    endless = not model.loss.attained and decays is not None and not any(decays)
    if clock == "auto":
        return "log-steps" if endless else "time"
    if is_logarithmic(clock) and model.loss.attained:
        raise UsageError(
            f"clock is {clock!r}, and the loss {model.loss.text!r} has a minimum, near which all rates grow in that "
            'clock: use clock="time".'
        )
    if is_logarithmic(clock) and decays is not None and any(decays):
        raise UsageError(
            f"clock is {clock!r}, but weight_decay is {model.weight_decay!r}, which grows exponentially in that clock: "
            'use clock="time".'
        )
    return clock


def check_range(name: str, time: Any, clock: str, loss: AbstractLoss) -> None:
    """Raise `UsageError` if a time of the log clock is too late for the loss."""
    if clock != "log" or time is None or is_traced(time):
        return
    in_exponent = type(loss).scaled_gradient is not AbstractLoss.scaled_gradient
    latest = LATEST if in_exponent else float(np.log(jnp.finfo(jnp.result_type(float)).max))
    if np.any(np.asarray(time) > latest):
        why = "beyond which exponents have too few digits" if in_exponent else "beyond which e^l overflows"
        raise UsageError(
            f"{name} is {shown(time)} in the log clock, whose times are l = ln(1 + t). It is later than {latest:.6g}, "
            f"{why}: lower it."
        )


def to_solver(clock: str, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
    """The solver's time at a time of the user."""
    return jnp.log1p(t) if clock == "log-steps" else t


def from_solver(clock: str, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
    """The user's time at a time of the solver."""
    return jnp.expm1(t) if clock == "log-steps" else t

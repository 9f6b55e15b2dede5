"""The solvers by name."""

from collections.abc import Callable

import diffrax as dfx

from ..._errors import UsageError
from ..._registry import Registry
from .explicit import Dopri5, Dopri8, Tsit5
from .exponential import ExponentialDOP853
from .linear import _for_lanes, kencarp5

SOLVERS: Registry[Callable[[], dfx.AbstractSolver]] = Registry(
    "solver",
    {
        "exponential": ExponentialDOP853,
        "tsit5": Tsit5,
        "dopri5": Dopri5,
        "dopri8": Dopri8,
        "kvaerno5": dfx.Kvaerno5,
        "kencarp5": kencarp5,
    },
    instead="pass a diffrax solver",
)
"""The solvers by name: functions without arguments, or classes, that make a diffrax solver with an error estimate."""


def solver_of(solver: str | dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver with the given name, or the given diffrax solver.

    Raises:
        UsageError: for an unknown name, or an object that is not a diffrax solver with an error estimate.
    """
    if isinstance(solver, str):
        solver = SOLVERS.make(solver)
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise UsageError(f"solver must be a name or a diffrax solver with an error estimate, got {solver!r}: pass one.")
    return _for_lanes(solver)


def suited(solver: dfx.AbstractSolver, output: bool) -> dfx.AbstractSolver:
    """The solver for a run with or without output. Most solvers are the same for both."""
    known = getattr(solver, "suited", None)
    return solver if known is None else known(output)


def splits_stiff_part(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver takes two terms, with the stiff linear term separate."""
    return getattr(solver.term_structure, "__origin__", solver.term_structure) is dfx.MultiTerm

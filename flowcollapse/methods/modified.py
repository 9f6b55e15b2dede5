"""Flows that follow discrete descent one order more closely than the gradient flow does.

Descent `z_{k+1} = z_k - eta g(z_k) + beta (z_k - z_{k-1})`, observed at the times of its clock (see `fc.Descent`: a
step takes `eta / (1 - beta)` once the momentum has built up), expands into

    m z'' + z' = -grad R(z) + O(eta^2),    m = eta (1 + beta) / (2 (1 - beta)^2).

Plain gradient descent has `beta = 0`. The gradient flow leaves out m, so its distance to descent is O(eta). This module
has the equation itself, and the first-order flow on which its solutions settle, `z' = f - m Df f` with `f = -grad R`:
the gradient flow of `R + (m/2) ||grad R||^2`. Their distances to descent are O(eta^2) from the first step on, because
the clock accounts for the start of the momentum from rest.

Sources: Hairer, Lubich and Wanner, Geometric Numerical Integration (2006), chapter IX, and Barrett and Dherin 2021 for
`beta = 0`; Kovachki and Stuart 2021 for momentum. The clock, and so the first steps, are derived here.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from .._checks import Number, check_flag, check_positive, is_traced, real_numbers, shown
from .._errors import UsageError
from ..model.problem import Point, Problem
from .flow import MAX_STEPS, RTOL, AbstractFlow
from .layouts import SecondOrder, layout_of
from .solvers.registry import solver_of, splits_stiff_part


class _Lagging(AbstractFlow):
    """A flow with the mass m of a descent of a given step size and momentum."""

    learning_rate: eqx.AbstractVar[Number]
    momentum: eqx.AbstractVar[Number]
    nesterov: eqx.AbstractVar[bool]

    def __init__(
        self,
        learning_rate: Number,
        momentum: Number = 0.0,
        *,
        nesterov: bool = False,
        solver: str | dfx.AbstractSolver = "dopri8",
        **options: Any,
    ):
        super().__init__(solver, **options)
        if splits_stiff_part(solver_of(solver)):
            raise UsageError(
                f"solver {solver!r} takes apart the mean residual of the plain gradient flow, and the {self.name} is "
                'another flow: use "dopri8", "dopri5", "tsit5" or "kvaerno5".'
            )
        check_positive("learning_rate", learning_rate)
        check_flag("nesterov", nesterov)
        known = np.zeros(0) if is_traced(momentum) else real_numbers(momentum)
        if known is None or not np.all((known >= 0) & (known < 1)):
            raise UsageError(f"momentum must be at least 0 and below 1, got {shown(momentum)}: give such a number.")
        self.learning_rate, self.momentum, self.nesterov = learning_rate, momentum, nesterov

    @property
    def mass(self) -> Float[Array, "*lanes"]:
        """The mass m of this module's docstring; `eta (1 - beta + 2 beta^2) / (2 (1 - beta)^2)` for Nesterov's form."""
        eta, beta = jnp.asarray(self.learning_rate), jnp.asarray(self.momentum)
        return eta * (1 - beta + 2 * beta**2 if self.nesterov else 1 + beta) / (2 * (1 - beta) ** 2)


class ModifiedFlow(_Lagging):
    """The gradient flow of `R + (m/2) ||grad R||^2`, which follows descent to O(eta^2).

    Args:
        learning_rate: eta, the step size of the descent.
        momentum: beta of the descent, at least 0 and below 1; `m = eta (1 + beta) / (2 (1 - beta)^2)`, which is
            `eta / 2` without momentum.
        nesterov: whether the momentum is Nesterov's, as in `optax.sgd(..., nesterov=True)`; then
            `m = eta (1 - beta + 2 beta^2) / (2 (1 - beta)^2)`.
        solver: an explicit solver, `"dopri8"`, `"dopri5"` or `"tsit5"`, the implicit `"kvaerno5"`, or a diffrax solver.
        **options: `rtol`, `atol`, `t1`, `max_steps`, `coordinates`, `mesh`, as for `fc.Flow`.

    Raises:
        UsageError: for a learning rate that is not positive, a momentum out of range, a solver that works only for the
            plain gradient flow, or for the reasons `fc.Flow` has.

    Source: `z' = f - m Df f` with `f = -grad R`; backward error analysis, see Hairer, Lubich and Wanner 2006, chapter
    IX, and Barrett and Dherin 2021; with momentum, Kovachki and Stuart 2021. The mass of Nesterov's form and the times
    at which the equation holds are derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> fc.simulate(model, start, fc.ModifiedFlow(0.05, solver="tsit5"), metrics=()).result.name
        'plateau'
    """

    rtol: Number = RTOL
    atol: Number | None = None
    t1: Number | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="dopri8")
    max_steps: int = eqx.field(static=True, default=MAX_STEPS)
    coordinates: str = eqx.field(static=True, default="auto")
    mesh: Mesh | None = eqx.field(static=True, default=None)
    until: str | None = eqx.field(static=True, default=None)
    approach: str = eqx.field(static=True, default="auto")
    adjoint: str | dfx.AbstractAdjoint = eqx.field(static=True, default="reverse")
    clock: str = eqx.field(static=True, default="auto")
    learning_rate: Number = 0.0
    momentum: Number = 0.0
    nesterov: bool = eqx.field(static=True, default=False)

    name = "modified-flow"
    lanes_last = True
    __init__ = _Lagging.__init__  # type checkers do not see the inherited one

    def velocity(self, problem: Problem, point: Point) -> Point:
        """`f - m Df f`."""
        f = problem.field(point)
        _, turned = jax.jvp(problem.field, (point,), (f,))
        return jax.tree.map(lambda v, w: v - self.mass.astype(v.dtype) * w, f, turned)


class HeavyBallFlow(_Lagging):
    """The flow with inertia `m z'' + z' = -grad R(z)`, `z'(0) = -grad R(z0)`: descent with momentum to O(eta^2).

    Args:
        learning_rate: eta, the step size of the descent.
        momentum: beta of the descent, at least 0 and below 1; `m = eta (1 + beta) / (2 (1 - beta)^2)`.
        nesterov: whether the momentum is Nesterov's; then `m = eta (1 - beta + 2 beta^2) / (2 (1 - beta)^2)`.
        solver: as for `fc.ModifiedFlow`. The velocity relaxes at the rate `1/m`, which an explicit solver must resolve.
        **options: as for `fc.Flow`.

    Raises:
        UsageError: for the reasons `fc.ModifiedFlow` has.

    Source: Kovachki and Stuart 2021. Without m it is the gradient flow, their leading order, at a distance O(eta) from
    descent. The initial velocity follows from the clock of `fc.Descent` (derived here).

    Example:
        >>> import flowcollapse as fc
        >>> round(float(fc.HeavyBallFlow(0.1, momentum=0.9).mass), 3)
        9.5
    """

    rtol: Number = RTOL
    atol: Number | None = None
    t1: Number | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="dopri8")
    max_steps: int = eqx.field(static=True, default=MAX_STEPS)
    coordinates: str = eqx.field(static=True, default="auto")
    mesh: Mesh | None = eqx.field(static=True, default=None)
    until: str | None = eqx.field(static=True, default=None)
    approach: str = eqx.field(static=True, default="auto")
    adjoint: str | dfx.AbstractAdjoint = eqx.field(static=True, default="reverse")
    clock: str = eqx.field(static=True, default="auto")
    learning_rate: Number = 0.0
    momentum: Number = 0.0
    nesterov: bool = eqx.field(static=True, default=False)

    name = "heavy-ball-flow"
    lanes_last = True
    symmetric = False  # the Jacobian of the first-order system is not
    __init__ = _Lagging.__init__

    def velocity(self, problem: Problem, point: Point) -> Point:
        """The force, `f`."""
        return problem.field(point)

    def layout(self, problem: Problem) -> SecondOrder:
        """The point and the place it would drift to."""
        return SecondOrder(layout_of(problem, solver_of(self.solver), self.lanes_last))

    def initial(self, problem: Problem, start: Point) -> PyTree:
        """The start, drifting as the gradient flow would."""
        drifted = jax.tree.map(lambda z, f: z + self.mass.astype(z.dtype) * f, start, problem.field(start))
        return self.layout(problem).state(problem, start, drifted)

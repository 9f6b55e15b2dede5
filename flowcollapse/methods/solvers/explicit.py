"""Explicit Runge-Kutta methods with the tableaus of diffrax, and a single loop over their stages."""

import functools
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ...programs import called, lanes_last
from .exponential import combined, for_lanes, in_a_loop
from .output import STAGES_UP_TO, StepOutput, moved


class _Explicit(dfx.AbstractERK):
    """An explicit diffrax solver whose loop over the stages compiles to a smaller program than diffrax's.

    It has the same tableau, the same results up to rounding, and the same dense output. On a CPU, its steps and output
    take the lanes of a batch last if the field allows it. The last stage is the field at the end of the step.
    """

    tableau: ClassVar[dfx.ButcherTableau]
    original: ClassVar[type[dfx.AbstractERK]]
    """Diffrax's class of this method."""

    @property
    def interpolation_cls(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return functools.partial(StagesOutput, type(self))

    def init(self, terms, t0, t1, y0, args):
        return terms.vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        first = solver_state if made_jump is False else terms.vf(t0, y0, args)
        step, read = for_lanes(_step, terms, args)
        y1, error, k = step(type(self), terms, t0, t1 - t0, y0, first, read)
        last = jax.tree.map(lambda ks: ks[-1], k)
        return y1, error, {"y0": y0, "y1": y1, "k": k}, last, dfx.RESULTS.successful


def _step(solver: type[_Explicit], term: dfx.AbstractTerm, t0, h, y0: PyTree, first: PyTree, args: PyTree):
    """The end of a step, its error, and the field at all stages. Lanes may be the last axes."""
    tableau = solver.tableau
    nodes = jnp.asarray(np.append(0.0, tableau.c), jnp.result_type(*jax.tree.leaves(y0)))

    def at(weights, k):
        return jax.tree.map(lambda y, ks: y + h * combined(weights, ks), y0, k)

    def stage(i, k):
        y = jax.lax.switch(i - 1, [functools.partial(at, weights) for weights in tableau.a_lower], k)
        return term.vf(t0 + nodes[i] * h, y, args)

    k = in_a_loop(stage, tableau.num_stages, first)
    return at(tableau.b_sol, k), jax.tree.map(lambda ks: h * combined(tableau.b_error, ks), k), k


class StagesOutput(StepOutput):
    """Diffrax's output of an explicit method, from `k`, the field at all stages of the step."""

    solver: type[_Explicit] = eqx.field(static=True)
    t0: Array
    t1: Array
    y0: PyTree
    k: PyTree

    def __init__(self, solver: type[_Explicit], *, t0, t1, y0, y1, k):
        self.solver, self.t0, self.t1, self.y0, self.k = solver, t0, t1, y0, k

    def inside(self, x, h):
        return lanes_last(_inside, up_to=STAGES_UP_TO)(self.solver, x, h, self.y0, self.k)


def _inside(solver: type[_Explicit], x, h, y0: PyTree, k: PyTree) -> PyTree:
    return moved(h * called(_output_weights)(solver, x), range(solver.tableau.num_stages), y0, k)


def _output_weights(solver: type[_Explicit], x: Float[Array, "*lanes"]) -> Float[Array, "stage *lanes"]:
    """The weight of each stage, over the step size, at the fraction x of a step.

    Diffrax's output is linear in the stages, so its values for one stage at a time are the weights.
    """
    tableau = solver.tableau
    stages, end = jnp.eye(tableau.num_stages, dtype=x.dtype), jnp.asarray(tableau.b_sol, x.dtype)
    step = {"y0": jnp.zeros_like(end), "y1": end, "k": stages}

    def weights(x):
        zero = jnp.zeros_like(x)
        return solver.original.interpolation_cls(t0=zero, t1=zero + 1, **step).evaluate(x)

    for _ in range(x.ndim):
        weights = jax.vmap(weights, -1, -1)
    return weights(x)


class Tsit5(_Explicit, dfx.Tsit5):
    """Tsitouras' 5(4) pair (Computers and Mathematics with Applications 62, 2011)."""

    original: ClassVar[type[dfx.AbstractERK]] = dfx.Tsit5
    evaluations_per_step: ClassVar[int] = 6
    evaluations_for_output: ClassVar[int] = 0


class Dopri5(_Explicit, dfx.Dopri5):
    """Dormand and Prince's 5(4) pair (Journal of Computational and Applied Mathematics 6, 1980)."""

    original: ClassVar[type[dfx.AbstractERK]] = dfx.Dopri5
    evaluations_per_step: ClassVar[int] = 6
    evaluations_for_output: ClassVar[int] = 0


class Dopri8(_Explicit, dfx.Dopri8):
    """Prince and Dormand's 8(7) pair (Journal of Computational and Applied Mathematics 7, 1981)."""

    original: ClassVar[type[dfx.AbstractERK]] = dfx.Dopri8
    evaluations_per_step: ClassVar[int] = 13
    evaluations_for_output: ClassVar[int] = 0

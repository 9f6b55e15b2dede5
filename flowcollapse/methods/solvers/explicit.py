"""Explicit Runge-Kutta methods of diffrax, with a single loop over their stages."""

import functools
from typing import ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np

from .exponential import combined, in_a_loop


class _Explicit(dfx.AbstractERK):
    """An explicit diffrax solver whose loop over the stages compiles to a smaller program than diffrax's.

    It has the same tableau, the same results up to rounding, and the same dense output.
    """

    tableau: ClassVar[dfx.ButcherTableau]

    def init(self, terms, t0, t1, y0, args):
        return terms.vf(t0, y0, args) if self.tableau.fsal else None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        tableau, control = self.tableau, terms.contr(t0, t1)
        first = solver_state if tableau.fsal and made_jump is False else terms.vf(t0, y0, args)
        nodes = jnp.asarray(np.append(0.0, tableau.c), jnp.result_type(*jax.tree.leaves(y0)))

        def moved(weights, k):
            return jax.tree.map(lambda y, ks: y + combined(weights, ks), y0, k)

        def increment(i, k):
            y = jax.lax.switch(i - 1, [functools.partial(moved, weights) for weights in tableau.a_lower], k)
            return terms.prod(terms.vf(t0 + nodes[i] * (t1 - t0), y, args), control)

        k = in_a_loop(increment, tableau.num_stages, terms.prod(first, control))
        error = jax.tree.map(functools.partial(combined, tableau.b_error), k)
        # The increment of the last stage is the field at the end times the step.
        last = jax.tree.map(lambda ks: ks[-1] / (t1 - t0), k) if tableau.fsal else None
        y1 = moved(tableau.b_sol, k)
        return y1, error, {"y0": y0, "y1": y1, "k": k}, last, dfx.RESULTS.successful


class Tsit5(_Explicit, dfx.Tsit5):
    """Tsitouras' 5(4) pair (Computers and Mathematics with Applications 62, 2011)."""

    evaluations_per_step: ClassVar[int] = 6
    evaluations_for_output: ClassVar[int] = 0


class Dopri5(_Explicit, dfx.Dopri5):
    """Dormand and Prince's 5(4) pair (Journal of Computational and Applied Mathematics 6, 1980)."""

    evaluations_per_step: ClassVar[int] = 6
    evaluations_for_output: ClassVar[int] = 0


class Dopri8(_Explicit, dfx.Dopri8):
    """Prince and Dormand's 8(7) pair (Journal of Computational and Applied Mathematics 7, 1981)."""

    evaluations_per_step: ClassVar[int] = 13
    evaluations_for_output: ClassVar[int] = 0

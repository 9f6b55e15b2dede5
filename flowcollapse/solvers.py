"""Solvers by name, explicit diffrax solvers with their stages in one loop, and step control by blocks."""

import functools
import operator
from collections.abc import Callable
from typing import ClassVar

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ._algebra import lu_factor, lu_solve, lu_solve_transposed
from ._errors import UsageError
from .exponential import ExponentialDOP853, combined, in_a_loop


class _Explicit(dfx.AbstractERK):
    """An explicit diffrax solver whose stages are a loop that is shorter than diffrax's.

    The same tableau, the same numbers to rounding, the same dense output.
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
        # The last stage is the field at the end; its increment is that times the step.
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


class _DiagonalSolver(lx.AbstractLinearSolver):
    """Linear systems whose matrix is known to be diagonal: one product with ones shows the diagonal."""

    def init(self, operator, options):
        return operator.mv(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), operator.in_structure()))

    def compute(self, state, vector, options):
        return jax.tree.map(jnp.divide, vector, state), lx.RESULTS.successful, {}

    def transpose(self, state, options):
        return state, options

    def conj(self, state, options):
        return state, options

    def assume_full_rank(self):
        return True


class _DenseSolver(lx.AbstractLinearSolver):
    """Linear systems by LU factors, for lanes on several devices.

    There, lineax's own refuses its vectors (under `shard_map` their shapes name the devices, and those of its matrices
    do not), and would wait for ever besides (`one_by_one`).
    """

    def init(self, operator, options):
        return lu_factor(operator.as_matrix()), eqxi.Static(False)

    def compute(self, state, vector, options):
        (factors, turned), (flat, unravel) = state, ravel_pytree(vector)
        return unravel((lu_solve_transposed if turned.value else lu_solve)(factors, flat)), lx.RESULTS.successful, {}

    def transpose(self, state, options):
        return (state[0], eqxi.Static(not state[1].value)), options

    def conj(self, state, options):
        return state, options

    def assume_full_rank(self):
        return True


def kencarp5() -> dfx.KenCarp5:
    """Kennedy and Carpenter's 5(4) implicit-explicit pair (Applied Numerical Mathematics 44, 2003), as diffrax has it.

    The mean residual alone is implicit, linear and diagonal: one iteration solves it, whatever its tolerance.
    """
    return dfx.KenCarp5(root_finder=dfx.VeryChord(rtol=1e-3, atol=1e-12, linear_solver=_DiagonalSolver()))


SOLVERS: dict[str, Callable[[], dfx.AbstractSolver]] = {
    "exponential": ExponentialDOP853,
    "tsit5": Tsit5,
    "dopri5": Dopri5,
    "dopri8": Dopri8,
    "kvaerno5": dfx.Kvaerno5,
    "kencarp5": kencarp5,
}


def solver_of(solver: str | dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver of a name, or the diffrax solver given.

    Raises:
        UsageError: for an unknown name, or an object that is not a diffrax solver with an error estimate.
    """
    if isinstance(solver, str):
        if solver.lower() not in SOLVERS:
            known = ", ".join(map(repr, sorted(SOLVERS)))
            raise UsageError(f"solver {solver!r} is not known: choose one of {known}, or pass a diffrax solver.")
        return _for_lanes(SOLVERS[solver.lower()]())
    if not isinstance(solver, dfx.AbstractAdaptiveSolver):
        raise UsageError(f"solver must be a name or a diffrax solver with an error estimate, got {solver!r}.")
    return _for_lanes(solver)


def suited(solver: dfx.AbstractSolver, output: bool) -> dfx.AbstractSolver:
    """The solver for a run with or without output, if it knows the difference."""
    known = getattr(solver, "suited", None)
    return solver if known is None else known(output)


def _for_lanes(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver with linear systems that lanes can solve, unless it brings a linear solver of its own."""
    root_finder = getattr(solver, "root_finder", None)
    if isinstance(getattr(root_finder, "linear_solver", None), lx.AutoLinearSolver):
        return eqx.tree_at(operator.attrgetter("root_finder.linear_solver"), solver, _DenseSolver())
    return solver


def splits_stiff_part(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver takes two terms, the stiff linear one apart."""
    return getattr(solver.term_structure, "__origin__", solver.term_structure) is dfx.MultiTerm


class BlockControl(dfx.AbstractAdaptiveStepSizeController):
    """Step control with one number a block: `||error|| / (atol + rtol ||now||)`, and the largest of them counts.

    The blocks are W, B, L and the bias or mean residual. A norm over a block does not change under rotations of the
    features or of the samples, so full, reduced and compressed runs take the same steps; and each block is measured
    against its own size, so small starts keep their relative accuracy. Plain integral control. Derived here.
    `block_norms(y)` gives the blocks' norms and `block_scales(norms)` what each block's error is measured against.

    No step is longer than `longest`. At rest the error says nothing, and steps would grow past the limit of stability,
    where rounding grows to hundreds of rtol before it is seen, and every second step is rejected.
    """

    rtol: Float[Array, ""]
    block_atol: Float[Array, " blocks"]
    block_norms: Callable[[PyTree], Float[Array, " blocks"]]
    block_scales: Callable[[Float[Array, " blocks"]], Float[Array, " blocks"]]
    longest: Float[Array, ""] | None = None

    @property
    def atol(self) -> Float[Array, ""]:
        """The absolute tolerance that implicit solvers use for their root finder, entry by entry."""
        return jnp.max(self.block_atol)

    @property
    def norm(self) -> Callable[[PyTree], Float[Array, ""]]:
        """The norm that implicit solvers use for their root finder."""
        return lambda y: jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(y)]))

    def _integral(self) -> dfx.PIDController:
        return dfx.PIDController(rtol=0.0, atol=1.0, norm=jnp.abs, dtmax=self.longest)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._integral().init(terms, t0, t1, jnp.zeros_like(self.rtol), dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        norms, error = jax.lax.stop_gradient((self.block_norms(y1_candidate), self.block_norms(y_error)))
        before = jax.lax.stop_gradient(self.block_norms(y0))
        scales = self.block_atol + self.rtol * self.block_scales(jnp.maximum(before, norms))
        scaled = jnp.max(error / jnp.where(scales > 0, scales, self.rtol))
        scaled = jnp.where(jnp.isfinite(scaled), scaled, jnp.inf)
        zero = jnp.zeros_like(scaled)
        return self._integral().adapt_step_size(t0, t1, zero, zero, args, scaled, error_order, controller_state)

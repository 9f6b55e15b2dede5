"""The implicit-explicit solver, and the linear solvers of implicit solvers."""

import operator

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree

from ..._linalg.algebra import lu_factor, lu_solve, lu_solve_transposed


class _DiagonalSolver(lx.AbstractLinearSolver):
    """Linear systems with a diagonal matrix: one product with a vector of ones gives the diagonal."""

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

    lineax's LU solver fails there: under `shard_map` the shapes of its vectors name the devices and those of its
    matrices do not. It would also deadlock (see `one_by_one`).
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


class _Interpolation(dfx.KenCarp5.interpolation_cls):  # pyright: ignore[reportGeneralTypeIssues]
    """diffrax's interpolation in the precision of the state; with float64 enabled, its coefficients would raise it."""

    def evaluate(self, t0, t1=None, left=True):
        found = super().evaluate(t0, t1, left)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), found, self.y0)


class _KenCarp5(dfx.KenCarp5):
    interpolation_cls = _Interpolation


def kencarp5() -> dfx.KenCarp5:
    """Kennedy and Carpenter's 5(4) implicit-explicit pair (Applied Numerical Mathematics 44, 2003), as diffrax has it.

    Only the mean residual is implicit. Its equation is linear and diagonal, so one iteration solves it at any
    tolerance.
    """
    return _KenCarp5(root_finder=dfx.VeryChord(rtol=1e-3, atol=1e-12, linear_solver=_DiagonalSolver()))


def _for_lanes(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver with a linear solver that works for lanes, unless it already has a specific one."""
    root_finder = getattr(solver, "root_finder", None)
    if isinstance(getattr(root_finder, "linear_solver", None), lx.AutoLinearSolver):
        return eqx.tree_at(operator.attrgetter("root_finder.linear_solver"), solver, _DenseSolver())
    return solver

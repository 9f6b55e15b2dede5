"""Rodas5P with its linear systems solved by conjugate gradients: long steps at rest, for problems of any size.

A gradient flow has the symmetric Jacobian `J = -Hessian`, so the matrix `I - gamma h J` of a Rosenbrock step is
symmetric, and positive definite once every mode has escaped. Near collapse the Hessian has few distinct eigenvalues
(about `C N`, `2 s`, `s` with `s = sqrt N`, and those of the order of the weight decay), and conjugate gradients need
about as many iterations as there are clusters of them, whatever the size of the state and the length of the step
(derived here). So a step costs a few hundred evaluations of the field, and nothing is ever factorised.
"""

from typing import ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._rodas5p import GAMMA, NUM_STAGES, A, C, D

MOST_ITERATIONS = 500
"""Systems that take more iterations than this make the step fail, and a shorter one is tried."""


class Rodas5P(dfx.AbstractAdaptiveSolver):
    """Steinebach's Rosenbrock method of order 5, for a field with a symmetric Jacobian that does not depend on time.

    Args:
        tolerance: how far the residual of each linear system is reduced.

    A step is rejected where `I - gamma h J` is not positive definite along the directions that the conjugate gradients
    see; shorter steps then are.
    """

    tolerance: float | Float[Array, ""] = 1e-10

    term_structure: ClassVar = dfx.AbstractTerm
    symmetric_jacobian: ClassVar[bool] = True
    """Whether the method rests on a symmetric Jacobian."""

    @property
    def interpolation_cls(self):
        return DenseOutput

    def order(self, terms) -> int:
        return 5

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        h, tolerance = t1 - t0, jnp.asarray(self.tolerance, jnp.result_type(*jax.tree.leaves(y0)))

        def field(y):
            return terms.vf(t0, y, args)

        _, jacobian = jax.linearize(field, y0)

        def matrix(v):
            return jax.tree.map(lambda x, Jx: x - GAMMA * h * Jx, v, jacobian(v))

        def solve(_, rhs):
            return conjugate_gradients(matrix, rhs, tolerance)

        def stage(k, rows):
            a, c = rows
            f = field(jax.tree.map(lambda y, ki: y + jnp.tensordot(a, ki, 1), y0, k))
            rhs = jax.tree.map(lambda x, ki: GAMMA * (h * x + jnp.tensordot(c, ki, 1)), f, k)
            return jax.lax.custom_linear_solve(matrix, rhs, solve, symmetric=True)

        def with_stage(k, rows):
            number, a, c = rows
            ki = stage(k, (a, c))
            return jax.tree.map(lambda all_k, one: all_k.at[number].set(one), k, ki), None

        nothing = jax.tree.map(lambda y: jnp.zeros((NUM_STAGES, *y.shape), y.dtype), y0)
        dtype = jnp.result_type(*jax.tree.leaves(y0))
        rows = (np.arange(NUM_STAGES), jnp.asarray(A, dtype), jnp.asarray(C, dtype))
        k, _ = jax.lax.scan(with_stage, nothing, rows)
        y1 = jax.tree.map(lambda y, ki: y + jnp.tensordot(rows[1][-1], ki, 1) + ki[-1], y0, k)
        error = jax.tree.map(lambda ki: ki[-1], k)
        outputs = jax.tree.map(lambda ki: jnp.tensordot(jnp.asarray(D, ki.dtype), ki, 1), k)
        return y1, error, {"y0": y0, "y1": y1, "outputs": outputs}, None, dfx.RESULTS.successful


def conjugate_gradients(matrix, rhs: PyTree, tolerance: Float[Array, ""]) -> PyTree:
    """The solution of `matrix(x) = rhs`, its residual reduced to `tolerance`; NaN where that cannot be done.

    It cannot where the matrix is not positive definite, or takes more than `MOST_ITERATIONS`.
    """

    def advance(carry):
        x, r, p, square, count = carry
        Ap = matrix(p)
        curvature = _dot(p, Ap)
        a = jnp.where(curvature > 0, square / curvature, jnp.nan)
        x = jax.tree.map(lambda u, v: u + a * v, x, p)
        r = jax.tree.map(lambda u, v: u - a * v, r, Ap)
        new = _dot(r, r)
        return x, r, jax.tree.map(lambda u, v: u + new / square * v, r, p), new, count + 1

    first = _dot(rhs, rhs)
    goal = tolerance**2 * first
    x, _, _, square, _ = jax.lax.while_loop(
        lambda carry: (carry[3] > goal) & (carry[4] < MOST_ITERATIONS),
        advance,
        (jax.tree.map(jnp.zeros_like, rhs), rhs, rhs, first, jnp.zeros((), int)),
    )
    return jax.tree.map(lambda u: jnp.where(square <= goal, u, jnp.nan), x)


def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    products = (jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return sum(products, start=jnp.zeros((), jnp.result_type(*jax.tree.leaves(a))))


class DenseOutput(dfx.AbstractLocalInterpolation):
    """Output of order 4 inside a step, as accurate as the error that the steps are controlled by."""

    t0: Array
    t1: Array
    y0: PyTree
    y1: PyTree
    outputs: PyTree

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(lambda end, start: end - start, self.evaluate(t1), self.evaluate(t0))
        h = self.t1 - self.t0
        x = (t0 - self.t0) / jnp.where(h > 0, h, 1.0)
        return jax.tree.map(
            lambda y0, y1, d: (1 - x) * y0 + x * (y1 + (1 - x) * (d[0] + x * (d[1] + x * d[2]))),
            self.y0,
            self.y1,
            self.outputs,
        )

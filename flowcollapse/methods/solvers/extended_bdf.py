"""Extended backward differentiation, with linear systems solved by conjugate gradients: long steps near rest.

A gradient flow has the symmetric Jacobian `J = -Hessian`, so the matrix `I - b h J` of an implicit stage is symmetric,
and positive definite once every mode has escaped. Near collapse the Hessian has few distinct eigenvalues: about `C N`,
`2 s` and `s` with `s = sqrt N`, and eigenvalues of the order of the weight decay. Conjugate gradients need about one
iteration for each cluster of eigenvalues, at any size of the state and any length of the step (derived here).

The stages are about as accurate as the step (their orders are 5 and 6), and each uses the Jacobian at its own point.
Both properties matter when the flow slides along a curved valley with steep walls. One-step methods with one Jacobian
per step lose their order there, and the steepness of the walls limits their steps by its cube root.

Source: J. R. Cash, "On the integration of stiff systems of O.D.E.s using extended backward differentiation formulae",
Numerische Mathematik 34, 1980. The formulas for unequal steps, and stages of one Newton iteration, are derived here.
"""

from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

PAST = 5
"""The number of past values in a backward differentiation formula. One more is kept for the extrapolation."""

NEXT, AFTER, END = 0, PAST + 2, PAST + 3
"""The places of the stages among the points of a step. The past points are in between."""

CAUTION = 2.0
"""The error estimate is the error of the formula without extension, divided by this. The step is one order better."""

MOST_ITERATIONS = 500
"""If a system takes more iterations than this, the step fails and a shorter one is tried."""


class ExtendedBDF(dfx.AbstractAdaptiveSolver):
    """Cash's extended backward differentiation formula of order 6, for a field with a symmetric Jacobian.

    The field must not depend on time.

    Args:
        tolerance: the factor by which the residual of each linear system is reduced.

    A step solves for the next point and the point after it with the ordinary formula of order 5, and then for the next
    point with the formula that uses the slopes at both. The points before the start are put on the tangent at the
    start, so the first step should be short: the square root of the relative tolerance, in units of the shortest time
    scale.

    A step is rejected if `I - b h J` is not positive definite along the directions of the conjugate gradients. For
    shorter steps it is.
    """

    tolerance: float | Float[Array, ""] = 1e-10

    term_structure: ClassVar = dfx.AbstractTerm
    symmetric_jacobian: ClassVar[bool] = True
    """Whether the method requires a symmetric Jacobian."""

    @property
    def interpolation_cls(self):
        return DenseOutput

    def order(self, terms) -> int:
        return PAST + 1

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        ago = -_positive(t1 - t0) * jnp.arange(PAST + 1)
        slope = terms.vf(t0, y0, args)
        return ago, jax.tree.map(lambda y, f: y + jnp.tensordot(ago, f, 0), y0, slope)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        h, tolerance = t1 - t0, jnp.asarray(self.tolerance, jnp.result_type(*jax.tree.leaves(y0)))
        ago, past = solver_state

        def stage(points, row):
            """Solve `y = known + b h f(y)` with one Newton iteration from a guess."""
            place, weights, b = row
            combined = jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), points)
            guess, known = (jax.tree.map(lambda x, i=i: x[i], combined) for i in range(2))
            f, jacobian = jax.linearize(lambda y: terms.vf(t0, y, args), guess)

            def matrix(v):
                return jax.tree.map(lambda x, Jx: x - b * h * Jx, v, jacobian(v))

            def solve(_, rhs):
                return conjugate_gradients(matrix, rhs, tolerance)

            rest = jax.tree.map(lambda y, fi, c: c + b * h * fi - y, guess, f, known)
            change = jax.lax.custom_linear_solve(matrix, rest, solve, symmetric=True)
            return jax.tree.map(lambda x, y, d: x.at[place].set(y + d), points, guess, change), None

        places = jnp.array([NEXT, AFTER, END])
        room = jax.tree.map(lambda x: jnp.pad(x, [(NEXT + 1, END - PAST - 1)] + [(0, 0)] * (x.ndim - 1)), past)
        points, _ = jax.lax.scan(stage, room, (places, *formulas(ago / _positive(h))))
        error = jax.tree.map(lambda x: (x[END] - x[NEXT]) / CAUTION, points)
        y1 = jax.tree.map(lambda x: x[END], points)
        ago = jnp.concatenate([jnp.zeros_like(ago[:1]), ago[:-1] - h])
        past = jax.tree.map(lambda y, x: jnp.concatenate([y[None], x[:-1]]), y1, past)
        return y1, error, {"ago": ago, "past": past}, (ago, past), dfx.RESULTS.successful


def formulas(nodes: Float[Array, " past"]) -> tuple[Float[Array, "3 2 points"], Float[Array, " 3"]]:
    """The formulas `y = known + b h f(y)` of the stages: the weights of all points in guess and known part, and b.

    The nodes are the times of the past points in units of the step, from 0 backwards. If the interpolant of some nodes
    has the value E and the slope D at x, the backward differentiation formula at x is `h f = D + a (y - E)`, with
    `a = sum_j 1 / (x - x_j)`. The extension uses the polynomial one degree higher that also has the slope of the stage
    at 2 (derived here).
    """
    nodes = jnp.concatenate([jnp.ones_like(nodes[:1]), nodes])
    # An extrapolation from m points has errors of 2^m roundings. In single precision, that is far enough off the floor
    # of a valley that the Hessian is not positive definite along it, which matters for long steps.
    behind = PAST + 1 if jnp.finfo(nodes.dtype).eps < 1e-10 else 3
    taken = [(1, PAST), (1, PAST), (0, PAST), (1, behind), (0, behind)]
    taken = np.array([[begin <= i < begin + many for i in range(PAST + 2)] for begin, many in taken])
    E, slopes, sums = interpolation(nodes, taken, jnp.array([1.0, 2.0, 2.0, 1.0, 2.0], nodes.dtype))
    D, a = slopes[:3], sums[:3]
    b = 1 / (a[0] - a[1] / (a[1] + 1))
    share = b / (a[1] + 1) * jnp.prod((1 - nodes[1:-1]) / (2 - nodes[1:-1]))
    first, _, second = E[:3] - D / a[:, None]
    third = E[0] - b * D[0] + share * (D[1] + a[2] * second)
    weights = jnp.stack([E[3], first, E[4], second, jnp.eye(PAST + 2, dtype=nodes.dtype)[NEXT], third])
    of_later = jnp.eye(6, dtype=nodes.dtype)[5:].T * jnp.stack([-share * a[2], jnp.zeros_like(b)])
    weights = jnp.concatenate([weights, of_later], axis=1).reshape(3, 2, -1)
    return weights, jnp.stack([1 / a[0], 1 / a[2], b])


def interpolation(nodes: Float[Array, " n"], taken: np.ndarray, x):
    """The weights of the nodes in the interpolant at x and in its slope at x, and `sum_j 1 / (x - x_j)`.

    This computes many interpolants at once. Each has a row of `taken`, with 1 for its nodes and 0 for the others, and
    an entry of x.
    """
    away = x[:, None] - nodes
    there = jnp.asarray(taken, nodes.dtype)
    inverse = there / (away + (1 - there))
    value = interpolant(nodes, taken, x)
    total = jnp.sum(inverse, axis=1)
    return value, value * (total[:, None] - inverse), total


def interpolant(nodes: Float[Array, " n"], taken: np.ndarray, x) -> Float[Array, "many n"]:
    """The weights of the nodes in the interpolants at x."""
    own = jnp.eye(len(nodes), dtype=nodes.dtype)
    others = jnp.asarray(taken, nodes.dtype)[:, None] * (1 - own)
    factors = (x[:, None, None] - nodes) / (nodes[:, None] - nodes + own)
    return jnp.asarray(taken, nodes.dtype) * jnp.prod(1 + others * (factors - 1), axis=2)


def _positive(h: Any) -> Float[Array, ""]:
    """h, or 1 for a run of length zero, whose steps are thrown away but must have derivatives."""
    return jnp.where(h > 0, h, 1.0)


def conjugate_gradients(matrix, rhs: PyTree, tolerance: Float[Array, ""]) -> PyTree:
    """The solution of `matrix(x) = rhs`, with the relative residual reduced to `tolerance`.

    It is NaN if the matrix is not positive definite, or if this takes more than `MOST_ITERATIONS`.
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
    """The polynomial through the end of a step and the points before it; as accurate as the error estimate."""

    t0: Array
    t1: Array
    ago: Float[Array, " points"]
    past: PyTree

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(lambda end, start: end - start, self.evaluate(t1), self.evaluate(t0))
        h = _positive(self.t1 - self.t0)
        weights = interpolant(self.ago / h, np.ones((1, PAST + 1)), ((t0 - self.t1) / h)[None])[0]
        return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), self.past)

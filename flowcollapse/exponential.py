"""The exponential DOP853: eighth order for the slow part, the stiff linear part by its exact exponential.

For `slow' = f(slow, fast)`, `fast' = -a fast + g(slow, fast)` with one rate `a >= 0` for all of `fast`, the slow part
takes DOP853's twelve stages, and the fast part is

    fast(x) = exp(-a h x) fast0 + sum_j w_j(x) g_j,    w_j(x) = h int_0^x exp(-a h (x - t)) l_j(t) dt,

with Lagrange polynomials `l_j` on a few well spread earlier stages, so that neither accuracy nor step size depends on
how stiff `a` is. The integrals are phi functions. Derived here; the coefficients of DOP853 are in `_dop853.py`.
"""

import math
from typing import ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._dop853 import E3, E5, NUM_STAGES, A, B, C, D

# The earlier stages through which the forcing is interpolated: for stages 1..11, for the step end, and the lower set
# against which the step end is compared.
STAGE_SETS = (
    (0,),
    (0, 1),
    (0, 2),
    (0, 2, 3),
    (0, 3, 4),
    (0, 3, 4, 5),
    (0, 3, 5, 6),
    (0, 3, 5, 6),
    (0, 3, 5, 8),
    (0, 3, 5, 9),
    (0, 3, 5, 9, 10),
)
END_SET = (0, 3, 5, 9, 10, 11)
LOWER_SET = (0, 5, 10, 11)
NUM_PHI = len(END_SET)
TAYLOR_TERMS = 16


def _monomials(stages: tuple[int, ...]) -> np.ndarray:
    """`m!` times the coefficient of `t^m` in each Lagrange polynomial on the nodes of `stages`, shape (stage, m)."""
    powers = np.vander(C[list(stages)], increasing=True)
    factorials = np.array([math.factorial(m) for m in range(len(stages))], dtype=np.float64)
    return np.linalg.inv(powers).T * factorials


def _weight_table(sets: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Row i: the polynomials of `sets[i]`, shape (set, stage, m), zero where a stage is not used."""
    table = np.zeros((len(sets), NUM_STAGES, NUM_PHI))
    for i, stages in enumerate(sets):
        table[i, list(stages), : len(stages)] = _monomials(stages)
    return table


_END = len(STAGE_SETS)
_ERROR = _END + 1
_TABLE = _weight_table((*STAGE_SETS, END_SET, LOWER_SET))
# The error is a difference of weights, not of results: both hold exp(-a h) fast0, whose rounding would drown it.
_TABLE[_ERROR] = _TABLE[_END] - _TABLE[_ERROR]
_NODES = np.array([*C[1:NUM_STAGES], 1.0, 1.0])
_END_TABLE = _monomials(END_SET)


def phi(z: Float[Array, "*shape"], count: int) -> list[Float[Array, "*shape"]]:
    """`phi_0(-z) ... phi_count(-z)` for `z >= 0`, with `phi_k(w) = sum_j w^j / (j + k)!`.

    Taylor's series below z = 1 (downward recursion from the highest), the upward recursion above, each where it is
    stable. Relative accuracy about 1e-13 in float64.
    """
    small, large = jnp.minimum(z, 1.0), jnp.maximum(z, 1.0)
    series = jnp.zeros_like(z)
    for j in reversed(range(TAYLOR_TERMS)):
        series = 1 / math.factorial(j + count) - small * series
    below = [series]
    for k in reversed(range(count)):
        below.append(1 / math.factorial(k) - small * below[-1])
    below.reverse()
    above = [jnp.exp(-large)]
    for k in range(count):
        above.append((1 / math.factorial(k) - above[-1]) / large)
    return [jnp.where(z < 1.0, low, high) for low, high in zip(below, above, strict=True)]


def _weights(rate: Float[Array, "*fast"], h, nodes, table: np.ndarray):
    """`exp(-a h x)` at the nodes and `h int_0^x exp(-a h (x - t)) l_j(t) dt` for the polynomials in `table`."""
    nodes = jnp.asarray(nodes, rate.dtype).reshape(-1, *(1,) * rate.ndim)
    decay, *phis = phi(rate * h * nodes, NUM_PHI)
    weights = jnp.zeros((), rate.dtype)
    for m, phi_m in enumerate(phis[:NUM_PHI]):
        column = jnp.asarray(table[:, :, m], rate.dtype).reshape(*table.shape[:2], *(1,) * rate.ndim)
        weights += column * (nodes ** (m + 1) * phi_m)[:, None]
    return jax.lax.optimization_barrier((decay, h * weights))


def _combine(coefficients, arrays):
    """`sum_j c_j a_j`, without the terms that are zero by construction."""
    terms = [c * a for c, a in zip(coefficients, arrays, strict=True) if not (isinstance(c, float) and c == 0.0)]
    return sum(terms[1:], start=terms[0])


def _advance(slow0: PyTree, h, coefficients: np.ndarray, k: list[PyTree]) -> PyTree:
    """`slow0 + h sum_j c_j k_j`."""
    numbers = [float(c) for c in coefficients]
    return jax.tree.map(lambda y, *ks: y + h * _combine(numbers, ks), slow0, *k)


class ExponentialDOP853(dfx.AbstractAdaptiveSolver):
    """DOP853 with the stiff linear part treated exactly; see this module's docstring.

    A diffrax solver for a state `(slow, fast)` and a `MultiTerm` of two terms: the first gives `(slow', g)`; the second
    gives `(0, -a fast)` with one number `a`, for an array `fast`. Twelve evaluations of the first term a step; output
    of order 7 for three more, which the compiler drops where nothing is saved. The slow part alone converges with
    order 8; where slow and fast drive each other at fixed `a`, with order 5 as the steps go to zero.
    """

    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    evaluations_per_step: ClassVar[int] = NUM_STAGES
    real_stability: ClassVar[float] = 6.0
    """Steps damp a decay at the rate r while `h r < 6.4`, and halve it at 6."""
    evaluations_for_output: ClassVar[int] = len(C) - NUM_STAGES - 1

    @property
    def interpolation_cls(self):
        return DenseOutput

    def order(self, terms) -> int:
        return 8

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        return terms.terms[0].vf(t0, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        forcing, relaxation = terms.terms
        h = t1 - t0
        slow0, fast0 = y0
        # At the number one the relaxation shows its rate.
        rate = -relaxation.vf(t0, (slow0, jnp.ones((), fast0.dtype)), args)[1]
        decay, weights = _weights(rate, h, _NODES, _TABLE)

        def fast_at(row: int, stages: tuple[int, ...]):
            return _combine([decay[row], *(weights[row, j] for j in stages)], [fast0, *(g[j] for j in stages)])

        first = solver_state if made_jump is False else forcing.vf(t0, y0, args)
        k, g = [first[0]], [first[1]]
        for i, stages in enumerate(STAGE_SETS):
            ki, gi = forcing.vf(t0 + C[i + 1] * h, (_advance(slow0, h, A[i + 1, : i + 1], k), fast_at(i, stages)), args)
            k.append(ki)
            g.append(gi)
        y1 = (_advance(slow0, h, B, k), fast_at(_END, END_SET))
        last = forcing.vf(t1, y1, args)
        fast_error = _combine([weights[_ERROR, j] for j in END_SET], [g[j] for j in END_SET])
        error = (_slow_error(h, k), fast_error)

        # Three further stages, for the output alone.
        forcing_at_nodes = jnp.stack([g[j] for j in END_SET])
        k.append(last[0])
        for i in range(NUM_STAGES + 1, len(C)):
            fast = _fast_output(C[i], h, rate, fast0, forcing_at_nodes)
            k.append(forcing.vf(t0 + C[i] * h, (_advance(slow0, h, A[i, :i], k), fast), args)[0])
        coefficients = _output_coefficients(h, slow0, y1[0], k)
        dense_info = {"y0": y0, "y1": y1, "coefficients": coefficients, "rate": rate, "forcing": forcing_at_nodes}
        return y1, jax.tree.map(jax.lax.stop_gradient, error), dense_info, last, dfx.RESULTS.successful


def _slow_error(h, k: list[PyTree]) -> PyTree:
    """DOP853's estimate `h E5 |E5| / sqrt(|E5|^2 + 0.01 |E3|^2)`, which falls as `h^8`, with one norm for all."""
    fifth = jax.tree.map(lambda *ks: _combine([float(c) for c in E5], ks), *k)
    third = jax.tree.map(lambda *ks: _combine([float(c) for c in E3], ks), *k)
    squares = [sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)) for tree in (fifth, third)]
    denominator = squares[0] + 0.01 * squares[1]
    ratio = jnp.sqrt(squares[0] / jnp.where(denominator > 0, denominator, 1.0))
    return jax.tree.map(lambda leaf: h * ratio * leaf, fifth)


def _output_coefficients(h, slow0: PyTree, slow1: PyTree, k: list[PyTree]) -> PyTree:
    """The seven coefficients of DOP853's output polynomial, stacked, for each leaf of the slow part."""

    def of_leaf(y0, y1, *ks):
        difference = y1 - y0
        rest = [h * _combine([float(c) for c in row], ks) for row in D]
        return jnp.stack([difference, h * ks[0] - difference, 2 * difference - h * (ks[NUM_STAGES] + ks[0]), *rest])

    return jax.tree.map(of_leaf, slow0, slow1, *k)


def _fast_output(x, h, rate: Array, fast0: Array, forcing: Array) -> Array:
    """The fast part at the fraction x of a step, by the exponential formula through the stages of `END_SET`."""
    decay, weights = _weights(rate, h, jnp.asarray(x, fast0.dtype)[None], _END_TABLE[None])
    weights = weights[0].reshape(-1, *(1,) * (fast0.ndim - rate.ndim), *rate.shape)
    return decay[0] * fast0 + jnp.sum(weights * forcing, axis=0)


class DenseOutput(dfx.AbstractLocalInterpolation):
    """Output inside a step: DOP853's polynomial of order 7 for the slow part, the exponential formula for the fast."""

    t0: Array
    t1: Array
    y0: PyTree
    y1: PyTree
    coefficients: PyTree
    rate: Array
    forcing: Array

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(lambda end, start: end - start, self.evaluate(t1), self.evaluate(t0))
        h = self.t1 - self.t0
        x = (t0 - self.t0) / jnp.where(h > 0, h, 1.0)

        def of_leaf(y0, coefficients):
            value = jnp.zeros_like(y0)
            for i, coefficient in enumerate(reversed(coefficients)):
                value = (value + coefficient) * (x if i % 2 == 0 else 1 - x)
            return y0 + value

        slow = jax.tree.map(of_leaf, self.y0[0], self.coefficients)
        return slow, _fast_output(x, h, self.rate, self.y0[1], self.forcing)

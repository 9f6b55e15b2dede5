"""The exponential DOP853: eighth order for the slow part, the stiff linear part by its exact exponential.

For `slow' = f(slow, fast)`, `fast' = -a fast + g(slow, fast)` with one rate `a >= 0` for all of `fast`, the slow part
takes DOP853's twelve stages, and the fast part at the fraction x of a step is

    fast(x) = exp(-a h x) fast0 + h sum_j w_j(a h) g_j

with weights that are exact for polynomials however stiff `a` is, and DOP853's own where `a h` is small. So neither
accuracy nor step size depends on the stiffness. The weights, derived here, are in `exponential_weights.py`;
`docs/solver.md` has the derivation and the measurements; the coefficients of DOP853 are in `_dop853.py`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._dop853 import E3, E5, NUM_STAGES, A, B, C, D
from .exponential_weights import (
    END,
    FIFTH,
    FURTHER,
    NEAR,
    OUTPUT_ROWS,
    THIRD,
    USED,
    decay_and_moments,
    nested,
    output_coefficients,
    phi as phi,
    step_weights,
)
from .programs import called


class Stages(NamedTuple):
    """A step: the derivatives of slow and the forcing of fast at its stages, its end, its error, and the last forcing.

    The stages are those of the step, then the step's end and, with output, three further ones: a list, or one array.
    """

    k: Any
    g: Any
    y1: PyTree
    error: PyTree
    last: PyTree


def _combine(coefficients, arrays):
    """`sum_j c_j a_j`, without the terms that are zero by construction."""
    terms = [c * a for c, a in zip(coefficients, arrays, strict=True) if not (isinstance(c, float) and c == 0.0)]
    return sum(terms[1:], start=terms[0])


def _advance(slow0: PyTree, h, coefficients: np.ndarray, k: list[PyTree]) -> PyTree:
    """`slow0 + h sum_j c_j k_j`."""
    used = [(i, float(c)) for i, c in enumerate(coefficients) if c != 0]

    @called
    def combined(slow0, h, *k):
        return jax.tree.map(lambda y, *ks: y + h * _combine([c for _, c in used], ks), slow0, *k)

    return combined(slow0, h, *[k[i] for i, _ in used])


def in_a_loop(stage, first: PyTree, rows: tuple[Array, ...]) -> PyTree:
    """The results of all stages, stacked, by a loop in which the stage stands once.

    `stage` takes the stacked results, zero where they are still to come, and its row of each of the `rows`; there is
    none for the `first` stage, whose result is given.
    """
    count = 1 + len(rows[0])

    def evaluate(results, row):
        i, *row = row
        return jax.tree.map(lambda all_, one: all_.at[i].set(one), results, stage(results, *row)), None

    nothing = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype).at[0].set(x), first)
    return jax.lax.scan(evaluate, nothing, (np.arange(1, count), *rows))[0]


class ExponentialDOP853(dfx.AbstractAdaptiveSolver):
    """DOP853 with the stiff linear part treated exactly; see this module's docstring.

    A diffrax solver for a state `(slow, fast)` and a `MultiTerm` of two terms: the first gives `(slow', g)`; the second
    gives `(0, -a fast)` with one number `a`, for an array `fast`. Twelve evaluations of the first term a step; output
    of order 7 for three more, which a run without saves leaves out. The slow part alone converges with
    order 8. Where slow and fast drive each other, states and output converge with an order between 6.5 and 7 as the
    steps go to zero at fixed `a`.

    Args:
        output: whether the step prepares output inside it.
        looped: whether the stages are a loop, in which the field stands once, instead of written out. The program is
            then a third as long and compiles in half of the time; a step of one small state takes 1.2 times as long, a
            step of sixteen in lockstep twice as long.
    """

    output: bool = eqx.field(static=True, default=True)
    looped: bool = eqx.field(static=True, default=False)

    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    evaluations_per_step: ClassVar[int] = NUM_STAGES
    real_stability: ClassVar[float] = 6.0
    """Steps damp a decay at the rate r while `h r < 6.4`, and halve it at 6."""
    evaluations_for_output: ClassVar[int] = len(C) - NUM_STAGES - 1

    def suited(self, output: bool, looped: bool) -> "ExponentialDOP853":
        """The same solver with or without output, with its stages in a loop or written out."""
        return dataclasses.replace(self, output=output, looped=looped)

    @property
    def interpolation_cls(self):
        return DenseOutput if self.output else dfx.LocalLinearInterpolation

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
        # The relaxation is linear: at 1 it is minus its rate.
        z = -h * relaxation.vf(t0, (slow0, jnp.ones((), fast0.dtype)), args)[1]
        first = solver_state if made_jump is False else forcing.vf(t0, y0, args)

        @called
        def field(t, y, args):
            return forcing.vf(t, y, args)

        def at(c, slow, fast):
            return field(t0 + c * h, (slow, fast), args)

        stages = (_looped if self.looped else _written_out)(at, h, z, y0, first, self.output)
        dense_info = {"y0": y0, "y1": stages.y1}
        if self.output:
            lawson, polynomial = output_coefficients(z, stages.g)
            slow = _output_coefficients(h, slow0, stages.y1[0], stages.k)
            dense_info |= {"z": z, "slow": slow, "lawson": h * lawson, "polynomial": h * polynomial}
        error = jax.tree.map(jax.lax.stop_gradient, stages.error)
        return stages.y1, error, dense_info, stages.last, dfx.RESULTS.successful


def _written_out(field, h, z, y0: PyTree, first: PyTree, output: bool) -> Stages:
    slow0, fast0 = y0
    k, g = [first[0]], [first[1]]

    def evaluate(i: int, fast: Array):
        ki, gi = field(C[i], _advance(slow0, h, A[i, :i], k), fast)
        k.append(ki)
        g.append(gi)

    decay, weights = _once(h, *step_weights(z))
    for row in range(END):
        evaluate(row + 1, decay[row] * fast0 + _weighted(weights[row], USED[row], g))
    y1 = (_advance(slow0, h, B, k), decay[END] * fast0 + _weighted(weights[END], USED[END], g))
    last = field(1.0, *y1)
    # The weights of a difference sum to zero: without the first forcing, a constant one leaves no rounding.
    changes = [gj - g[0] for gj in g]
    fast_error = _estimate(*(_weighted(weights[row], USED[row], changes) for row in (FIFTH, THIRD)))
    slow_error = _estimate(
        *(jax.tree.map(lambda *ks, row=row: h * _combine([float(c) for c in row], ks), *k) for row in (E5, E3))
    )
    k.append(last[0])
    g.append(last[1])
    if output:
        decay, weights = _once(h, *FURTHER.weights(z))
        for row, used in enumerate(FURTHER.used):
            evaluate(NUM_STAGES + 1 + row, decay[row] * fast0 + _weighted(weights[row], used, g))
    return Stages(k, g, y1, (slow_error, fast_error), last)


def _looped(field, h, z, y0: PyTree, first: PyTree, output: bool) -> Stages:
    slow0, fast0 = y0
    count = len(C) if output else NUM_STAGES + 1
    decay, weights = step_weights(z, output)
    decay, weights = _once(h, decay, jnp.pad(weights, ((0, 0), (0, count - weights.shape[1]))))
    dtype = z.dtype

    def stage(derivatives, c, a, decay, w):
        k, g = derivatives
        slow = jax.tree.map(lambda y, ks: y + h * jnp.tensordot(a.astype(ks.dtype), ks, 1), slow0, k)
        return field(c, slow, decay * fast0 + jnp.tensordot(w, g, 1))

    of_stages = np.array([*range(END + 1), *range(NEAR + 1, NEAR + 1 + count - NUM_STAGES - 1)])
    constants = (jnp.asarray(C[1:count], dtype), jnp.asarray(A[1:count, :count], dtype))
    k, g = in_a_loop(stage, tuple(first), (*constants, decay[of_stages], weights[of_stages]))

    def of_slow(row):
        return jax.tree.map(lambda ks: h * jnp.tensordot(jnp.asarray(row, ks.dtype), ks[:NUM_STAGES], 1), k)

    y1 = (jax.tree.map(jnp.add, slow0, of_slow(B)), decay[END] * fast0 + weights[END] @ g)
    errors = weights[FIFTH : THIRD + 1] @ (g - g[0])
    error = (_estimate(of_slow(E5), of_slow(E3)), _estimate(errors[0], errors[1]))
    return Stages(k, g, y1, error, jax.tree.map(lambda ks: ks[NUM_STAGES], (k, g)))


def _once(h, decay: Array, weights: Array) -> tuple[Array, Array]:
    """The weights times h, computed before they are used: XLA would compute them anew in each stage."""
    return jax.lax.optimization_barrier((decay, h * weights))


def _weighted(weights: Array, used: np.ndarray, arrays: list[Array]) -> Array:
    """`sum_j w_j a_j` over the stages that a row uses."""
    return sum((weights[j] * arrays[j] for j in np.flatnonzero(used)[1:]), start=weights[0] * arrays[0])


def _estimate(fifth: PyTree, third: PyTree) -> PyTree:
    """DOP853's `E5 |E5| / sqrt(|E5|^2 + 0.01 |E3|^2)`, with one norm for all: of order 8 for E5 and E3 of 6 and 4."""
    squares = [sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)) for tree in (fifth, third)]
    denominator = squares[0] + 0.01 * squares[1]
    ratio = jnp.sqrt(squares[0] / jnp.where(denominator > 0, denominator, 1.0))
    return jax.tree.map(lambda leaf: ratio * leaf, fifth)


def _output_coefficients(h, slow0: PyTree, slow1: PyTree, k: Any) -> PyTree:
    """The seven coefficients of DOP853's output polynomial, stacked, for each leaf of the slow part."""

    def of_list(y0, y1, *ks):
        difference = y1 - y0
        rest = [h * _combine([float(c) for c in row], ks) for row in D]
        return jnp.stack([difference, h * ks[0] - difference, 2 * difference - h * (ks[NUM_STAGES] + ks[0]), *rest])

    if isinstance(k, list):
        return jax.tree.map(of_list, slow0, slow1, *k)
    return jax.tree.map(lambda ks: h * jnp.tensordot(jnp.asarray(OUTPUT_ROWS, ks.dtype), ks, 1), k)


class DenseOutput(dfx.AbstractLocalInterpolation):
    """Output inside a step: DOP853's polynomial of order 7 for the slow part; for the fast part the exact integral of a
    polynomial of degree 5 through the forcing, and Lawson's integral of what that one misses."""

    t0: Array
    t1: Array
    y0: PyTree
    y1: PyTree
    slow: PyTree
    lawson: Array
    polynomial: Array
    z: Array

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(lambda end, start: end - start, self.evaluate(t1), self.evaluate(t0))
        h = self.t1 - self.t0
        x = jnp.asarray((t0 - self.t0) / jnp.where(h > 0, h, 1.0))
        slow0, fast0 = self.y0
        decay, moments = decay_and_moments(self.z, x)
        driven = sum(moment * coefficient for moment, coefficient in zip(moments, self.polynomial, strict=True))
        slow = jax.tree.map(lambda y, coefficients: y + nested(x, coefficients), slow0, self.slow)
        return slow, decay * (fast0 + nested(x, self.lawson)) + driven

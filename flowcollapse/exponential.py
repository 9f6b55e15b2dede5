"""The exponential DOP853: eighth order for the slow part, the stiff linear part by its exact exponential.

For `slow' = f(slow, fast)`, `fast' = -a fast + g(slow, fast)` with one rate `a >= 0` for all of `fast`, the slow part
takes DOP853's twelve stages, and the fast part at the fraction x of a step is

    fast(x) = exp(-a h x) fast0 + h sum_j w_j(a h) g_j

with weights that are exact for polynomials however stiff `a` is, and DOP853's own where `a h` is small. So neither
accuracy nor step size depends on the stiffness. The weights, derived here, are in `exponential_weights.py`;
`docs/solver.md` has the derivation and the measurements; the coefficients of DOP853 are in `_dop853.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._algebra import times, total
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
from .programs import called, lanes_last


class Stages(NamedTuple):
    """A step: the derivatives of slow and the forcing of fast at its stages, its end, its error, and the last forcing.

    The stages are those of the step, then the step's end and, with output, three further ones, stacked.
    """

    k: PyTree
    g: Any
    y1: PyTree
    error: PyTree
    last: PyTree


def _combine(coefficients: Sequence[float], arrays: Sequence[Array]) -> Array:
    """`sum_j c_j a_j`, without the terms that are zero."""
    return total([c * a for c, a in zip(coefficients, arrays, strict=True) if c != 0])


@called
def _increment(h, row: tuple[float, ...], *k: PyTree) -> PyTree:
    """`h sum_j c_j k_j`."""
    return jax.tree.map(lambda *ks: h * _combine(row, ks), *k)


@called
def _advanced(slow0: PyTree, h, row: tuple[float, ...], *k: PyTree) -> PyTree:
    """`slow0 + h sum_j c_j k_j`."""
    return jax.tree.map(lambda y, *ks: y + h * _combine(row, ks), slow0, *k)


@called
def _driven(row: int, used: tuple[int, ...], decay, weights, fast0: Array, *g: Array) -> Array:
    """The fast part at the node of a row, from the forcing at the stages that it uses."""
    return decay[row] * fast0 + _weighted(row, used, weights, g)


def _weighted(row: int, used: tuple[int, ...], weights, g: Sequence[Array]) -> Array:
    return total([weights[row, j] * gj for j, gj in zip(used, g, strict=True)])


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

        data = (t0, h, z, y0, first)
        reads = getattr(getattr(forcing, "term", forcing), "reads", None)  # diffrax wraps its terms
        if reads is None:
            outcome = _step(self, forcing, *data, args)
        else:
            outcome = lanes_last(_step)(self, forcing, *data, reads(args))
        return *outcome, dfx.RESULTS.successful


def _step(solver: ExponentialDOP853, forcing: dfx.AbstractTerm, t0, h, z, y0: PyTree, first: PyTree, args: PyTree):
    """The end of a step, its error, what its output is made from, and the forcing at its end. Lanes may come last."""

    def field(c, slow, fast):
        return forcing.vf(t0 + c * h, (slow, fast), args)

    stages = (_looped if solver.looped else _written_out)(field, h, z, y0, first, solver.output)
    dense_info = {"y0": y0, "y1": stages.y1}
    if solver.output:
        lawson, polynomial = output_coefficients(z, stages.g)
        slow = jax.tree.map(lambda ks: h * jnp.tensordot(jnp.asarray(OUTPUT_ROWS, ks.dtype), ks, 1), stages.k)
        dense_info |= {"z": z, "slow": slow, "lawson": h * lawson, "polynomial": h * polynomial}
    return stages.y1, jax.tree.map(jax.lax.stop_gradient, stages.error), dense_info, stages.last


def _written_out(field, h, z, y0: PyTree, first: PyTree, output: bool) -> Stages:
    slow0, fast0 = y0
    k, g = [first[0]], [first[1]]
    decay, weights = step_weights(z, output)
    weights = h * weights

    def at(row: int, coefficients: np.ndarray, used: np.ndarray) -> tuple[PyTree, Array]:
        """The state at the node of a row."""
        slow = _advanced(slow0, h, tuple(map(float, coefficients)), *k[: len(coefficients)])
        stages = tuple(map(int, np.flatnonzero(used)))
        return slow, _driven(row, stages, decay, weights, fast0, *[g[j] for j in stages])

    def evaluate(c: float, state: tuple[PyTree, Array]) -> None:
        ki, gi = field(c, *state)
        k.append(ki)
        g.append(gi)

    for row in range(END):
        evaluate(C[row + 1], at(row, A[row + 1, : row + 1], USED[row]))
    # The weights of a difference sum to zero: without the first forcing, a constant one leaves no rounding.
    fast_error = _estimate(h, *_differences(weights, g[0], *g[1:]))
    slow_error = _estimate(h, *(_increment(h, tuple(map(float, row)), *k) for row in (E5, E3)))
    y1 = at(END, B, USED[END])
    evaluate(1.0, y1)
    last = (k[-1], g[-1])
    if output:
        for row, used in enumerate(FURTHER.used):
            stage = NUM_STAGES + 1 + row
            evaluate(C[stage], at(NEAR + 1 + row, A[stage, :stage], used))
    stacked = jax.tree.map(lambda *ks: jnp.stack(ks), *k), jnp.stack(g)
    return Stages(*stacked, y1, (slow_error, fast_error), last)


@called
def _differences(weights, first: Array, *g: Array) -> list[Array]:
    """The differences between the end of the fast part and the embedded ones of orders 5 and 3."""
    changes = [gj - first for gj in g]
    used = ([int(j) for j in np.flatnonzero(USED[row]) if j > 0] for row in (FIFTH, THIRD))
    return [_weighted(row, js, weights, [changes[j - 1] for j in js]) for row, js in zip((FIFTH, THIRD), used)]


def _looped(field, h, z, y0: PyTree, first: PyTree, output: bool) -> Stages:
    slow0, fast0 = y0
    count = len(C) if output else NUM_STAGES + 1
    decay, weights = step_weights(z, output)
    weights = h * jnp.pad(weights, ((0, 0), (0, count - weights.shape[1]), *((0, 0),) * z.ndim))

    def driven(weights, g):
        return times(weights[None], g)[0]

    def stage(derivatives, c, a, decay, w):
        k, g = derivatives
        slow = jax.tree.map(lambda y, ks: y + h * jnp.tensordot(a.astype(ks.dtype), ks, 1), slow0, k)
        return field(c, slow, decay * fast0 + driven(w, g))

    of_stages = np.array([*range(END + 1), *range(NEAR + 1, NEAR + 1 + count - NUM_STAGES - 1)])
    constants = (jnp.asarray(C[1:count], z.dtype), jnp.asarray(A[1:count, :count], z.dtype))
    k, g = in_a_loop(stage, tuple(first), (*constants, decay[of_stages], weights[of_stages]))

    def of_slow(row):
        return jax.tree.map(lambda ks: h * jnp.tensordot(jnp.asarray(row, ks.dtype), ks[:NUM_STAGES], 1), k)

    y1 = (jax.tree.map(jnp.add, slow0, of_slow(B)), decay[END] * fast0 + driven(weights[END], g))
    changes = g - g[0]
    error = (_estimate(h, of_slow(E5), of_slow(E3)), _estimate(h, *(driven(weights[i], changes) for i in (FIFTH, THIRD))))
    return Stages(k, g, y1, error, jax.tree.map(lambda ks: ks[NUM_STAGES], (k, g)))


def _estimate(h, fifth: PyTree, third: PyTree) -> PyTree:
    """DOP853's `E5 |E5| / sqrt(|E5|^2 + 0.01 |E3|^2)`, with one norm for all: of order 8 for E5 and E3 of 6 and 4."""

    def square(x):
        return jnp.sum(x**2, axis=tuple(range(x.ndim - h.ndim)))

    squares = [sum(map(square, jax.tree.leaves(tree))) for tree in (fifth, third)]
    denominator = squares[0] + 0.01 * squares[1]
    ratio = jnp.sqrt(squares[0] / jnp.where(denominator > 0, denominator, 1.0))
    return jax.tree.map(lambda leaf: ratio * leaf, fifth)


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
        return lanes_last(_inside)(x, self.z, self.y0, self.slow, self.lawson, self.polynomial)


def _inside(x, z, y0: PyTree, slow: PyTree, lawson: Array, polynomial: Array) -> tuple[PyTree, Array]:
    """The state at the fraction x of a step."""
    slow0, fast0 = y0
    decay, moments = decay_and_moments(z, x)
    driven = total([moment * coefficient for moment, coefficient in zip(moments, polynomial, strict=True)])
    state = jax.tree.map(lambda y, coefficients: y + nested(x, coefficients), slow0, slow)
    return state, decay * (fast0 + nested(x, lawson)) + driven

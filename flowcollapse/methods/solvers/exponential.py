"""The exponential DOP853: eighth order for the slow part, and the exact exponential for the stiff linear part.

For `slow' = f(slow, fast)`, `fast' = -a fast + g(slow, fast)` with one rate `a >= 0` for all of `fast`, the slow part
takes DOP853's twelve stages, and the fast part at the fraction x of a step is

    fast(x) = exp(-a h x) fast0 + h sum_j w_j(a h) g_j

The weights are exact for polynomials at any stiffness `a`, and equal DOP853's weights if `a h` is small. So neither
accuracy nor step size depends on the stiffness. The weights, derived here, are in `weights.py`. The
derivation and the measurements are in `docs/explanation/solver.md`. The coefficients of DOP853 are in `dop853.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._linalg.algebra import sum_of_squares, total
from ...programs import SMALL, called, lanes_last
from .dop853 import E3, E5, NUM_STAGES, A, C, D
from .output import DenseOutput
from .weights import END, FIFTH, FURTHER, NEAR, USED, step_weights


def combined(coefficients: Sequence[float] | np.ndarray, arrays: Array) -> Array:
    """`sum_j c_j a_j`, without the terms with zero coefficients."""
    return total([float(c) * arrays[j] for j, c in enumerate(coefficients) if c != 0])


def driven(weights: Array, row: int, used: np.ndarray, g: Array) -> Array:
    """`sum_j w_j g_j` for a row of the weights, over the stages that the row uses."""
    return total([weights[row, j] * g[j] for j in np.flatnonzero(used)])


def in_a_loop(stage: Callable, count: int, first: PyTree) -> PyTree:
    """The stacked results of `count` stages, from a loop that contains the field only once.

    `stage(i, results)` is the result of stage i. It may use the stacked results of the stages before i. `first` is the
    result of the first stage.
    """

    def evaluate(results, i):
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return jax.tree.map(put, results, stage(i, results)), None

    nothing = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype).at[0].set(x), first)
    return jax.lax.scan(evaluate, nothing, np.arange(1, count))[0]


class Relaxation(dfx.ODETerm):
    """The stiff linear part of a state `(slow, fast)`: `slow' = 0` and `fast' = -a fast`.

    Args:
        rate: a function from the arguments of the integration and a dtype to the number a. None means that nothing is
            stiff: the whole state takes the steps of DOP853.
    """

    rate: Callable[[Any, Any], Float[Array, ""]] | None

    def __init__(self, rate: Callable[[Any, Any], Float[Array, ""]] | None):
        self.rate = rate

        def relaxed(t, y, args):
            still = jax.tree.map(jnp.zeros_like, y)
            return still if rate is None else (still[0], -rate(args, y[1].dtype) * y[1])

        super().__init__(relaxed)


def _inner(term: dfx.AbstractTerm) -> dfx.AbstractTerm:
    """The term that diffrax has wrapped, or the term itself."""
    return getattr(term, "term", term)


def for_lanes(
    step: Callable, term: dfx.AbstractTerm, args: Any, mapped: Callable | None = None
) -> tuple[Callable, Any]:
    """The step of a term, with the lanes last if the field of the term allows it, and what the field reads of `args`.

    `mapped` is as for `lanes_last`.
    """
    reads = getattr(_inner(term), "reads", None)
    return (step, args) if reads is None else (lanes_last(step, mapped), reads(args))


class ExponentialDOP853(dfx.AbstractAdaptiveSolver):
    """DOP853 with the stiff linear part treated exactly; see this module's docstring.

    A diffrax solver for a state `(slow, fast)` and a `MultiTerm` of two terms: the first gives `(slow', g)`, the second
    is the `Relaxation` of an array `fast`. A step takes twelve evaluations of the first term. Output of order 7 takes
    three more, which runs without saves omit. The slow part alone converges with order 8. If slow and fast drive each
    other, states and output converge with an order between 6.5 and 7 as the steps go to zero at fixed `a`.

    Args:
        output: whether a step prepares dense output.
    """

    output: bool = eqx.field(static=True, default=True)

    term_structure: ClassVar = dfx.MultiTerm[tuple[dfx.AbstractTerm, dfx.AbstractTerm]]
    evaluations_per_step: ClassVar[int] = NUM_STAGES
    real_stability: ClassVar[float] = 6.0
    """A step h damps a decay with rate r if `h r < 6.4`, and halves it at `h r = 6`."""
    evaluations_for_output: ClassVar[int] = len(C) - NUM_STAGES - 1

    def suited(self, output: bool) -> "ExponentialDOP853":
        """The same solver with or without output."""
        return dataclasses.replace(self, output=output)

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
        h, rate = t1 - t0, cast(Relaxation, _inner(relaxation)).rate
        z = None if rate is None else h * rate(args, y0[1].dtype)
        first = solver_state if made_jump is False else forcing.vf(t0, y0, args)

        step, read = for_lanes(_step, forcing, args, _mapped_step)
        y1, error, dense_info, last = step(self.output, forcing, t0, h, z, y0, first, read)
        return y1, error, dense_info, last, dfx.RESULTS.successful


PLACES = (0, *range(END + 1), *range(NEAR + 1, NEAR + len(C) - NUM_STAGES))
"""The row of `step_weights` for each stage, the step end and the further stages; the first stage has no row."""

STAGE_USES = [np.zeros(0, bool), *USED[: END + 1], *FURTHER.used]

HIGHEST = 3**3 * 4**4 / 7**7
"""The maximum of `x^4 (1 - x)^3`, the polynomial of the last row of `D`, for x between 0 and 1."""

TRUSTED = 25.0
"""The largest last term of the output, in units of the tolerance. The output errs by a tenth to a half of this term."""


def _step(output: bool, forcing: dfx.AbstractTerm, t0, h, z, y0: PyTree, first: PyTree, args: PyTree, mapped=False):
    """The end of a step, its error, the data for its output, and the forcing at its end.

    Lanes may be the last axes, or the step is `mapped` over them. If z is None, the whole state is slow.
    """
    relaxes = z is not None
    count = len(C) if output else NUM_STAGES + 1
    decay, weights = step_weights(z, output) if relaxes else (None, jnp.zeros(()))
    weights = h * weights

    def parts(y: PyTree) -> tuple[PyTree, Any]:
        """The slow and the fast part of a state or a forcing. The fast part is () if the whole state is slow."""
        return tuple(y) if relaxes else (y, ())

    def whole(parts: tuple[PyTree, Any]) -> PyTree:
        return parts if relaxes else parts[0]

    slow0, fast0 = parts(y0)
    nodes, coefficients = jnp.asarray(C[:count], h.dtype), jnp.asarray(A[:count, :count], h.dtype)

    def at(i: int, derivatives: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        """The state at stage i, from the stages that it uses."""
        k, g = derivatives
        slow = jax.tree.map(lambda y, ks: y + h * combined(A[i], ks), slow0, k)
        if decay is None:
            return slow, ()
        return slow, decay[PLACES[i]] * fast0 + driven(weights, PLACES[i], STAGE_USES[i], g)

    def at_any(i: Array, derivatives: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        """The state at a traced stage i without lanes, from all stages."""
        k, g = derivatives
        slow = jax.tree.map(lambda y, ks: y + h * jnp.tensordot(coefficients[i], ks, 1), slow0, k)
        if decay is None:
            return slow, ()
        place = jnp.asarray(PLACES)[i]
        return slow, decay[place] * fast0 + weights[place] @ g[: weights.shape[1]]

    def in_its_branch(i: Array, derivatives: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        return jax.lax.switch(i - 1, [functools.partial(at, j) for j in range(1, count)], derivatives)

    # For a small state, multiplying by zeros costs less than compiling the branches.
    small = not mapped and h.ndim == 0 and sum(x.size for x in jax.tree.leaves(slow0)) <= SMALL
    state = at_any if small else in_its_branch

    def stage(i, so_far):
        return parts(forcing.vf(t0 + nodes[i] * h, whole(state(i, so_far)), args))

    k, g = in_a_loop(stage, count, parts(first))

    @called
    def highest(h, z, k: PyTree, g: Any) -> tuple[PyTree, Any]:
        """The largest value, inside the step, of the term of highest degree in the polynomial of the output."""
        slow = jax.tree.map(lambda ks: h * combined(HIGHEST * D[3], ks), k)
        # The fast part remembers its forcing for 1/a, and the term of a constant forcing is zero up to its rounding.
        return slow, h / (1 + z) * combined(HIGHEST * D[3], g - g[0]) if relaxes else ()

    @called
    def embedded(h, weights, k: PyTree, g: Any) -> tuple[PyTree, PyTree, Any]:
        """The differences between the end of the step and the ends of the embedded rows: slow (two) and fast."""
        fifth, third = (jax.tree.map(lambda ks, row=row: h * combined(row, ks), k) for row in (E5, E3))
        # The weights of a difference sum to zero. So subtract g[0]: a constant forcing then leaves no rounding.
        return fifth, third, driven(weights, FIFTH, USED[FIFTH], g - g[0]) if relaxes else ()

    y1 = at(NUM_STAGES, (k, g))
    fifth, third, of_fast = embedded(h, weights, k, g)
    # The fast part keeps the full difference to order 5. Its errors at the stages enter the slow part with an order
    # near 6, and an estimate of order 8 would let them pass at tight tolerances.
    error = _estimate(h, fifth, third), of_fast
    if output:
        # In long steps the output errs more than the end does, in proportion to its last term.
        error = _larger(h, error, highest(h / TRUSTED, z, k, g))
    dense_info = {"y0": y0, "k": k, "g": g, "z": z} if output else {"y0": y0, "y1": whole(y1)}
    last = jax.tree.map(lambda ks: ks[NUM_STAGES], (k, g))
    return whole(y1), jax.tree.map(jax.lax.stop_gradient, whole(error)), dense_info, whole(last)


_mapped_step = functools.partial(_step, mapped=True)


def _estimate(h, fifth: PyTree, third: PyTree) -> PyTree:
    """DOP853's `E5 |E5| / sqrt(|E5|^2 + 0.01 |E3|^2)` with one norm over all: order 8, as E5 and E3 have 6 and 4."""
    squares = [sum_of_squares(jax.tree.leaves(tree), h.ndim) for tree in (fifth, third)]
    denominator = squares[0] + 0.01 * squares[1]
    ratio = jnp.sqrt(squares[0] / jnp.where(denominator > 0, denominator, 1.0))
    return jax.tree.map(lambda leaf: ratio * leaf, fifth)


def _larger(h, some: PyTree, others: PyTree) -> PyTree:
    """For each leaf the one with the larger norm. Lanes, if h has any, come last."""

    def one_of(a, b):
        a_squared, b_squared = (sum_of_squares([x], h.ndim) for x in (a, b))
        return jnp.where(a_squared >= b_squared, a, b)

    return jax.tree.map(one_of, some, others)

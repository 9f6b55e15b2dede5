"""Weights of the exponential DOP853 for the fast part: exact integrals of interpolants, and Lawson's weights for the
rest.

A row of DOP853 with node x and coefficients `a_j` approximates `int_0^x f dt ~ sum_j a_j f_j`, in units of the step.
The fast part needs `int_0^x exp(-z (x - t)) g dt` with `z = a h`. Lawson's weights `v_j = a_j exp(-z (x - c_j))` keep
the order of the row, but are useless for this integral once z is large. So g is first interpolated on a few well-spread
stages K of the row, with the Lagrange polynomials `l_k`. The interpolant is integrated exactly. Only the rest uses
Lawson's weights, which `chi(z)` fades out for large z:

    w_k(z) = int_0^x exp(-z (x - t)) l_k(t) dt + chi(z) sum_j v_j (delta_jk - l_k(c_j)).

At z = 0 the row is the row of DOP853. Polynomials of a degree below the number of stages in K, and so constants, are
integrated exactly at any z. Derived here: the derivation, the choice of the sets K and the measurements are in
`docs/explanation/solver.md`. The coefficients of DOP853 are in `dop853.py`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._linalg.algebra import beside
from ..._linalg.phi import phi
from ...programs import called
from .dop853 import E5, NUM_STAGES, A, B, C, D

Z_FADE = 3.0
"""The z at which Lawson's weights fade out: `chi(z) = exp(-(z/3)^8)`."""

Z_NEAR = 1.0
"""The z at which stage 5 changes from its four nodes for small z to its three nodes for large z."""

Z_LARGEST = 8.0
"""From this z on, both factors are zero even in float64, so a larger z can be limited to it before the exponentials."""

# The stages K for each row. Rows 5 to 11 take four. The errors of these stages start at the same degree, and cancel in
# sums only if their sets are equally large. The four nodes of row 5 lie close together and extrapolate badly, so they
# are used only for small z.
STAGE_SETS = (
    (0,),
    (0, 1),
    (0, 2),
    (0, 2, 3),
    (0, 3, 4),
    (0, 3, 4, 5),
    (0, 3, 5, 6),
    (0, 5, 6, 7),
    (0, 5, 6, 8),
    (0, 5, 6, 9),
    (0, 5, 9, 10),
)
NEAR_STAGE, NEAR_SET = 5, (0, 2, 3, 4)
END_SET, FIFTH_SET = (0, 3, 5, 9, 10, 11), (0, 3, 5, 9, 11)
FURTHER_SET = (0, 5, 9, 10, 12)
OUTPUT_SET = (0, 5, 9, 12, 14, 15)
NUM_PHI = max(len(END_SET), len(OUTPUT_SET))
"""The size of the largest set, and so the number of phi functions."""


def interpolation(stages: Sequence[int], num_stages: int) -> tuple[np.ndarray, np.ndarray]:
    """The Lagrange polynomials on the nodes of `stages`, and the error of interpolation at the node of every stage.

    The first, shape (m, stage k), holds `m!` times the coefficient of `t^m` in `l_k`, zero where k is not in `stages`.
    The second, shape (stage j, stage k), holds `delta_jk - l_k(c_j)`.
    """
    coefficients = np.zeros((NUM_PHI, num_stages))
    for k in stages:
        others = C[[j for j in stages if j != k]]
        coefficients[: len(stages), k] = np.polynomial.polynomial.polyfromroots(others) / np.prod(C[k] - others)
    missed = np.eye(num_stages) - np.vander(C[:num_stages], NUM_PHI, increasing=True) @ coefficients
    missed[list(stages)] = 0.0
    factorials = np.array([math.factorial(m) for m in range(NUM_PHI)], dtype=np.float64)
    return factorials[:, None] * coefficients, missed


class Rows(NamedTuple):
    """Constant tables of several rows: `nodes` (row,), `polynomials` (m, row, k), `lawson` (j, row, k)."""

    nodes: np.ndarray
    polynomials: np.ndarray
    lawson: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Whether a row uses a stage, shape (row, stage)."""
        return (self.polynomials != 0).any(axis=0) | (self.lawson != 0).any(axis=0)

    def weights(self, z: Float[Array, "*lanes"]) -> tuple[Float[Array, "row *lanes"], Float[Array, "row stage *lanes"]]:
        """`exp(-z x)` for each row, and its weights divided by the step size."""
        decay, moments = decay_and_moments(z, beside(self.nodes, z))
        weights = decay[:, None] * _lawson(lawson_growth(z), self.lawson)
        for table, moment in zip(self.polynomials, moments, strict=True):
            weights += beside(table, z) * moment[:, None]
        return decay, weights


def rows_of(nodes: np.ndarray, coefficients: Sequence[np.ndarray], sets: Sequence[Sequence[int]]) -> Rows:
    """The tables for rows with the given nodes, DOP853 coefficients (all of one length) and sets K."""
    tables = [interpolation(stages, len(row)) for row, stages in zip(coefficients, sets, strict=True)]
    lawson = [row[:, None] * missed for row, (_, missed) in zip(coefficients, tables, strict=True)]
    return Rows(nodes, np.stack([p for p, _ in tables], axis=1), np.stack(lawson, axis=1))


@called
def decay_and_moments(z: Float[Array, "*lanes"], x: Float[Array, "*nodes"]) -> tuple[Array, list[Array]]:
    """`exp(-z x)` and `int_0^x exp(-z (x - t)) t^m / m! dt` for each m."""
    decay, *phis = phi(z * x, NUM_PHI)
    power, moments = jnp.broadcast_to(x, decay.shape), []
    for phi_m in phis:
        moments.append(power * phi_m)
        power = power * x
    return decay, moments


def _fading(z: Float[Array, "*lanes"], scale: float, power: int) -> Float[Array, "*lanes"]:
    return jnp.exp(-((_limited(z) / scale) ** power))


def _limited(z: Float[Array, "*lanes"]) -> Float[Array, "*lanes"]:
    return jax.lax.min(z, jnp.full_like(z, Z_LARGEST))


def lawson_growth(z: Float[Array, "*lanes"]) -> Float[Array, "stage *lanes"]:
    """`chi(z) exp(z c_j)` for each stage."""
    return _fading(z, Z_FADE, 8) * jnp.exp(_limited(z) * beside(C, z))


def _lawson(growth: Float[Array, "of_all *lanes"], table: np.ndarray) -> Float[Array, "row stage *lanes"]:
    """`sum_j growth_j table_j`, as one product with the non-zero part of the table."""
    first, last = np.flatnonzero(table.any(axis=(0, 2)))[[0, -1]]
    stages = np.flatnonzero(table.any(axis=(1, 2)))
    block = table[stages[0] : stages[-1] + 1, first : last + 1]
    used = growth[stages[0] : stages[-1] + 1]
    matrix = jnp.asarray(block.reshape(len(block), -1).T, growth.dtype)
    weights = jnp.tensordot(matrix, used, 1, precision="highest").reshape(*block.shape[1:], *growth.shape[1:])
    return jnp.pad(weights, ((first, table.shape[1] - last - 1), *((0, 0),) * growth.ndim))


def _step_rows() -> Rows:
    """The rows of a step: stages 1 to 11, the step end, and two differences.

    The differences are those of the step end to the embedded row of order 5, and of stage 5 for small z to stage 5 for
    large z. They are taken between the tables, because all rows contain exp(-a h) fast0 and the same
    constants, and the rounding of these would swamp the differences.
    """
    rows = [A[i, :NUM_STAGES] for i in range(1, NUM_STAGES)]
    near = rows[NEAR_STAGE - 1]
    nodes = np.array([*C[1:NUM_STAGES], 1.0, 1.0, C[NEAR_STAGE]])
    tables = rows_of(nodes, [*rows, B, B - E5, near], [*STAGE_SETS, END_SET, FIFTH_SET, NEAR_SET])
    for table in (tables.polynomials, tables.lawson):
        table[:, FIFTH] = table[:, END] - table[:, FIFTH]
        table[:, NEAR] -= table[:, NEAR_STAGE - 1]
    return tables


END = len(STAGE_SETS)
FIFTH, NEAR = END + 1, END + 2
STEP = _step_rows()
USED = STEP.used
"""Whether a row of `step_weights` uses a stage, shape (row, stage)."""

USED[NEAR_STAGE - 1] |= USED[NEAR]
FURTHER = rows_of(C[NUM_STAGES + 1 :], [A[i] for i in range(NUM_STAGES + 1, len(C))], [FURTHER_SET] * 3)
"""The three further stages for the output."""

_wide = (0, len(C) - NUM_STAGES)
STEP_AND_FURTHER = Rows(
    np.concatenate([STEP.nodes, FURTHER.nodes]),
    np.concatenate([np.pad(STEP.polynomials, ((0, 0), (0, 0), _wide)), FURTHER.polynomials], axis=1),
    np.concatenate([np.pad(STEP.lawson, (_wide, (0, 0), _wide)), FURTHER.lawson], axis=1),
)


@called
def step_weights(
    z: Float[Array, "*lanes"], further: bool = False
) -> tuple[Float[Array, "row *lanes"], Float[Array, "row stage *lanes"]]:
    """`exp(-z x)` and the weights divided by the step size, for the rows of a step and the `further` output stages.

    Row i - 1 is stage i, and row `END` is the step end. Row `FIFTH` is the difference between the step end and the
    embedded row of order 5. Row `NEAR` is only used in this function. The further stages follow it.
    """
    decay, weights = (STEP_AND_FURTHER if further else STEP).weights(z)
    return decay, weights.at[NEAR_STAGE - 1].add(_fading(z, Z_NEAR, 4) * weights[NEAR])


_pad = (0, len(C) - NUM_STAGES)
_whole, _first, _last = np.pad(B, _pad), np.eye(len(C))[0], np.eye(len(C))[NUM_STAGES]
OUTPUT_ROWS = np.stack([_whole, _first - _whole, 2 * _whole - _last - _first, *D])
"""The contribution of each stage to the coefficients of DOP853's output polynomial, in the order of `nested`."""

_OUTPUT_POLYNOMIALS, _OUTPUT_MISSED = interpolation(OUTPUT_SET, len(C))
_REST = tuple(int(j) for j in np.flatnonzero(OUTPUT_ROWS.any(axis=0)) if j not in OUTPUT_SET)


def output_coefficients(
    z: Float[Array, "*lanes"], g: Float[Array, "stage *shape"]
) -> tuple[Float[Array, "row *shape"], Float[Array, "m *shape"]]:
    """The forcing of all stages in the form that output needs.

    Returns the coefficients for `nested` of Lawson's integral of the interpolation error, and `m!` times the
    coefficients of the interpolant.
    """
    inside, outside = (g[np.array(stages)] for stages in (OUTPUT_SET, _REST))

    def product(matrix, values):
        return jnp.tensordot(jnp.asarray(matrix, values.dtype), values, 1, precision="highest")

    missed = outside + product(_OUTPUT_MISSED[np.ix_(_REST, OUTPUT_SET)], inside)
    growth = lawson_growth(z)[np.array(_REST)].reshape(-1, *(1,) * (g.ndim - 1 - z.ndim), *z.shape)
    return product(OUTPUT_ROWS[:, _REST], growth * missed), product(_OUTPUT_POLYNOMIALS[:, OUTPUT_SET], inside)


def nested(x, coefficients):
    """DOP853's output polynomial at the fraction x of a step: `x (c_0 + (1 - x) (c_1 + x (c_2 + ...)))`."""
    value = jnp.zeros_like(coefficients[0])
    for i, coefficient in enumerate(reversed(coefficients)):
        value = (value + coefficient) * (x if i % 2 == 0 else 1 - x)
    return value

"""The weights of the exponential solver: DOP853's without a rate, exact for polynomials, right to the last digits."""

import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hundred_digits import exact_phi
from systems import compiled

from flowcollapse._linalg.phi import phi
from flowcollapse.methods.solvers import weights
from flowcollapse.methods.solvers.dop853 import E5, NUM_STAGES, A, B, C

EPS = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("k", range(7))
def test_phi_functions_are_right_for_every_rate(k):
    z = np.concatenate([[0.0], np.geomspace(1e-12, 1e12, 97), [0.999999, 1.0, 1.000001]])
    found = np.asarray(jax.jit(lambda z: phi(z, 6))(jnp.asarray(z))[k])
    wanted = np.array([exact_phi(k, x) for x in z])
    # exp(-z) has the rounding of z; above z = 1 the first terms of the recursion lose at most three digits.
    np.testing.assert_allclose(found, wanted, rtol=1e-12 if k else 1e3 * EPS, atol=1e-300)


STEP_SETS = [
    *weights.STAGE_SETS,
    weights.END_SET,
]
Z = np.array([0.0, 1e-8, 1e-3, 0.1, 0.7, 1.0, 1.6, 2.5, 3.3, 5.0, 7.9, 8.1, 30.0, 1e3, 1e5, 1e8])


@pytest.fixture(scope="module")
def rows():
    """`exp(-z x)` and the weights of the step's rows, and of the further stages, for each z in `Z`."""
    step, further = compiled(jax.vmap(lambda z: (weights.step_weights(z), weights.FURTHER.weights(z))))(jnp.asarray(Z))
    return [np.asarray(x) for x in step], [np.asarray(x) for x in further]


def test_without_a_rate_the_rows_are_those_of_dop853(rows):
    (_, step), (_, further) = rows
    np.testing.assert_allclose(step[0, : weights.END], A[1:NUM_STAGES, :NUM_STAGES], atol=1e-12)
    np.testing.assert_allclose(step[0, weights.END], B, atol=1e-12)
    np.testing.assert_allclose(step[0, weights.FIFTH], E5, atol=1e-12)
    np.testing.assert_allclose(further[0], A[NUM_STAGES + 1 :], atol=1e-12)


def test_every_row_integrates_polynomials_exactly_at_any_rate(rows):
    """For degrees below the number of the row's stages. Constants matter most: they keep fixed points in place."""
    (_, step), (_, further) = rows
    nodes = [*C[1:NUM_STAGES], 1.0]
    tables = [(step, nodes, STEP_SETS), (further, C[NUM_STAGES + 1 :], [weights.FURTHER_SET] * 3)]
    for table, xs, sets in tables:
        for row, (x, stages) in enumerate(zip(xs, sets, strict=True)):
            for degree in range(len(stages)):
                found = table[:, row] @ C[: table.shape[2]] ** degree
                exact = [math.factorial(degree) * x ** (degree + 1) * exact_phi(degree + 1, z * x) for z in Z]
                np.testing.assert_allclose(found, exact, rtol=1e-10)


def exact_weights(x: float, coefficients, stages, z: float) -> list[float]:
    """The weights by their formula, in a hundred digits."""
    with decimal.localcontext() as context:
        context.prec = 100
        c, a, z_, x_ = ([decimal.Decimal(float(v)) for v in values] for values in (C, coefficients, [z], [x]))
        z_, x_ = z_[0], x_[0]
        chi = (-((z_ / 3) ** 8)).exp() if z < 10 else decimal.Decimal(0)

        def polynomial(k):
            """Coefficients of `l_k`."""
            if k not in stages:
                return []
            powers = [decimal.Decimal(1)]
            for j in (j for j in stages if j != k):
                shifted = [decimal.Decimal(0), *powers]
                powers = [(s - c[j] * p) / (c[k] - c[j]) for s, p in zip(shifted, [*powers, 0], strict=True)]
            return powers

        def integral(powers):
            """`int_0^x exp(-z (x - t)) p(t) dt`, by parts, or by series if z is small."""
            if z < 1e-2:
                terms = range(40)
                return sum(
                    p * math.factorial(m) * x_ ** (m + 1) * ((-z_ * x_) ** n if n else 1) / math.factorial(m + n + 1)
                    for m, p in enumerate(powers)
                    for n in terms
                )
            total, decay = decimal.Decimal(0), (-z_ * x_).exp()
            moment = (1 - decay) / z_
            for m, p in enumerate(powers):
                total += p * moment
                moment = (x_ ** (m + 1) - (m + 1) * moment) / z_
            return total

        found = []
        for k in range(len(a)):
            powers = polynomial(k)
            lawson = decimal.Decimal(0)
            for j in range(len(a)) if chi else ():
                value = decimal.Decimal(0)
                for p in reversed(powers):
                    value = value * c[j] + p
                lawson += a[j] * (-z_ * (x_ - c[j])).exp() * ((j == k) - value)
            found.append(float(integral(powers) + chi * lawson))
        return found


def test_weights_have_the_digits_of_double_precision(rows):
    """Row 5, a mixture of two, and differences of rows are checked separately."""
    (_, step), (_, further) = rows
    cases = [(step, row, C[row + 1], A[row + 1, :NUM_STAGES]) for row in range(weights.END) if row + 1 != 5]
    sets = {row: weights.STAGE_SETS[row] for row in range(weights.END)} | {weights.END: weights.END_SET}
    cases.append((step, weights.END, 1.0, B))
    for table, row, x, coefficients in cases:
        for z, found in zip(Z, table[:, row], strict=True):
            exact = np.array(exact_weights(x, coefficients, sets[row], float(z)))
            # The tables hold numbers of the size of a_j / (c_i - c_k), known to sixteen digits.
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 * np.abs(exact).max())
    for z, found in zip(Z, further[:, 2], strict=True):
        exact = np.array(exact_weights(C[15], A[15], weights.FURTHER_SET, float(z)))
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


def test_weights_in_single_precision_are_those_of_double_precision(rows):
    """Relative to the largest weight of a row, or of the step end for differences from it. The recursion of the phi
    functions may lose three digits near z = 1, and their sum one more."""
    (_, step), _ = rows
    single = compiled(jax.vmap(lambda z: weights.step_weights(z)[1]))(jnp.asarray(Z, jnp.float32))
    assert single.dtype == jnp.float32
    scale = np.abs(step).max(axis=2, keepdims=True)[:, : weights.END + 3]
    scale[:, weights.END :] = scale[:, [weights.END]]
    assert np.max(np.abs(single - step)[:, : weights.END + 3] / scale) < 1e4 * np.finfo(np.float32).eps

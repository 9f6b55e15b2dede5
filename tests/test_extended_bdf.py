"""Rodas5P with conjugate gradients: its order, fixed points and stiff limit, and systems that cannot be solved."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowcollapse.extended_bdf import ExtendedBDF, conjugate_gradients

# The gradient flow of a quartic with a symmetric, coupled quadratic part, as two leaves.
M = np.array([[2.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 3.0]])
EPS = np.finfo(np.float64).eps
START = (jnp.array([1.0, -0.7]), jnp.array([0.4]))


def field(t, y, args):
    z = jnp.concatenate(y)
    force = -jnp.asarray(M) @ z - z**3
    return force[:2], force[2:]


def solve(steps: int, ts, rate=field, y0=START, solver=None, control=None) -> Any:
    """The flow to t = 1, in equal steps unless they are controlled."""
    return dfx.diffeqsolve(
        dfx.ODETerm(rate),
        solver or ExtendedBDF(1e-14),
        0.0,
        1.0,
        1.0 / steps,
        y0,
        saveat=dfx.SaveAt(ts=jnp.asarray(ts)),
        stepsize_controller=control or dfx.ConstantStepSize(),
    ).ys


@pytest.fixture(scope="module")
def exact():
    ts = np.linspace(0.05, 1.0, 20)
    ys = solve(1000, ts, solver=dfx.Dopri8(), control=dfx.PIDController(rtol=1e-13, atol=1e-14))
    return ts, np.concatenate(ys, axis=1)


def test_order_five_at_the_steps_and_four_between(exact):
    """Errors fall with the powers of the step that the method promises."""
    ts, truth = exact
    counts = np.array([16, 32, 64])
    runs = [np.abs(np.concatenate(solve(int(n), ts), axis=1) - truth) for n in counts]
    ends, between = np.log([run[-1].max() for run in runs]), np.log([run.max() for run in runs])
    assert -np.polyfit(np.log(counts), ends, 1)[0] > 4.5
    assert -np.polyfit(np.log(counts), between, 1)[0] > 3.8


def test_a_fixed_point_stays():
    zero = (jnp.zeros(2), jnp.zeros(1))
    assert all(np.all(leaf == 0) for leaf in solve(3, [0.5, 1.0], y0=zero))


def test_the_stiff_part_is_damped_whatever_the_step():
    """L-stability: one step damps rates r of 1e2 to 1e8 by about `12.5 / r`, and the slow rate beside them is right."""
    rates = jnp.array([1e-1, 1e2, 1e5, 1e8])
    # Conjugate gradients need an iteration for each rate.
    y = solve(1, [1.0], lambda t, y, args: -rates * y, jnp.ones(4), ExtendedBDF(1e-12))[0]
    np.testing.assert_allclose(y[0], np.exp(-0.1), rtol=1e-8)
    assert np.all(np.abs(y[1:]) < 15 / rates[1:])


def test_conjugate_gradients_solve_or_say_that_they_cannot():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    rhs = jnp.asarray(rng.standard_normal(30))
    clusters = np.repeat([1.0, 1e3, 1e7], 10)
    A = jnp.asarray(Q * clusters @ Q.T)
    count = 0

    def matrix(v):
        nonlocal count
        count += 1
        return A @ v

    x = conjugate_gradients(matrix, rhs, jnp.asarray(1e-10))
    # Beside the tolerance, the residual has the rounding of a matrix of norm 1e7.
    assert float(jnp.linalg.norm(A @ x - rhs)) < (1e-10 + 10 * EPS * 1e7) * float(jnp.linalg.norm(rhs))
    indefinite = jnp.asarray(Q * np.where(np.arange(30) < 15, 1.0, -1.0) @ Q.T)
    assert np.all(np.isnan(conjugate_gradients(lambda v: indefinite @ v, rhs, jnp.asarray(1e-10))))


def test_derivatives_are_those_of_the_flow():
    """Reverse and forward mode through the linear solves agree with central differences."""

    def end(size):
        y0 = jax.tree.map(lambda x: size * x, START)
        a, b = solve(16, [1.0], y0=y0)
        return jnp.sum(a**2) + jnp.sum(b**2)

    h = 1e-5
    difference = (end(1.0 + h) - end(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(end)(1.0), difference, rtol=1e-8)

"""The extended formula with conjugate gradients: order, stability, curved valleys, and systems without a solution."""

from typing import Any, cast

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flowcollapse.methods.solvers.extended_bdf import ExtendedBDF, conjugate_gradients, formulas

# The gradient flow of a quartic with a symmetric, coupled quadratic part, as two leaves.
M = np.array([[2.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 3.0]])
EPS = np.finfo(np.float64).eps
START = (jnp.array([1.0, -0.7]), jnp.array([0.4]))
NODES = jnp.array([0.0, -0.7, -1.9, -2.3, -3.6, -5.0])


def field(t, y, args):
    z = jnp.concatenate(y)
    force = -jnp.asarray(M) @ z - z**3
    return force[:2], force[2:]


def growing(steps: int) -> np.ndarray:
    """Times from 0 to 1: steps start at 1e-8, grow by a fifth each, and are equal in the end."""
    lengths = np.minimum(1e-8 * 1.2 ** np.arange(120.0), 1.0 / steps)
    times = np.concatenate([[0.0], np.cumsum(np.concatenate([lengths, np.full(steps, 1.0 / steps)]))])
    return np.append(times[times < 1.0], 1.0)


def solve(steps: int, ts, rate=field, y0=START, solver=None, control=None) -> Any:
    """The flow to t = 1, in steps that grow up to `1 / steps` or follow a step control."""
    control = control or dfx.StepTo(jnp.asarray(growing(steps)))
    return dfx.diffeqsolve(
        dfx.ODETerm(rate),
        solver or ExtendedBDF(1e-14),
        0.0,
        1.0,
        None if isinstance(control, dfx.StepTo) else 1.0 / steps,
        y0,
        saveat=dfx.SaveAt(ts=jnp.asarray(ts)),
        stepsize_controller=control,
    ).ys


@pytest.fixture(scope="module")
def exact():
    ts = np.linspace(0.05, 1.0, 20)
    ys = solve(1000, ts, solver=dfx.Dopri8(), control=dfx.PIDController(rtol=1e-13, atol=1e-14))
    return ts, np.concatenate(ys, axis=1)


def test_a_step_from_exact_points_errs_by_its_seventh_power():
    """For `w' = -w^3` and `v' = -2 v` in rotated coordinates; the error estimate has order 5."""
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((2, 2)))[0]

    def at(t):
        return jnp.stack([(1 + 2 * t) ** -0.5, jnp.exp(-2 * t)], axis=-1) @ Q.T

    def rate(t, z, args):
        w, v = Q.T @ z
        return Q @ jnp.stack([-(w**3), -2 * v])

    solver, lengths, errors, estimates = ExtendedBDF(1e-14), np.array([0.16, 0.08, 0.04]), [], []
    for h in lengths:
        ago = h * NODES
        state = (ago, at(1.0 + ago))
        time = jnp.asarray(1.0)
        y1, estimate, *_ = solver.step(dfx.ODETerm(rate), time, 1.0 + h, at(1.0), None, state, False)
        errors.append(jnp.linalg.norm(y1 - at(1.0 + h)))
        estimates.append(jnp.linalg.norm(estimate))
    assert 6.5 < np.polyfit(np.log(lengths), np.log(errors), 1)[0] < 7.5
    assert 5.5 < np.polyfit(np.log(lengths), np.log(estimates), 1)[0] < 6.5
    assert all(error < estimate for error, estimate in zip(errors, estimates, strict=True))


def test_the_error_of_a_run_falls_with_the_order(exact):
    """At the steps and between them; growing steps hide some of the order."""
    ts, truth = exact
    counts = np.array([32, 64, 128])
    runs = [np.abs(np.concatenate(solve(int(n), ts), axis=1) - truth) for n in counts]
    ends, between = np.log([run[-1].max() for run in runs]), np.log([run.max() for run in runs])
    assert -np.polyfit(np.log(counts), ends, 1)[0] > 4.7
    assert -np.polyfit(np.log(counts), between, 1)[0] > 4.2


def test_formulas_are_exact_for_polynomials():
    """Up to degree 5, and with the slope at 2 up to degree 6, the polynomial solves each stage, at unequal steps."""
    weights, slopes = (np.asarray(x) for x in formulas(NODES))
    places, at = np.concatenate([[1.0], NODES, [2.0, 1.0]]), (1.0, 2.0, 1.0)
    for stage, (x, degree) in enumerate(zip(at, (5, 5, 6), strict=True)):
        for m in range(degree + 1):
            slope = m * x ** max(m - 1, 0)
            # The slope at 2 comes from the stage at 2, which is exact up to degree 5.
            values = places**m
            if m == 6:
                known = weights[1, 1] @ values
                values = np.where(np.arange(9) == 7, known + slopes[1] * m * 2.0 ** (m - 1), values)
            guess, known = weights[stage] @ values
            scale = np.abs(weights[stage]).max() * np.abs(values).max()
            np.testing.assert_allclose(known + slopes[stage] * slope, x**m, atol=1e3 * EPS * scale)
            if m <= 5:
                np.testing.assert_allclose(guess, x**m, atol=1e3 * EPS * scale)


@pytest.mark.parametrize("growth", [1.0, 1.1])
def test_it_is_stable_for_every_decay(growth):
    """For `y' = -r y` the matrix of a step contracts for every r: by `e^{-rh}` for small r h, to 0 for large r h."""
    nodes = -np.concatenate([[0.0], np.cumsum(growth ** -np.arange(1.0, 6.0))])
    weights, slopes = (np.asarray(x) for x in formulas(jnp.asarray(nodes)))
    for z in -np.logspace(-2, 10, 60):
        points = np.concatenate([np.zeros((1, 6)), np.eye(6), np.zeros((2, 6))])
        for stage, place in enumerate((0, 7, 8)):
            points[place] = weights[stage, 1] @ points / (1 - slopes[stage] * z)
        radius = np.abs(np.linalg.eigvals(np.concatenate([points[8:], np.eye(6)[:-1]]))).max()
        assert radius < max(np.exp(z) * 1.001, 0.85)
        assert z > -1e8 or radius < 0.05


def test_a_curved_valley_costs_no_accuracy():
    """`(x, y)` slides along `x y = 1` under unequal decays; walls a million times as steep need no more steps."""
    steps = {}
    ratio = solve_ivp(lambda t, q: 2 * (q - 0.01 * q**3) / (1 + q**2), (0, 5), [1.0], rtol=1e-10, atol=1e-12)
    quotient = float(ratio.y[0, -1])
    for steep in (1e2, 1e8):

        def rate(t, z, args, steep=steep):
            x, y = z
            wall = steep * (x * y - 1)
            return jnp.stack([-wall * y - x, -wall * x - 0.01 * y])

        control = dfx.PIDController(rtol=1e-8, atol=1e-8)
        run = dfx.diffeqsolve(
            dfx.ODETerm(rate), ExtendedBDF(1e-12), 0.0, 5.0, 1e-4 / steep, jnp.ones(2), stepsize_controller=control
        )
        steps[steep] = int(run.stats["num_steps"])
        x, y = cast(Any, run.ys)[-1]
        # On the valley floor `x y = 1`, `q = y / x` obeys `q' = 2 (q - 0.01 q^3) / (1 + q^2)` (derived here).
        assert steep == 1e2 or abs(x * y - 1) < 1e-7
        assert steep == 1e2 or abs(float(y / x) - quotient) < 1e-5 * quotient
    assert steps[1e8] < steps[1e2] + 60


def test_a_fixed_point_stays():
    zero = (jnp.zeros(2), jnp.zeros(1))
    assert all(np.all(leaf == 0) for leaf in solve(3, [0.5, 1.0], y0=zero))


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
    # The residual is bounded by the tolerance plus the rounding of a matrix of norm 1e7.
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

"""One step of the exponential solver: exact for the stiff part, and of its order otherwise."""

import math

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hundred_digits import exact_phi
from systems import compiled

from flowcollapse.methods.solvers.dop853 import E5, NUM_STAGES
from flowcollapse.methods.solvers.exponential import TRUSTED, ExponentialDOP853, Relaxation

EPS = float(np.finfo(np.float64).eps)


# ---- exact on the stiff linear part


RATES = np.array([0.0, 1e-6, 0.1, 1.0, 30.0, 1e3, 1e6, 1e12])
FORCING = np.array([0.7, -1.1, 0.4, 0.9, -0.3, 0.2])


RELAXATION = Relaxation(lambda rate, dtype: rate)
"""The arguments of these problems are the rate."""


def polynomial_problem():
    """`slow' = 0` and `e' = -rate e + sum_m c_m t^m`: linear, with a forcing of degree 5."""

    def forcing(t, y, rate):
        return jnp.zeros_like(y[0]), jnp.polyval(jnp.asarray(FORCING[::-1]), t)

    return dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION)


def exact_response(rate: float, e0: float, t: float) -> float:
    """`e^{-at} e0 + sum_m c_m m! t^{m+1} phi_{m+1}(-at)`."""
    driven = (c * math.factorial(m) * t ** (m + 1) * exact_phi(m + 1, rate * t) for m, c in enumerate(FORCING))
    return math.exp(-rate * t) * e0 + sum(driven)


@pytest.fixture(scope="module")
def stiff_step():
    """One step of size 0.7 of the linear problem at every rate: its end, and its output at several points inside."""

    xs, h, zero = (0.01, 0.3, 0.83, 1.0), jnp.asarray(0.7), jnp.zeros(())

    @compiled
    @jax.vmap
    def step(rate):
        solver, terms = ExponentialDOP853(), polynomial_problem()
        y0 = (jnp.ones(1), jnp.full(1, 2.0))
        state = solver.init(terms, zero, h, y0, rate)
        end, _, dense, _, _ = solver.step(terms, zero, h, y0, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense)
        return end[1][0], jnp.stack([output.evaluate(x * h)[1][0] for x in xs])

    end, inside = step(jnp.asarray(RATES))
    return np.asarray(end), np.asarray(inside), xs


def test_one_step_is_exact_for_a_linear_mode_of_any_rate(stiff_step):
    end, _, _ = stiff_step
    for found, rate in zip(end, RATES, strict=True):
        np.testing.assert_allclose(found, exact_response(rate, 2.0, 0.7), rtol=1e-11)


def test_output_inside_a_step_is_exact_for_a_linear_mode_of_any_rate(stiff_step):
    _, inside, xs = stiff_step
    for x, row in zip(xs, inside.T, strict=True):
        for found, rate in zip(row, RATES, strict=True):
            np.testing.assert_allclose(found, exact_response(rate, 2.0, 0.7 * x), rtol=1e-11)


# ---- order


def driven_rotation(coupling):
    """A problem with the solution `slow = (cos t, sin t)`, `e = exp(-t/2) cos 3t`, and its two terms.

    With `coupling = 1` the two parts drive each other; with 0 the slow part does not depend on the fast one.
    """

    def slow(t):
        return jnp.stack([jnp.cos(t), jnp.sin(t)])

    def fast(t):
        return jnp.exp(-t / 2) * jnp.cos(3 * t)[None]

    def forcing(t, y, rate):
        (x, z), e = y
        off = e - fast(t)
        slow_velocity = jnp.stack([-z, x]) * (x**2 + z**2) ** 2 + coupling * off * jnp.stack([jnp.ones_like(x), x])
        driven = off * x + (x - jnp.cos(t)) - (z - jnp.sin(t)) * e
        return slow_velocity, jax.jvp(fast, (t,), (jnp.ones_like(t),))[1] + rate * fast(t) + coupling * driven

    return dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION), slow, fast


@compiled
def rotation_errors(coupling, num_steps):
    """The largest errors with a rate of 1, of the slow and the fast part after each step up to `t = 2`, and of the
    output of both at four points inside each step."""
    terms, slow, fast = driven_rotation(coupling)
    solver, rate, h = ExponentialDOP853(), jnp.ones(()), 2.0 / num_steps
    zero = jnp.zeros(())
    y0 = (slow(zero), fast(zero))

    def errors(found, t):
        return jnp.stack([jnp.max(jnp.abs(x - exact(t))) for x, exact in zip(found, (slow, fast), strict=True)])

    def advance(i, carry):
        y, state, worst = carry
        t = i * h
        y, _, dense, state, _ = solver.step(terms, t, t + h, y, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=t, t1=t + h, **dense)
        inside = jnp.stack([errors(output.evaluate(t + x * h), t + x * h) for x in (0.1, 0.4, 0.7, 0.9)])
        return y, state, jnp.maximum(worst, jnp.concatenate([errors(y, t + h), jnp.max(inside, axis=0)]))

    init = (y0, solver.init(terms, zero, zero + h, y0, rate), jnp.zeros(4))
    return jax.lax.fori_loop(0, num_steps, advance, init)[2]


def slope(steps, errors) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_the_slow_part_alone_converges_with_order_eight_and_its_output_with_seven():
    steps = np.array([4, 6, 8, 12, 16])
    slow, fast, slow_output, fast_output = np.array([rotation_errors(0.0, n) for n in steps]).T
    assert slope(steps, slow) > 7.7
    assert slope(steps, fast) > 7.7
    assert slope(steps, slow_output) > 6.7
    assert slope(steps, fast_output) > 6.7


def test_parts_that_drive_each_other_converge_with_order_six_and_a_half_at_least_and_so_does_the_output():
    steps = np.array([12, 16, 24, 32, 48])
    for errors in np.array([rotation_errors(1.0, n) for n in steps]).T:
        assert slope(steps, errors) > 6.5
        assert np.all(errors < 2 * errors[-1] * (steps[-1] / steps) ** 7)


@pytest.mark.parametrize("rate", [1.0, 1e5])
def test_the_estimate_of_the_error_falls_with_the_power_of_its_part(rate):
    """Eighth for the slow part and sixth for the fast part, at any rate. The modes are forced and linear. A fast mode
    depends only on the end of the step, where the forcing is known, and the fraction `1/(a h)^2` of the error remains.
    Steps with output also bound the last term of the output, which falls with the seventh power.
    """

    def forcing(t, y, a):
        forced = jnp.cos(3 * t + jnp.arange(2.0))
        return forced, forced

    terms = dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION)
    start, y0 = jnp.asarray(0.3), (jnp.zeros(2), jnp.ones(2))

    @compiled
    @jax.vmap
    def estimates(h):
        return estimate(h, output=False), estimate(h, output=True)

    def estimate(h, output):
        solver, a = ExponentialDOP853(output), jnp.asarray(rate)
        state = solver.init(terms, start, start + h, y0, a)
        error = solver.step(terms, start, start + h, y0, a, state, made_jump=False)[1]
        return jnp.max(jnp.abs(error[0])), jnp.max(jnp.abs(error[1])) * jnp.maximum(a * h, 1.0) ** 2

    steps = np.geomspace(0.1, 0.4, 7)
    of_end, with_output = estimates(jnp.asarray(steps))
    slow, fast = (np.asarray(x) for x in of_end)
    assert slope(1 / steps, slow) > 7.5
    assert 5.5 < slope(1 / steps, fast) < 6.5
    assert np.all(with_output[0] >= slow)
    assert slope(1 / steps, with_output[0]) > 6.9


def test_the_estimate_of_a_long_step_bounds_the_error_of_its_output():
    """The true error inside of the first step of the rotation, in units of the tolerance that the estimate allows."""
    terms, slow, fast = driven_rotation(1.0)
    solver, rate, zero = ExponentialDOP853(), jnp.ones(()), jnp.zeros(())
    y0, xs = (slow(zero), fast(zero)), jnp.linspace(0.1, 0.9, 9)

    @compiled
    @jax.vmap
    def step(h):
        state = solver.init(terms, zero, h, y0, rate)
        _, error, dense, _, _ = solver.step(terms, zero, h, y0, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense)
        inside = jax.vmap(lambda x: output.evaluate(x * h))(xs)
        exact = slow(xs * h).T, fast(xs * h).T
        return [jnp.linalg.norm(x) for x in error], [
            jnp.max(jnp.linalg.norm(found - x, axis=1)) for found, x in zip(inside, exact, strict=True)
        ]

    for estimate, inside in zip(*step(jnp.asarray([0.3, 0.5, 0.8, 1.2])), strict=True):
        assert np.all(np.asarray(inside) < TRUSTED * np.asarray(estimate))
        assert np.all(np.asarray(inside) > 0.01 * np.asarray(estimate))


# ---- special cases


@pytest.mark.parametrize("in_lanes", [False, True])
def test_the_output_meets_both_ends_of_its_step(in_lanes):
    """It does so exactly, except that at the end the fast part has an error, below h^6."""

    def forcing(t, y, rate):
        return jnp.cos(3 * y[1]) + t, jnp.cos(3 * y[0]) + t

    terms = dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION)
    solver, zero, h = ExponentialDOP853(), jnp.zeros(()), jnp.asarray(0.1)

    def step(start, rate):
        y0 = (start, 2 * start)
        state = solver.init(terms, zero, h, y0, rate)
        y1, _, dense, _, _ = solver.step(terms, zero, h, y0, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense)
        return (y0, output.evaluate(zero)), (y1, output.evaluate(h))

    start, rates = jnp.asarray([0.4, -0.3]), jnp.asarray([0.0, 1.0, 2.0])
    first, last = compiled(jax.vmap(step, (None, 0)) if in_lanes else step)(start, rates if in_lanes else rates[1])
    np.testing.assert_allclose(first[1], first[0], rtol=1e3 * EPS)
    np.testing.assert_allclose(last[1][0], last[0][0], rtol=1e3 * EPS)
    np.testing.assert_allclose(last[1][1], last[0][1], rtol=0, atol=1e-6)


def test_a_part_without_a_rate_is_stepped_like_the_slow_part():
    """Two equal unknowns drive each other; one of them is the fast part with a rate of zero."""

    def forcing(t, y, rate):
        return jnp.cos(3 * y[1]) + t, jnp.cos(3 * y[0]) + t

    terms = dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION)
    solver, zero, h, start = ExponentialDOP853(), jnp.zeros(()), jnp.asarray(0.7), jnp.asarray([0.4])

    @compiled
    def step(rate):
        state = solver.init(terms, zero, h, (start, start), rate)
        end, error, dense, _, _ = solver.step(terms, zero, h, (start, start), rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense)
        return end, error, dense["k"], [output.evaluate(x * h) for x in (0.1, 0.5, 0.9)]

    end, error, slopes, inside = step(zero)
    for slow, fast in (end, *inside):
        np.testing.assert_allclose(fast, slow, rtol=1e-11)
    fifth = 0.7 * E5 @ np.asarray(slopes)[:NUM_STAGES]
    np.testing.assert_allclose(error[1], fifth, rtol=1e-6, atol=1e-12)  # the difference to the embedded row of order 5
    assert abs(error[1]) >= abs(error[0])


def test_a_fixed_point_is_kept_and_errs_by_nothing():
    """At a stable fixed point, `slow' = 0` and `g = a fast`, a step changes only the last digits."""

    def forcing(t, y, rate):
        return jnp.sin(y[0]), rate * jnp.exp(y[0][0]) * jnp.sqrt(y[1])

    terms = dfx.MultiTerm(dfx.ODETerm(forcing), RELAXATION)
    solver, zero, h, start = ExponentialDOP853(), jnp.zeros(()), jnp.asarray(0.5), (jnp.zeros(2), jnp.ones(3))

    @compiled
    @jax.vmap
    def step(rate):
        state = solver.init(terms, zero, h, start, rate)
        end, error, dense, _, _ = solver.step(terms, zero, h, start, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense).evaluate(0.3 * h)
        return end, error, output

    end, error, output = step(jnp.asarray([0.0, 1e-3, 0.5, 2.0, 10.0, 1e3, 1e6]))
    for slow, fast in (end, output):
        np.testing.assert_array_equal(slow, 0)
        np.testing.assert_allclose(fast, 1, atol=1e-11)
    np.testing.assert_allclose(error[1], 0, atol=1e-11)

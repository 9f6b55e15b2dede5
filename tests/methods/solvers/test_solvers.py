"""The solvers: written-out stages against diffrax's loops, orders of convergence, and every name through the flow."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import systems

import flowcollapse as fc
from flowcollapse.methods.solvers import registry as solvers
from flowcollapse.methods.solvers.exponential import Relaxation
from flowcollapse.methods.stiff_part import from_mean_residual, mean_residual_field, to_mean_residual
from flowcollapse.model.problem import Point, problem_of

EPS = float(jnp.finfo(jnp.float64).eps)

PAIRS = {
    "tsit5": (solvers.Tsit5(), dfx.Tsit5()),
    "dopri5": (solvers.Dopri5(), dfx.Dopri5()),
    "dopri8": (solvers.Dopri8(), dfx.Dopri8()),
}


def pendulum(t, y, args):
    """A driven pendulum: nonlinear, not autonomous, with a state of two leaves."""
    return {"angle": y["speed"], "speed": -jnp.sin(y["angle"]) + 0.3 * jnp.cos(2 * t)}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    """The pendulum by our solver and by diffrax's: constant steps with dense output, and a single step."""
    times = jnp.linspace(0.0, 5.0, 57)
    y0 = {"angle": jnp.array([1.0, 2.5]), "speed": jnp.array([0.0, -0.4])}
    terms = dfx.ODETerm(pendulum)

    def solve(solver):
        solution = dfx.diffeqsolve(
            terms, solver, 0.0, 5.0, 0.1, y0, saveat=dfx.SaveAt(t1=True, dense=True), max_steps=64
        )
        memory = solver.init(terms, 0.0, 0.3, y0, None)
        _, error, *_ = solver.step(terms, 0.0, 0.3, y0, None, memory, made_jump=False)
        values, slopes = jax.vmap(solution.evaluate)(times), jax.vmap(solution.derivative)(times)
        return {"end": solution.ys, "between the steps": values, "slopes": slopes, "error estimate": error}

    ours, theirs = PAIRS[request.param]
    return systems.compiled(lambda: (solve(ours), solve(theirs)))()


@pytest.mark.parametrize("quantity", ["end", "between the steps", "slopes", "error estimate"])
def test_written_out_stages_are_those_of_diffrax(pair, quantity):
    """The numbers agree up to the order of summation in fifty steps; a slope divides by a step of 0.1."""
    ours, theirs = (result[quantity] for result in pair)
    for name in ("angle", "speed"):
        assert np.max(np.abs(theirs[name])) > 0
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e4 * EPS)


def test_written_out_stages_see_a_jump():
    """After a jump of the field, the last stage of the previous step must not be reused."""
    solver, y = solvers.Tsit5(), jnp.array([1.0])
    before, after = dfx.ODETerm(lambda t, y, args: y), dfx.ODETerm(lambda t, y, args: -y)
    memory = solver.init(before, 0.0, 0.1, y, None)
    y, _, _, memory, _ = solver.step(before, 0.0, 0.1, y, None, memory, made_jump=False)
    y, *_ = solver.step(after, 0.1, 0.2, y, None, memory, made_jump=True)
    # e^0.1 e^-0.1; the error of a step of length 0.1 is near 0.1^6/6!.
    np.testing.assert_allclose(y, 1, rtol=1e-8)


ORDERS = {"exponential": 8, "tsit5": 5, "dopri5": 5, "dopri8": 8, "kvaerno5": 5, "kencarp5": 5}


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_order_of_convergence(name, key):
    """With constant steps on S, where the exact solution is known, the slope of log error over log step is the order.

    On S the mean residual has no forcing, so for the exponential solver the test measures the slow part.
    """
    order = ORDERS[name]
    model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
    start = fc.initial.on_subspace(model, eps=1.0, key=key)
    T, steps = 2.0, np.array([16, 20, 24, 28] if order == 8 else [24, 32, 40, 48])
    exact = systems.flow_on_subspace(np.asarray(start.W), 0.0, 2, [T])

    solver = solvers.solver_of(name)
    if isinstance(solver, dfx.AbstractImplicitSolver):
        # Without step control, the root finder has no tolerance to inherit, and diffrax's stops after two iterations.
        solver = eqx.tree_at(lambda s: s.root_finder, solver, optx.Newton(rtol=1e-11, atol=1e-11))
    problem, point = problem_of(model, start)

    def forcing(t, y, args):
        (W, X), e = y
        W_velocity, X_velocity, g = mean_residual_field(problem, W, X, e)
        return (W_velocity, X_velocity), g

    if solvers.splits_stiff_part(solver):
        terms = dfx.MultiTerm(
            dfx.ODETerm(forcing), Relaxation(lambda args, dtype: jnp.asarray(model.num_samples, dtype))
        )
        y0 = ((point.W, point.X), to_mean_residual(problem, point))
    else:
        terms = dfx.ODETerm(lambda t, y, args: tuple(problem.field(Point(*y))))
        y0 = tuple(point)

    def end(dt):
        solution = dfx.diffeqsolve(terms, solver, 0.0, T, dt, y0, max_steps=int(steps.max()) + 1)
        y = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
        if solvers.splits_stiff_part(solver):
            (W, X), e = y
            y = from_mean_residual(problem, W, X, e)
        W, X, b = y
        return X, W, b

    lanes = systems.compiled(jax.vmap(end))(T / steps)
    errors = [systems.relative_error(end, [part[0] for part in exact]) for end in zip(*lanes, strict=True)]
    measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    # At these steps the next term still adds some tenths to the slope.
    assert order - 0.2 < measured < order + 0.5


@pytest.mark.parametrize("name", ["dopri8", "kvaerno5", "kencarp5"])
def test_every_name_solves_the_flow_to_its_tolerance(name, key):
    """Against the closed form on S at times between the steps. Other tests cover the default solver."""
    rtol = 1e-6
    model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
    start = fc.initial.on_subspace(model, eps=0.1, key=key)
    ts = np.linspace(0, 6, 25)
    path = fc.simulate(model, start, fc.Flow(name, rtol=rtol), ts, save_states=True, metrics=())
    exact = systems.flow_on_subspace(np.asarray(start.W), 0.0, 2, ts)
    assert systems.relative_error(systems.arrays(path.states), exact) < 100 * rtol


def test_kencarp5_keeps_single_precision(key):
    """Also where float64 is enabled, as it is in these tests."""
    model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
    start = jax.tree.map(lambda x: x.astype(jnp.float32), fc.initial.on_subspace(model, eps=0.3, key=key))
    ts = np.linspace(0, 2, 4)
    path = fc.simulate(model, start, fc.Flow("kencarp5", rtol=1e-4), ts, save_states=True, metrics=())
    assert path.states is not None
    assert path.states.W.dtype == path.states.H.dtype == jnp.float32
    exact = systems.flow_on_subspace(np.asarray(start.W, float), 0.0, 2, ts)
    assert systems.relative_error(systems.arrays(path.states), exact) < 100 * 1e-4


def test_a_diffrax_solver_can_be_passed_itself(key):
    """A solver without a name in this package, of third order."""
    model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
    start = fc.initial.on_subspace(model, eps=0.1, key=key)
    path = fc.simulate(model, start, fc.Flow(dfx.Bosh3(), rtol=1e-4), metrics=())
    exact = systems.flow_on_subspace(np.asarray(start.W), 0.0, 2, [float(path.t_end)])
    assert systems.relative_error(systems.arrays(path.final), [x[0] for x in exact]) < 100 * 1e-4

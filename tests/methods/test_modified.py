"""The flows that follow descent more closely: their orders, their closed forms on S, their derivatives.

On S with a bias beta 1 the gradient flow is `beta' = -a (beta - 1/C)`, `a = C N`, and `sigma' = sigma (s - sigma^2)`
for each singular value of W.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from diffrax import Tsit5
from scipy.integrate import solve_ivp

import flowcollapse as fc
from flowcollapse.model.problem import Point, Problem, problem_of
from flowcollapse.sweeps.grid import make_grid

MODEL = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
RTOL, T = 1e-10, 1.0
STEPS = np.array([100, 150, 225, 338, 507, 760])
"""The steps in which gradient descent reaches T."""


def distances(kinds, nesterov: bool, eta, beta):
    """The distance of descent from several kinds of flows at about T."""
    start = systems.random_state(MODEL, size=0.3)
    run = functools.partial(fc.simulate, MODEL, start, save_states=True, metrics=())
    # Momentum starts at rest and needs a few more steps to reach T.
    descent = fc.Descent("sgd", int(STEPS[-1]) + 50, learning_rate=eta, momentum=beta, nesterov=nesterov, t1=T)
    path = run(descent, jnp.array([T]))
    flows = [
        fc.Flow("tsit5", rtol=RTOL)
        if kind is fc.Flow
        else kind(eta, beta, nesterov=nesterov, solver="tsit5", rtol=RTOL)
        for kind in kinds
    ]
    ends = [jax.tree.map(jnp.subtract, path.states, run(flow, path.ts).states) for flow in flows]
    return jnp.sqrt(jnp.stack([sum(jnp.sum(part**2) for part in jax.tree.leaves(end)) for end in ends]))


@pytest.mark.parametrize(
    ("kinds", "orders", "nesterov"),
    [((fc.Flow, fc.ModifiedFlow, fc.HeavyBallFlow), (1, 2, 2), False), ((fc.ModifiedFlow,), (2,), True)],
    ids=["Polyak", "Nesterov"],
)
def test_orders_in_the_step_size(kinds, orders, nesterov):
    """The distance to descent at a fixed time is O(eta) for the gradient flow and O(eta^2) for the two other flows.

    The slopes are fitted over six step sizes. The next term of the expansion changes them by about eta.
    """
    lanes = systems.compiled(jax.vmap(functools.partial(distances, kinds, nesterov)))
    for beta in (0.0, 0.6):
        eta = (1 - beta) * T / STEPS
        found = np.asarray(lanes(jnp.asarray(eta), jnp.full(len(eta), beta)))
        np.testing.assert_allclose(np.polyfit(np.log(eta), np.log(found), 1)[0], orders, atol=0.06)


def on_subspace():
    return fc.initial.on_subspace(MODEL, eps=0.4, key=jax.random.key(1))


def singular_values(W) -> np.ndarray:
    return np.linalg.svd(np.asarray(W), compute_uv=False)[..., :2]


def test_modified_flow_on_the_subspace():
    """`beta' = -(a + m a^2) (beta - 1/C)` in closed form, `sigma' = f - m f' f` with `f = sigma (s - sigma^2)`."""
    eta, a, s, start = 0.05, 6.0, 2**0.5, on_subspace()
    ts, m = np.linspace(0, 3, 7), eta / 2
    flow = fc.ModifiedFlow(eta, rtol=RTOL)
    path = systems.compiled(lambda: fc.simulate(MODEL, start, flow, ts, save_states=True, metrics=("distance",)))()
    beta = (1 - np.exp(-(a + m * a**2) * ts)) / 3
    np.testing.assert_allclose(path.states.b, np.repeat(beta[:, None], 3, axis=1), atol=100 * RTOL)

    def field(t, sigma):
        f = sigma * (s - sigma**2)
        return f - m * (s - 3 * sigma**2) * f

    expected = solve_ivp(field, (0, ts[-1]), singular_values(start.W), "DOP853", ts, rtol=1e-13, atol=1e-15).y.T
    np.testing.assert_allclose(singular_values(path.states.W), expected, rtol=100 * RTOL)
    assert float(jnp.max(path.metrics["distance"])) < 100 * RTOL


def test_heavy_ball_flow_on_the_subspace():
    """The bias is a damped oscillator, `m beta'' + beta' + a (beta - 1/C) = 0` from `beta = 0`, `beta' = a/C`, tried
    overdamped and underdamped."""
    a, momentum, ts = 6.0, 0.5, np.linspace(0, 3, 7)
    rates = np.array([0.005, 0.2])

    @systems.compiled
    @jax.vmap
    def biases(eta):
        flow = fc.HeavyBallFlow(eta, momentum, solver="tsit5", rtol=RTOL)
        states = fc.simulate(MODEL, on_subspace(), flow, ts, save_states=True, metrics=()).states
        return states.b if states is not None else None

    for found, eta in zip(biases(rates), rates, strict=True):
        m = eta * (1 + momentum) / (2 * (1 - momentum) ** 2)
        roots = (-1 + np.array([1, -1]) * np.emath.sqrt(1 - 4 * m * a)) / (2 * m)
        assert np.iscomplexobj(roots) == (eta == 0.2)
        weights = np.linalg.solve([[1, 1], roots], [-1 / 3, a / 3])
        beta = 1 / 3 + np.real(np.exp(np.outer(ts, roots)) @ weights)
        np.testing.assert_allclose(found, np.repeat(beta[:, None], 3, axis=1), atol=100 * RTOL)


@pytest.mark.parametrize("coordinates", ["sample", "class-mean"])
def test_modified_flow_is_a_gradient_flow(coordinates):
    """Its velocity is `-grad (R + m/2 ||grad R||^2)`, found by differentiating the risk twice, in both column kinds."""
    model = fc.UFM(num_classes=3, samples_per_class=(1, 2, 3), num_features=4, weight_decay=(0.1, 0.2, 0.3))
    state = systems.random_state(model)
    problem, point = problem_of(model, state if coordinates == "sample" else fc.to_class_means(model, state))
    flow = fc.ModifiedFlow(0.1, momentum=0.5)
    m = 0.1 * 1.5 / (2 * 0.25)

    def energy(z: Point):
        return problem.risk(z) + m / 2 * sum(jnp.sum(g**2) for g in jax.grad(problem.risk)(z))

    found, expected = jax.jit(lambda z: (flow.velocity(problem, z), jax.grad(energy)(z)))(point)
    assert isinstance(problem, Problem)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, -y, rtol=1e-12, atol=1e-12)


def test_gradient_by_the_learning_rate_under_vmap():
    """Against central differences, whose error is h^2 plus the solver's noise divided by h."""
    start = systems.random_state(MODEL, size=0.3)

    def end_risk(eta):
        flow = fc.HeavyBallFlow(eta, solver=Tsit5(), rtol=RTOL, t1=T)
        return fc.risk(MODEL, fc.simulate(MODEL, start, flow, metrics=()).final)

    rates, h = jnp.array([0.02, 0.1]), 1e-4
    lanes = systems.compiled(jax.vmap(jax.value_and_grad(end_risk)))
    gradients = lanes(rates)[1]
    differences = (lanes(rates + h)[0] - lanes(rates - h)[0]) / (2 * h)
    assert np.all(np.abs(gradients) > 1e-3)
    np.testing.assert_allclose(gradients, differences, rtol=1e-4)


def test_sweeps_take_them():
    grid = make_grid(MODEL, fc.ModifiedFlow(0.1), [0.1], 2, {"learning_rate": [0.1, 0.2], "momentum": [0.0, 0.5]})
    assert grid.shape == (2, 2, 1, 2)
    with pytest.raises(fc.UsageError, match="learning_rate"):
        make_grid(MODEL, fc.HeavyBallFlow(0.1), [0.1], 2, {"learning_rate": [0.1, -0.2]})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: fc.ModifiedFlow(0.0), "learning_rate must be positive"),
        (lambda: fc.HeavyBallFlow(-0.1, 0.9), "learning_rate must be positive"),
        (lambda: fc.HeavyBallFlow(0.1, 1.0), "momentum must be at least 0 and below 1"),
        (lambda: fc.ModifiedFlow(0.1, solver="exponential"), 'use "dopri8"'),
        (lambda: fc.HeavyBallFlow(0.1, solver="kencarp5"), 'use "dopri8"'),
        (lambda: fc.ModifiedFlow(0.1, rtol=0.0), "rtol must be positive"),
    ],
)
def test_bad_input_is_told(make, told):
    with pytest.raises(fc.UsageError, match=told):
        make()

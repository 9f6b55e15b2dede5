"""The risk, its gradient and the vector field, against sample-by-sample sums and automatic differentiation."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from systems import GEOMETRIES

import flowcollapse as fc

EPS = float(jnp.finfo(jnp.float64).eps)

MODELS = {
    **{f"C={C},N={N},p={p}": fc.UFM(num_classes=C, samples_per_class=N, num_features=p) for C, N, p in GEOMETRIES},
    "imbalanced": fc.UFM(num_classes=3, samples_per_class=(5, 1, 3), num_features=4),
    "decay": fc.UFM(num_classes=3, samples_per_class=(2, 4, 1), num_features=4, weight_decay=(0.3, 0.2, 0.1)),
    "no bias": fc.UFM(num_classes=3, samples_per_class=2, num_features=4, use_bias=False, weight_decay=0.1),
}


@jax.jit
def evaluate(model: fc.UFM, state: fc.State):
    """The risk, the hand-written field and the gradient by automatic differentiation."""
    return fc.risk(model, state), fc.velocity(model, state), jax.grad(fc.risk, argnums=1)(model, state)


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model = MODELS[request.param]
    state = systems.random_state(model)
    return model, [float(x) for x in model.decays], state, *evaluate(model, state)


def test_risk_is_the_sum_over_samples(case):
    model, decay, state, risk, _, _ = case
    np.testing.assert_allclose(risk, systems.risk(systems.arrays(state), model.counts, decay), rtol=100 * EPS)


def test_field_by_hand_is_minus_the_gradient_by_autodiff(case):
    model, _, _, _, velocity, gradient = case
    H, W, b = systems.arrays(gradient)
    expected = (-H, -W, -b if model.use_bias else 0 * b)
    assert systems.relative_error(systems.arrays(velocity), expected) < 100 * EPS


def test_field_is_the_formula_of_the_paper(case):
    model, decay, state, _, velocity, _ = case
    expected = systems.velocity(systems.arrays(state), model.counts, decay, model.use_bias)
    assert systems.relative_error(systems.arrays(velocity), expected) < 100 * EPS


def test_risk_takes_leading_axes(paper_model):
    states = [systems.random_state(paper_model, seed) for seed in range(6)]
    grid = jax.tree.map(lambda *xs: jnp.stack(xs).reshape(2, 3, *xs[0].shape), *states)
    points = [systems.arrays(state) for state in states]
    expected = [systems.risk(point, paper_model.counts) for point in points]
    np.testing.assert_allclose(fc.risk(paper_model, grid), np.reshape(expected, (2, 3)), rtol=100 * EPS)


def test_field_at_zero_is_that_of_the_bias_alone(paper_model):
    """At H = W = b = 0 the residual is -Y, so only `b' = Y 1 = N 1` is nonzero."""
    zero = fc.State(H=jnp.zeros((15, 9)), W=jnp.zeros((3, 15)), b=jnp.zeros(3))
    velocity = fc.velocity(paper_model, zero)
    assert not velocity.H.any()
    assert not velocity.W.any()
    np.testing.assert_array_equal(velocity.b, 3 * np.ones(3))


@pytest.mark.parametrize(("C", "N", "p"), [g for g in GEOMETRIES if g[2] >= g[0] - 1])
def test_spectrum_of_the_hessian_at_collapse(C, N, p, key):
    """At a point of strong collapse, with r = C - 1 (derived here): `CN + s` r times, `CN` once, `2s` r^2 times,
    `s` `r + rC(N - 1)` times, and zero."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    y, unflatten = jax.flatten_util.ravel_pytree(fc.initial.collapsed(model, key=key))
    hessian = jax.jit(jax.hessian(lambda y: fc.risk(model, unflatten(y))))(y)
    s, r = N**0.5, C - 1
    positive = [C * N + s] * r + [C * N] + [2 * s] * r**2 + [s] * (r + r * C * (N - 1))
    expected = np.sort(positive + [0.0] * (y.size - len(positive)))
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), expected, atol=1e3 * EPS * (C * N + s))


def test_sizes_and_decays_are_what_was_given():
    model = MODELS["decay"]
    assert model.counts == (2, 4, 1)
    assert model.num_samples == 7
    assert not model.balanced
    assert [float(x) for x in model.decays] == [0.3, 0.2, 0.1]
    assert [float(x) for x in MODELS["no bias"].decays] == [0.1, 0.1, 0.1]
    assert fc.UFM(num_classes=3, samples_per_class=(2, 2, 2), num_features=1).samples_per_class == 2


def test_a_state_is_a_pytree_of_its_three_arrays(paper_model):
    state = systems.random_state(paper_model)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(3,), (3, 15), (15, 9)]
    doubled = jax.tree.map(lambda x: 2 * x, state)
    assert isinstance(doubled, fc.State)
    np.testing.assert_array_equal(doubled.H, 2 * state.H)

"""The metrics: their definitions sample by sample, zero at collapse, NaN where a ratio says nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from formulas import of_point

import flowcollapse as fc
from flowcollapse.metrics import METRICS

EPS = float(jnp.finfo(jnp.float64).eps)

MODELS = {
    "paper": fc.UFM(num_classes=3, samples_per_class=3, num_features=15),
    "p = C - 1": fc.UFM(num_classes=4, samples_per_class=2, num_features=3),
    "p < C - 1": fc.UFM(num_classes=5, samples_per_class=2, num_features=3),
    "two classes": fc.UFM(num_classes=2, samples_per_class=3, num_features=4),
    "imbalanced": fc.UFM(num_classes=3, samples_per_class=(5, 1, 3), num_features=4),
}
NEEDS_FEATURES = {"snc2", "nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "nc3", "nc4", "cdnv"}


@jax.jit
def evaluate(model, state, start):
    return fc.metrics.evaluate(model, state, start=start)


@pytest.mark.parametrize("name", MODELS)
def test_every_metric_is_its_definition(name):
    model = MODELS[name]
    state, start = systems.random_state(model), systems.random_state(model, seed=1)
    found = evaluate(model, state, start)
    expected = of_point(systems.arrays(state), model.counts, systems.arrays(start))
    assert set(found) == set(expected)
    for metric, value in expected.items():
        # The pseudo-inverse by covariances, in the definition, loses the square of the condition of M.
        np.testing.assert_allclose(found[metric], value, rtol=1e-11, atol=1e-13, err_msg=metric)


@pytest.mark.parametrize(("C", "N", "p"), [(3, 3, 15), (4, 7, 3), (3, 1, 5), (2, 3, 4)])
def test_strong_collapse_implies_collapse(C, N, p, key):
    """Lemma 1 of the paper: at a point with SNC1-SNC3, NC1-NC4 hold and the risk is 0. So is all else listed."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    state = fc.initial.collapsed(model, key=key)
    values = evaluate(model, state, systems.random_state(model))
    assert set(values) == {name for name, metric in METRICS.items() if not metric.costly}
    for metric, value in values.items():
        if metric != "balancedness":  # measured against another start here, which was not balanced
            assert float(value) < 1e3 * EPS, metric
    assert max(map(float, fc.metrics.snc(model, state))) < 1e3 * EPS


def test_ratios_at_zero_features_are_nan_and_the_rest_is_not():
    model = MODELS["paper"]
    state = systems.random_state(model)
    values = evaluate(model, fc.State(H=0 * state.H, W=state.W, b=state.b), state)
    assert {name for name, value in values.items() if np.isnan(value)} == NEEDS_FEATURES


def test_relative_distance_at_zero_is_nan():
    model = MODELS["paper"]
    zero = jax.tree.map(jnp.zeros_like, systems.random_state(model))
    values = evaluate(model, zero, zero)
    assert np.isnan(values["relative_distance"])
    assert np.isnan(values["balancedness"])  # relative to the norm of H at the start
    assert float(values["distance"]) == 0


def test_distance_on_the_subspace_is_zero_and_grows_with_the_step_off_it(key):
    """A step d orthogonal to S lies at the distance ||d||, wherever on S it starts."""
    model = MODELS["paper"]
    on = fc.initial.on_subspace(model, eps=1.0, key=key)
    z = np.concatenate([part.ravel() for part in systems.arrays(systems.random_state(model))])
    basis = systems.subspace_basis(3, 3, 15)
    d = z - basis.T @ (basis @ z)
    cuts = np.cumsum([part.size for part in systems.arrays(on)])[:-1]
    H, W, b = (np.reshape(part, p.shape) for part, p in zip(np.split(d, cuts), systems.arrays(on), strict=True))
    for size in (1.0, 1e-6):
        off = fc.State(H=on.H + size * H, W=on.W + size * W, b=on.b + size * b)
        found = fc.metrics.evaluate(model, off, ["distance"])["distance"]
        np.testing.assert_allclose(found, size * np.linalg.norm(d), rtol=100 * EPS / size)


@pytest.mark.parametrize("size", [1e-2, 1e-6, 1e-12])
def test_nc1_keeps_its_digits_however_small(size):
    """Deviations `h - mu_c = size M a`, in the span of the means, give `tr(S_W S_B^+)/C = size^2 ||P a||^2/n_tot`.

    Derived here: `M^+ M = P` when the means are in general position; products of covariances would lose all digits.
    """
    C, N, p = 4, 3, 7
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    rng = np.random.default_rng(2011)
    M = rng.standard_normal((p, C)) @ systems.centring(C)
    a = rng.standard_normal((C, C, N))
    a = (a - a.mean(axis=2, keepdims=True)).reshape(C, C * N)
    state = fc.State(H=jnp.asarray(np.repeat(M, N, axis=1) + size * M @ a), W=jnp.asarray(M.T), b=jnp.zeros(C))
    expected = size**2 * np.sum((systems.centring(C) @ a) ** 2) / (C * N)
    # H holds the deviations to EPS only, which is EPS / size of their own size.
    found = fc.metrics.evaluate(model, state, ["nc1"])["nc1"]
    np.testing.assert_allclose(found, expected, rtol=1e3 * EPS / size)


def test_metrics_take_leading_axes():
    model = MODELS["imbalanced"]
    states = [systems.random_state(model, seed) for seed in range(4)]
    grid = jax.tree.map(lambda *xs: jnp.stack(xs).reshape(2, 2, *xs[0].shape), *states)
    found = fc.metrics.evaluate(model, grid, ["nc4", "nc1_trace"])
    points = [systems.arrays(state) for state in states]
    expected = [of_point(point, model.counts, point) for point in points]
    for name, values in found.items():
        np.testing.assert_allclose(values, np.reshape([e[name] for e in expected], (2, 2)), rtol=1e-12, err_msg=name)

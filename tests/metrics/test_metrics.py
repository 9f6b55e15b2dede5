"""The metrics: their definitions sample by sample, zero at collapse, NaN for ratios with vanishing denominators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from formulas import of_point

import flowcollapse as fc
from flowcollapse.metrics.evaluation import observe_many
from flowcollapse.metrics.neural_collapse import square_distances
from flowcollapse.metrics.registry import METRICS, checked_names
from flowcollapse.model.columns import SAMPLES
from flowcollapse.model.problem import Point, problem_of
from flowcollapse.sweeps.grid import make_grid
from flowcollapse.sweeps.lane import common_metrics

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
        # The definition uses the pseudo-inverse of a covariance, which loses the squared condition number of M.
        np.testing.assert_allclose(found[metric], value, rtol=1e-11, atol=1e-13, err_msg=metric)


@pytest.mark.parametrize(("C", "N", "p"), [(3, 3, 15), (4, 7, 3), (3, 1, 5), (2, 3, 4)])
def test_strong_collapse_implies_collapse(C, N, p, key):
    """Lemma 1 of the paper: at a point with SNC1-SNC3, NC1-NC4 hold and the risk is 0. All other metrics are 0 too."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    state = fc.initial.collapsed(model, key=key)
    values = evaluate(model, state, systems.random_state(model))
    assert set(values) == {name for name, metric in METRICS.items() if metric.usual and not metric.shift_invariant}
    for metric, value in values.items():
        if metric != "balancedness":  # it is relative to another start here, which was not balanced
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
    """After a step d orthogonal to S, the distance to S is ||d||, wherever on S the step starts."""
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
    # H holds the deviations only to EPS, a relative error of EPS / size.
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


# ---- many classes


@pytest.mark.parametrize(("C", "p"), [(4, 3), (60, 40)])
def test_distances_of_class_means_keep_their_digits_however_close_they_are(C, p):
    """For means `m + 2^-40 k` with small integers k, all differences and the sums of their squares are exact.

    A Gram matrix would have the error `EPS ||m||^2`, which is 2^28 times the wanted value.
    """
    rng = np.random.default_rng(3)
    steps = rng.integers(-64, 65, size=(p, C))
    M = rng.integers(1, 5, size=(p, 1)) + 2.0**-40 * steps
    exact = np.sum((steps[:, :, None] - steps[:, None]) ** 2, axis=0)
    assert np.array_equal(np.asarray(jax.jit(square_distances)(jnp.asarray(M))) * 2.0**80, exact)


def test_many_classes_have_the_variance_that_pairs_one_by_one_give():
    C, N, p = 45, 2, 10
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    state = systems.random_state(model)
    wanted = of_point(systems.arrays(state), model.counts, systems.arrays(state))
    found = fc.metrics.evaluate(model, state, ["cdnv", "nc1", "nc4"])
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-9, atol=1e-14, err_msg=name)


def points_of(model, count):
    states = [systems.random_state(model, seed) for seed in range(count)]
    return problem_of(model, states[0])[0], Point(*(jnp.stack([getattr(s, x) for s in states]) for x in "WXb"))


def test_points_in_blocks_have_the_metrics_of_each_point(monkeypatch):
    model, names = MODELS["imbalanced"], ("nc1_trace", "nc4", "cdnv", "risk", "balancedness")
    problem, points = points_of(model, 7)
    arrays = [systems.arrays(systems.random_state(model, seed)) for seed in range(7)]
    wanted = [of_point(one, model.counts, arrays[0]) for one in arrays]
    monkeypatch.setattr("flowcollapse._linalg.algebra.AT_ONCE", 3 * 4 * 9)  # three points of p times n_tot numbers each
    found = observe_many(problem, points, names, Point(*(x[0] for x in points)))
    for name in names:
        expected = [one[name] for one in wanted]
        np.testing.assert_allclose(found[name], expected, rtol=1e4 * EPS, atol=1e2 * EPS, err_msg=name)


def test_metrics_at_many_times_do_not_hold_the_pairs_of_classes_at_each():
    C, times = 400, 101
    model = fc.UFM(num_classes=C, samples_per_class=1, num_features=4)
    problem, points = points_of(model, 1)
    points = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), points))
    names = ("snc1", "nc2_etf_h", "nc2_angle_w", "cdnv", "risk", "grad_norm")
    program = jax.jit(lambda points: observe_many(problem, points, names, None)).lower(points).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < times * 8 * C**2 / 2


# ---- names

NAMES = ("snc1", "nc1", "risk")
FORMS = {
    "list": list(NAMES),
    "generator": (name for name in NAMES),
    "iterator": iter(NAMES),
    "keys": dict.fromkeys(NAMES).keys(),
    "array": np.array(NAMES),
    "text": "snc1,nc1, risk",
    "text in capitals": "SNC1,NC1,Risk",
    "texts with commas": ["Snc1", "nc1,risk"],
    "doubled": [*NAMES, "SNC1"],
}


@pytest.mark.parametrize("form", FORMS)
def test_names_come_from_anything_that_yields_them(form):
    assert checked_names(MODELS["paper"], SAMPLES, FORMS[form]) == NAMES


def test_a_set_of_names_has_one_order():
    orders = [checked_names(MODELS["paper"], SAMPLES, set(names)) for names in (NAMES, NAMES[::-1])]
    assert orders[0] == orders[1]
    assert set(orders[0]) == set(NAMES)


def test_lanes_of_several_shapes_read_a_generator_once():
    grid = make_grid(MODELS["paper"], fc.Flow(), [0.1], 1, {"samples_per_class": [2, 3]})
    assert common_metrics(grid, (name for name in NAMES)) == NAMES


def test_a_run_keeps_the_metrics_of_a_generator():
    model = MODELS["two classes"]
    start = systems.random_state(model)
    path = fc.simulate(model, start, fc.Descent("sgd", 2, learning_rate=1e-3), 2, metrics=(name for name in NAMES))
    assert set(path.metrics) == set(NAMES)


VERBS = {
    "evaluate": lambda model, start, names: fc.metrics.evaluate(model, start, names),
    "simulate": lambda model, start, names: fc.simulate(model, start, fc.Flow(), 2, metrics=names),
    "predict": lambda model, start, names: fc.predict(model, start, metrics=names),
    "sweep": lambda model, start, names: fc.sweep(model, fc.Flow(), eps=[0.1], seeds=1, metrics=names),
    "compare": lambda model, start, names: fc.compare(model, start, ["sgd:learning_rate=0.1"], [1.0], metrics=names),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("names", [5, "snc1,snc9", ["snc1", None]])
def test_every_verb_refuses_what_are_no_names(verb, names):
    model = MODELS["paper"]
    start = fc.initial.sphere(model, 1e-2, key=jax.random.key(0))
    for given in (names, (name for name in names) if isinstance(names, list) else names):
        with pytest.raises(fc.UsageError, match="metric"):
            VERBS[verb](model, start, given)


@pytest.mark.parametrize("names", [5, True, 0.5, b"snc1", [b"snc1"], ["snc1", None], [("snc1",)], "", "snc1,", ["snc"]])
def test_names_that_are_none_are_refused(names):
    with pytest.raises(fc.UsageError, match="metric"):
        checked_names(MODELS["paper"], SAMPLES, names)


def test_the_metrics_of_single_samples_are_kept_by_default_up_to_a_size():
    for samples, kept in ((2**20 // 12, True), (2**20 // 12 + 1, False)):
        model = fc.UFM(num_classes=3, samples_per_class=samples, num_features=4)
        assert ({"nc4", "cdnv"} <= set(checked_names(model, SAMPLES, None))) is kept

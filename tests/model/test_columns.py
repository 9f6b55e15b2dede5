"""The class-mean columns stand for the samples exactly: maps, risk, field, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import assert_close, compiled, means_and_deviations, model_of

import flowcollapse as fc
from flowcollapse.metrics import evaluation
from flowcollapse.metrics.registry import METRICS, checked_names
from flowcollapse.model.columns import (
    ClassMeanColumns,
    class_mean_columns,
    from_within_basis,
    times_within_basis,
    within_class_basis,
)
from flowcollapse.model.problem import problem_of
from flowcollapse.model.ufm import check_counts

EPS = float(np.finfo(np.float64).eps)

# (counts, p): few samples (a fixed basis), many samples (a factorised basis), one sample per class, unequal counts.
SHAPES = [((3, 3, 3), 15), ((6, 6, 6), 4), ((1, 1, 1, 1), 5), ((5, 1, 3), 7), ((9, 1, 4), 3), ((4, 7), 1)]
shapes = pytest.mark.parametrize(("counts", "p"), SHAPES)


def random_state(counts, p, seed=0):
    C, n = len(counts), sum(counts)
    rng = np.random.default_rng(seed)
    H, W, b = rng.normal(size=(p, n)), rng.normal(size=(C, p)), rng.normal(size=C)
    return fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.asarray(b))


# ---- the map and its inverse


@shapes
def test_lifting_the_class_mean_columns_gives_the_samples_back(counts, p):
    state = random_state(counts, p)
    X, columns = class_mean_columns(state.H, tuple(counts))
    assert X.shape == (p, len(counts) + min(p, sum(counts) - len(counts)))
    assert_close(columns.lift(X), state.H, 32 * EPS)


@shapes
def test_class_mean_columns_hold_the_scaled_means_and_the_scatter_within_the_classes(counts, p):
    state = fc.to_class_means(model_of(counts, p), random_state(counts, p))
    means, deviations = means_and_deviations(np.asarray(random_state(counts, p).H), counts)
    assert_close(state.B, means * np.sqrt(counts), 32 * EPS)
    assert_close(state.L @ state.L.T, deviations @ deviations.T, 32 * EPS)
    assert_close(jnp.linalg.norm(state.X), np.linalg.norm(random_state(counts, p).H), 32 * EPS)


@shapes
def test_the_residual_is_the_same_up_to_a_rotation_of_its_columns(counts, p):
    # The risk and its gradient depend only on `G G^T`, `G X^T` and `G u`.
    state = random_state(counts, p)
    H, W, b = np.asarray(state.H), np.asarray(state.W), np.asarray(state.b)
    G = W @ H + b[:, None] - np.repeat(np.eye(len(counts)), counts, axis=1)
    X, columns = class_mean_columns(state.H, tuple(counts))
    n = X.shape[1]
    u = columns.ones(n, X.dtype)
    R = W @ X + b[:, None] * u - columns.targets(n, X.dtype)
    assert_close(u @ u, sum(counts), 8 * EPS)
    assert_close(R @ R.T, G @ G.T, 64 * EPS)
    assert_close(R @ X.T, G @ H.T, 64 * EPS)
    assert_close(R @ u, G.sum(axis=1), 64 * EPS)
    assert_close(columns.times_ones(X), H.sum(axis=1), 64 * EPS)
    assert_close(X @ u, H.sum(axis=1), 64 * EPS)


@pytest.mark.parametrize("counts", [(2, 2), (1, 4, 2), (1, 1, 1)])
def test_the_fixed_basis_is_orthonormal_and_sums_to_zero_over_each_class(counts):
    Q = np.asarray(within_class_basis(counts, jnp.float64))
    assert Q.shape == (sum(counts), sum(counts) - len(counts))
    assert_close(Q.T @ Q, np.eye(Q.shape[1]), 8 * EPS)
    membership = np.repeat(np.eye(len(counts)), counts, axis=1)
    assert_close(membership @ Q, np.zeros((len(counts), Q.shape[1])), 8 * EPS)


@pytest.mark.parametrize("counts", [(70, 70), (1, 150, 3), (129,), (90, 1, 1, 40)])
def test_running_sums_stand_for_the_fixed_basis_of_many_samples(counts):
    Q = np.asarray(within_class_basis(counts, jnp.float64))
    rng = np.random.default_rng(2)
    D, L = rng.normal(size=(2, 3, sum(counts))), rng.normal(size=(3, Q.shape[1]))
    assert_close(times_within_basis(jnp.asarray(D), counts), D @ Q, 64 * EPS)
    assert_close(from_within_basis(jnp.asarray(L), counts), L @ Q.T, 64 * EPS)


def test_running_sums_of_one_class_take_no_digits_from_the_next():
    counts = (100, 100)
    small = np.random.default_rng(3).normal(size=(2, 100))
    both = np.concatenate([1e12 + 0 * small, small], axis=1)
    alone = np.asarray(within_class_basis((100,), jnp.float64))
    assert_close(times_within_basis(jnp.asarray(both), counts)[:, 99:], small @ alone, 64 * EPS)


def test_the_fixed_basis_of_many_samples_is_not_stored():
    n = 900
    program = jax.jit(lambda L: from_within_basis(L, (n, n))).lower(jnp.ones((2, 2 * n - 2))).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes + memory.generated_code_size_in_bytes < 8 * n**2


@shapes
@pytest.mark.parametrize("use_bias", [True, False])
def test_risk_and_velocity_do_not_depend_on_the_columns(counts, p, use_bias):
    model = model_of(counts, p, use_bias=use_bias, weight_decay=(0.3, 0.2, 0.1))
    state = random_state(counts, p)
    if not use_bias:
        state = fc.State(H=state.H, W=state.W, b=jnp.zeros_like(state.b))
    reduced = fc.to_class_means(model, state)
    evaluate = compiled(lambda one: (fc.risk(model, one), fc.velocity(model, one)))
    (full_risk, full), (risk, short) = evaluate(state), evaluate(reduced)
    assert_close(risk, full_risk, 32 * EPS)
    assert short.X.shape == reduced.X.shape
    for name in ("H", "W", "b"):
        assert_close(getattr(short, name), getattr(full, name), 64 * EPS)


def test_one_decay_counts_for_the_classifier_the_features_and_the_bias():
    counts, p, decay = (5, 1, 3), 4, 0.3
    state = random_state(counts, p)
    squares = sum(np.sum(np.asarray(part) ** 2) for part in (state.H, state.W, state.b))
    plain = float(fc.risk(model_of(counts, p), state))
    for weight_decay in (decay, (decay, decay, decay), jnp.full(3, decay)):
        model = model_of(counts, p, weight_decay=weight_decay)
        for one in (state, fc.to_class_means(model, state)):
            assert_close(fc.risk(model, one), plain + 0.5 * decay * squares, 32 * EPS)


# ---- metrics


@pytest.mark.parametrize(
    ("counts", "p", "use_bias"),
    [
        ((4, 4, 4), 9, True),
        ((3, 3, 3, 3), 2, True),
        ((1, 1, 1), 4, True),
        ((5, 1, 3), 6, True),
        ((4, 4, 4), 2, False),
    ],
)
def test_every_metric_of_the_class_mean_columns_is_that_of_the_samples(counts, p, use_bias):
    model, state, start = model_of(counts, p, use_bias=use_bias), random_state(counts, p), random_state(counts, p, 1)
    reduced, reduced_start = (fc.to_class_means(model, one) for one in (state, start))
    known = {name: metric for name, metric in METRICS.items() if model.balanced or not metric.equal_counts}
    names = [name for name, metric in known.items() if metric.of_model and not metric.costly]
    default = checked_names(model, reduced.columns, None)
    assert set(default) == {name for name in names if METRICS[name].usual and not METRICS[name].shift_invariant}
    evaluate = compiled(lambda one, start: fc.metrics.evaluate(model, one, names, start=start))
    full, short = evaluate(state, start), evaluate(reduced, reduced_start)
    for name in names:
        np.testing.assert_allclose(short[name], full[name], rtol=1e4 * EPS, atol=1e2 * EPS, err_msg=name)
    single = {name for name in names if full[name] == 0}
    assert single <= ({"nc1", "nc1_trace", "nc4", "cdnv"} if max(counts) == 1 else {"nc4"})


@pytest.mark.parametrize("tilt", [1e-3, 1e-6, 1e-9])
def test_nc1_keeps_its_digits_when_the_scatter_inside_the_span_of_the_means_is_tiny(tilt):
    # With M = [D; 0] J^T for a centred orthonormal J and L = [tilt * K; Z], the pseudo-inverse sees K alone:
    # nc1 = tilt^2 ||D^-1 K||^2 / n_tot, although ||Z|| = O(1). A product of covariances loses this below tilt = 1e-8.
    counts, p = (4, 4, 4), 7
    rng = np.random.default_rng(5)
    D, K, Z = rng.normal(size=(2, 2)), rng.normal(size=(2, 9)), rng.normal(size=(5, 9))
    J = np.asarray(within_class_basis((3,), jnp.float64))
    M = np.concatenate([D @ J.T, np.zeros((5, 3))])
    L = np.concatenate([tilt * K, Z])
    Q = np.asarray(within_class_basis(counts, jnp.float64))
    H = np.repeat(M, counts, axis=1) + L @ Q.T
    state = fc.State(H=jnp.asarray(H), W=jnp.zeros((3, p)), b=jnp.zeros(3))
    wanted = tilt**2 * np.sum(np.linalg.solve(D, K) ** 2) / 12
    model = model_of(counts, p)
    for one in (state, fc.to_class_means(model, state)):
        # Z adds no error to K, because the features are not rotated. The digits of K set the tolerance.
        np.testing.assert_allclose(fc.metrics.evaluate(model, one, ["nc1"])["nc1"], wanted, rtol=1e3 * EPS / tilt)


# ---- bad input


def test_class_means_of_a_state_in_samples_are_refused_with_the_cure():
    with pytest.raises(fc.UsageError, match="to_class_means"):
        _ = random_state((3, 3), 2).B


def test_a_state_made_for_other_counts_is_refused():
    state = fc.to_class_means(model_of((4, 2), 3), random_state((4, 2), 3))
    with pytest.raises(fc.UsageError, match=r"\(4, 2\).*\(2, 4\)"):
        fc.risk(model_of((2, 4), 3), state)


@pytest.mark.parametrize("counts", [0, -1, 2.5, True, (3, 0, 3), (3, 3), (3, 3, 3, 3), (3, 3, 1.5), "333", None])
def test_counts_that_are_not_one_positive_integer_a_class_are_refused(counts):
    with pytest.raises(fc.UsageError, match="samples_per_class"):
        check_counts(counts, 3)


# ---- the arrays that lead back to the samples are shared, not copied


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_features_with_few_directions_come_back_though_their_factors_are_not_unique(rank):
    counts, p = (20, 30), 4
    rng = np.random.default_rng(5)
    H = rng.normal(size=(p, rank)) @ rng.normal(size=(rank, sum(counts))) + rng.normal(size=(p, 1))
    state = fc.State(H=jnp.asarray(H), W=jnp.ones((2, p)), b=jnp.zeros(2))
    assert_close(fc.to_class_means(model_of(counts, p), state).H, H, 64 * EPS)


def test_lanes_hold_the_features_that_they_came_from_and_no_array_as_large():
    counts, p, lanes = (200, 200), 3, 4
    model = model_of(counts, p)
    starts = jax.tree.map(lambda *x: jnp.stack(x), *(random_state(counts, p, seed) for seed in range(lanes)))
    run = jax.vmap(lambda start: fc.simulate(model, start, fc.Flow(rtol=1e-4, t1=1.0), 2, metrics=()))
    path = run(starts)
    columns = path.frame.columns
    assert isinstance(columns, ClassMeanColumns)
    assert columns.origin is not None
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(path)) - columns.origin.nbytes
    assert held < starts.X.nbytes / 10
    alone = fc.simulate(model, jax.tree.map(lambda x: x[1], starts), fc.Flow(rtol=1e-4, t1=1.0), 2, metrics=())
    assert_close(path.final.H[1], alone.final.H, 1e-6 * 1e-4)  # the same steps, at rtol = 1e-4
    first = fc.simulate(model, random_state(counts, p, 1), fc.Flow(rtol=1e-4), [0.0], save_states=True, metrics=())
    assert first.states is not None
    assert_close(first.states.H[0], random_state(counts, p, 1).H, 64 * EPS)


def test_metrics_of_many_times_factorise_once():
    counts, p = (20, 20), 3
    model, names = model_of(counts, p), ("nc4", "cdnv")
    problem, point = problem_of(model, fc.to_class_means(model, random_state(counts, p)))
    ready = evaluation.prepared(problem, names, point, None)[0]
    points = jax.tree.map(lambda x: jnp.stack([x, x]), point)

    def factorisations(function, *args) -> int:
        return jax.jit(function).lower(*args).as_text().count("custom_call @lapack_dgeqrf")

    assert factorisations(lambda point: evaluation.observe(problem, point, names, None), point) == 1
    assert factorisations(lambda point: evaluation.observe(ready, point, names, None), point) == 0
    assert factorisations(lambda points: evaluation.observe_many(problem, points, names, None), points) == 1

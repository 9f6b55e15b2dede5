"""The class-mean columns stand for the samples exactly: maps, risk, field, metrics, starts drawn already reduced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import flowcollapse as fc
from flowcollapse.columns import (
    ClassMeanColumns,
    SampleColumns,
    check_counts,
    class_mean_columns,
    from_within_basis,
    times_within_basis,
    within_class_basis,
)
from flowcollapse.metrics import METRICS, available, checked_names

EPS = float(np.finfo(np.float64).eps)

# These programs are short: most of their time is the compiler's, which this saves a third of.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# (counts, p): few samples (a fixed basis), many samples (a factorised one), one sample a class, unequal counts.
SHAPES = [((3, 3, 3), 15), ((6, 6, 6), 4), ((1, 1, 1, 1), 5), ((5, 1, 3), 7), ((9, 1, 4), 3), ((4, 7), 1)]
shapes = pytest.mark.parametrize(("counts", "p"), SHAPES)


def model_of(counts, p, **options):
    return fc.UFM(num_classes=len(counts), samples_per_class=tuple(counts), num_features=p, **options)


def random_state(counts, p, seed=0):
    C, n = len(counts), sum(counts)
    rng = np.random.default_rng(seed)
    H, W, b = rng.normal(size=(p, n)), rng.normal(size=(C, p)), rng.normal(size=C)
    return fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.asarray(b))


def means_and_deviations(H, counts):
    """The class means and `H` less its class means, in plain NumPy."""
    ends = np.cumsum(counts)
    means = np.stack([H[:, end - n : end].mean(axis=1) for n, end in zip(counts, ends, strict=True)], axis=1)
    return means, H - np.repeat(means, counts, axis=1)


def assert_close(actual, wanted, tolerance):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert np.linalg.norm(actual - wanted) <= tolerance * max(1.0, float(np.linalg.norm(wanted)))


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
    # `G G^T`, `G X^T` and `G u` are all that the risk and its gradient read.
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
    names = checked_names(model, reduced.columns, None)
    cheap = {name for name, metric in METRICS.items() if not metric.costly}
    assert set(names) == {name for name in cheap if model.balanced or not METRICS[name].equal_counts}
    evaluate = compiled(lambda one, start: fc.metrics.evaluate(model, one, names, start=start))
    full, short = evaluate(state, start), evaluate(reduced, reduced_start)
    for name in names:
        np.testing.assert_allclose(short[name], full[name], rtol=1e4 * EPS, atol=1e2 * EPS, err_msg=name)
    single = {name for name in names if full[name] == 0}
    assert single <= ({"nc1", "nc1_trace", "nc4", "cdnv"} if max(counts) == 1 else {"nc4"})


@pytest.mark.parametrize("tilt", [1e-3, 1e-6, 1e-9])
def test_nc1_keeps_its_digits_when_the_scatter_inside_the_span_of_the_means_is_tiny(tilt):
    # With M = [D; 0] J^T for a centred orthonormal J and L = [tilt * K; Z], the pseudo-inverse sees K alone:
    # nc1 = tilt^2 ||D^-1 K||^2 / n_tot, though ||Z|| = O(1). A product of covariances loses this below tilt = 1e-8.
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
        # Z itself carries no error into K: the features are not rotated. K's own digits set the tolerance.
        np.testing.assert_allclose(fc.metrics.evaluate(model, one, ["nc1"])["nc1"], wanted, rtol=1e3 * EPS / tilt)


# ---- starts drawn already reduced

DRAWS = 4000
DRAWN = [((4, 4, 4), 5), ((2, 1, 3), 6)]


@pytest.fixture(scope="module", params=DRAWN, ids=str)
def draws(request):
    """The model, and `(B, L L^T, one entry of H, three whole H)` of many full and many reduced draws with `eps = 1`."""
    model = model_of(*request.param)

    def invariants(reduced):
        def one(key):
            state = fc.initial.sphere(model, 1.0, key=key, reduced=reduced)
            B, L = (state.B, state.L) if reduced else SampleColumns(model.counts).split(state.X)
            return B, L @ L.T, state.H

        seed = 1 if reduced else 2
        B, LLt, H = compiled(jax.vmap(one))(jax.random.split(jax.random.key(seed), DRAWS))
        return B, LLt, H[:, 0, -1], H[:3]

    return model, *(tuple(np.asarray(x) for x in invariants(reduced)) for reduced in (False, True))


def p_value(outcome) -> float:
    return float(outcome.pvalue)


def test_reduced_draws_have_the_law_of_full_draws(draws):
    model, full, reduced = draws
    p, r = model.num_features, min(model.num_features, model.num_samples - model.num_classes)

    def invariants(B, LLt, entry, _):
        values = {"norm of B": np.linalg.norm(B, axis=(1, 2)), "norm of L": np.trace(LLt, axis1=1, axis2=2)}
        values |= {f"singular value {i} of B": x for i, x in enumerate(np.linalg.svd(B, compute_uv=False).T)}
        values |= {f"singular value {i} of L": x for i, x in enumerate(np.linalg.eigvalsh(LLt).T[p - r :])}
        values |= {"entry of B": B[:, 0, 1], "diagonal of LLt": LLt[:, 0, 0], "off the diagonal": LLt[:, 0, 1]}
        values |= {
            "last of LLt": LLt[:, -1, -1],
            "B and L": np.einsum("kic,kij,kjc->k", B, LLt, B),
            "entry of H": entry,
        }
        return values

    for (name, a), b in zip(invariants(*full).items(), invariants(*reduced).values(), strict=True):
        # Some twenty comparisons at fixed keys: below 1e-4 is no accident. Scaling by the mean norm gives 1e-19.
        assert p_value(scipy.stats.ks_2samp(a, b)) > 1e-4, name
        for power in (1, 2):
            spread = np.sqrt((np.var(a**power) + np.var(b**power)) / DRAWS)
            assert abs(np.mean(a**power) - np.mean(b**power)) < 4.5 * spread, name


def test_reduced_draws_follow_the_beta_laws_of_the_sphere(draws):
    # A uniform point of the unit sphere of R^d: k of its squared entries add up to Beta(k/2, (d - k)/2).
    model, full, reduced = draws
    p, C, n = model.num_features, model.num_classes, model.num_samples
    for B, LLt, entry, _ in (full, reduced):
        np.testing.assert_allclose(np.sum(B**2, axis=(1, 2)) + np.trace(LLt, axis1=1, axis2=2), 1.0, rtol=64 * EPS)
        share = scipy.stats.beta(p * C / 2, p * (n - C) / 2)
        assert p_value(scipy.stats.kstest(np.sum(B**2, axis=(1, 2)), share.cdf)) > 1e-4
        row = scipy.stats.beta((n - C) / 2, (n * (p - 1) + C) / 2)
        assert p_value(scipy.stats.kstest(LLt[:, 0, 0], row.cdf)) > 1e-4
        single = scipy.stats.beta(1 / 2, (n * p - 1) / 2)
        assert p_value(scipy.stats.kstest(entry**2, single.cdf)) > 1e-4


def test_features_lifted_from_a_reduced_draw_have_its_means_and_scatter(draws):
    model, _, (B, LLt, _, lifted) = draws
    for i, H in enumerate(lifted):
        assert_close(np.linalg.norm(H), 1.0, 64 * EPS)
        means, deviations = means_and_deviations(H, model.counts)
        assert_close(means * np.sqrt(model.counts), B[i], 64 * EPS)
        assert_close(deviations @ deviations.T, LLt[i], 64 * EPS)


def test_the_rotation_to_the_samples_is_part_of_the_draw():
    state = drawn_reduced(jax.random.key(3))
    assert np.array_equal(state.H, state.H)
    assert_close(jnp.linalg.norm(state.W), 0.1, 64 * EPS)
    assert np.all(np.asarray(state.b) == 0)


def drawn_reduced(key):
    return fc.initial.sphere(model_of((6, 6, 6), 4), eps=0.1, key=key, reduced=True)


def test_lanes_of_reduced_draws_lift_and_measure_as_single_ones():
    singles = [drawn_reduced(jax.random.key(i)) for i in range(3)]
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles)
    names = ("snc2", "nc1", "distance")
    evaluate = compiled(lambda state: (state.H, fc.metrics.evaluate(model_of((6, 6, 6), 4), state, names)))
    H, values = evaluate(lanes)
    for i, single in enumerate(singles):
        wanted_H, wanted = evaluate(single)
        assert_close(H[i], wanted_H, 32 * EPS)
        for name in names:
            np.testing.assert_allclose(values[name][i], wanted[name], rtol=1e3 * EPS)


def test_keys_of_the_old_kind_draw_the_same_start():
    old, new = drawn_reduced(jax.random.PRNGKey(4)), drawn_reduced(jax.random.key(4))
    assert np.array_equal(old.H, new.H)
    assert old.columns is not None
    assert old.columns.batch_ndim == 0


def test_reduced_draws_do_without_arrays_of_the_number_of_samples():
    model = fc.UFM(num_classes=3, samples_per_class=10**7, num_features=4)
    program = jax.make_jaxpr(lambda key: fc.initial.sphere(model, 1e-3, key=key, reduced=True))(jax.random.key(0))
    assert max(size_of_largest(program.jaxpr)) < 1000
    state = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
    assert state.coordinates == "class-mean"
    assert state.X.shape == (4, 3 + 4)


def size_of_largest(jaxpr):
    """Sizes of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from size_of_largest(getattr(inner, "jaxpr", inner))


# ---- what is refused, and said


def test_features_too_large_for_memory_are_refused_with_their_size_and_a_cure():
    model = fc.UFM(num_classes=3, samples_per_class=10**8, num_features=4)
    state = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
    size = 4 * 3 * 10**8 * 8 / 2**30
    with pytest.raises(fc.UsageError, match=rf"\(4, 300000000\), {size:.1f} GiB.*state\.B.*state\.L"):
        _ = state.H


@pytest.mark.parametrize("name", ["nc4", "cdnv"])
def test_metrics_that_need_single_samples_are_refused_for_reduced_draws(name):
    model, state = model_of((6, 6, 6), 4), drawn_reduced(jax.random.key(0))
    assert name not in available(model, state.columns)
    with pytest.raises(fc.UsageError, match=rf"{name}.*reduced=False"):
        fc.metrics.evaluate(model, state, [name])
    known = fc.State(H=state.H, W=state.W, b=state.b)
    assert np.isfinite(fc.metrics.evaluate(model, fc.to_class_means(model, known), [name])[name])


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


# ---- what leads back to the samples is held, not copied


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
    problem, point = fc.model.problem_of(model, fc.to_class_means(model, random_state(counts, p)))
    ready = fc.metrics.prepared(problem, names, point, None)[0]
    points = jax.tree.map(lambda x: jnp.stack([x, x]), point)

    def factorisations(function, *args) -> int:
        return jax.jit(function).lower(*args).as_text().count("custom_call @lapack_dgeqrf")

    assert factorisations(lambda point: fc.metrics.observe(problem, point, names, None), point) == 1
    assert factorisations(lambda point: fc.metrics.observe(ready, point, names, None), point) == 0
    assert factorisations(lambda points: fc.metrics.observe_many(problem, points, names, None), points) == 1

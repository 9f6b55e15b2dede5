"""Starts drawn in class-mean columns have the law of full draws, and take no array of the number of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from systems import assert_close, compiled, means_and_deviations, model_of, sizes

import flowcollapse as fc
from flowcollapse.metrics.registry import available
from flowcollapse.model.columns import SampleColumns

EPS = float(np.finfo(np.float64).eps)
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
    assert old.columns.reduced
    assert old.columns.batch_ndim == 0


def test_reduced_draws_do_without_arrays_of_the_number_of_samples():
    model = fc.UFM(num_classes=3, samples_per_class=10**7, num_features=4)
    program = jax.make_jaxpr(lambda key: fc.initial.sphere(model, 1e-3, key=key, reduced=True))(jax.random.key(0))
    assert max(sizes(program.jaxpr)) < 1000
    state = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
    assert state.coordinates == "class-mean"
    assert state.X.shape == (4, 3 + 4)


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

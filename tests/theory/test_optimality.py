"""The certificate of a global minimum: its bound never exceeds the least risk, and is sharp at a minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.theory import certify, landscape, minimiser

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(counts, p, decay, loss="cross-entropy", **options):
    return systems.model_of(counts, p, weight_decay=decay, loss=loss, **options)


MODELS = {
    "cross-entropy": ufm((4, 2, 3), 4, (0.3, 0.5, 0.2)),
    "free bias": ufm((4, 2, 3), 4, (0.3, 0.5, 0.0)),
    "no bias": ufm((3, 3, 3), 2, (0.3, 0.5, 0.0), use_bias=False),
    "smoothing, mean": ufm((4, 2, 3), 3, (0.03, 0.05, 0.01), "label-smoothing:0.1", reduction="mean"),
    "smoothing without decay": ufm((4, 2, 3), 3, 0.0, "label-smoothing:0.1"),
    "squared": ufm((4, 2, 3), 4, (0.3, 0.5, 0.2), "squared"),
    "squared, free bias": ufm((4, 2, 3), 4, (0.3, 0.5, 0.0), "squared"),
    "squared without decay": ufm((3, 3, 3), 4, 0.0, "squared"),
    "above the threshold": ufm((3, 3, 3), 2, (3.0, 2.0, 0.1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_below_the_minimum_and_sharp_there(name):
    """For random states of all sizes `risk - excess <= least risk`; near the minimum the excess falls with it."""
    model = MODELS[name]
    least = minimiser(model)
    at_minimum = certify(model, least.state)
    assert bool(at_minimum.is_global)
    assert float(at_minimum.excess) < 1e-11 * max(1.0, float(least.risk))
    assert float(at_minimum.residual_norm) <= float(at_minimum.bound) * (1 + 1e-10) + 1e-12
    state = fc.State(H=least.state.H, W=least.state.W, b=least.state.b)
    for size in (1e-4, 1e-2, 0.3, 3.0):
        for seed in range(3):
            noise = systems.random_state(model, seed, size)
            near = jax.tree.map(lambda x, y: x + y, state, noise)
            for candidate in (near, noise):
                found = certify(model, candidate)
                risk = float(fc.risk(model, candidate))
                assert risk - float(found.excess) <= float(least.risk) * (1 + 1e-12) + 1e3 * EPS * (risk + risk**0.5)
                assert not found.is_global or risk <= float(least.risk) * (1 + 1e-7)
    slightly = jax.tree.map(lambda x, y: x + y, state, systems.random_state(model, 0, 1e-7))
    assert float(certify(model, slightly).excess) < 1e-4


def test_saddles_are_not_certified():
    """The origin below the threshold, and a collapsed point of lower rank: critical, with a residual above mu."""
    model = ufm((4, 4, 4), 3, (0.5, 0.5, 0.0), "squared")
    saddle = landscape.critical_point(model, 1, key=jax.random.key(0))
    found = certify(model, saddle)
    assert float(found.gradient) < 1e-14
    np.testing.assert_allclose(found.residual_norm, 2.0, rtol=1e-12)
    assert not found.is_global
    assert bool(certify(model, landscape.critical_point(model, key=jax.random.key(0))).is_global)
    for loss in ("cross-entropy", "squared"):
        for mu, right in ((0.98 * 2, False), (1.02 * 2, True)):
            balanced = ufm((4, 4, 4), 3, (mu, mu, 0.3), loss)
            origin = fc.State(
                H=np.zeros((3, 12)), W=np.zeros((3, 3)), b=np.full(3, 4 / 12.3 if loss == "squared" else 0)
            )
            found = certify(balanced, origin)
            np.testing.assert_allclose(found.residual_norm, 2.0, rtol=1e-12)
            assert float(found.gradient) < 1e-14
            assert bool(found.is_global) == right


def test_a_run_is_certified_when_it_has_converged():
    model = ufm((3, 2, 2), 4, (0.3, 0.5, 0.2))
    start = fc.initial.sphere(model, 0.3, key=jax.random.key(0))
    path = fc.simulate(model, start, fc.Flow("dopri8", t1=120.0, rtol=1e-10), [1.0, 10.0, 120.0], save_states=True)
    assert path.states is not None
    found = certify(model, path.states)
    assert found.is_global.tolist() == [False, False, True]
    np.testing.assert_allclose(fc.risk(model, path.final), minimiser(model).risk, rtol=1e-9)
    excess = np.asarray(fc.risk(model, path.states)) - float(minimiser(model).risk)
    assert np.all(excess <= np.asarray(found.excess) + 1e-12)


def test_columns_and_programs_do_not_matter():
    model = ufm((3, 3, 3), 4, (0.3, 0.5, 0.2), "squared")
    state = systems.random_state(model)
    one, other = certify(model, state), certify(model, fc.to_class_means(model, state))
    both = jax.jit(jax.vmap(lambda size: certify(model, jax.tree.map(lambda x: size * x, state)).excess))(
        jnp.array([1.0, 0.5])
    )
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    np.testing.assert_allclose(both[0], one.excess, rtol=1e-12)


CASES = {
    "not convex": (
        lambda: certify(ufm((3, 3), 2, 0.1, "focal:2"), START),
        ["'focal:gamma=2.0'", "not convex", "use a convex loss"],
    ),
    "another model's state": (lambda: certify(ufm((3, 3), 4, 0.1), START), ["state.W has shape", "reshape"]),
    "no tolerance": (lambda: certify(ufm((3, 3), 2, 0.1), START, rtol=0.0), ["rtol", "0.0", "positive"]),
}
START = systems.random_state(ufm((3, 3), 2, 0.1))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, fragments = CASES[name]
    systems.assert_refused(call, fragments)

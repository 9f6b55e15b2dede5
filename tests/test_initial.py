"""The starts: norms, the conditions that define S, balance and strong collapse, and the law of the random sphere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

EPS = float(jnp.finfo(jnp.float64).eps)


STARTS = ["sphere", "on_subspace", "balanced", "collapsed"]
# p above and at C - 1; then below, where no frame fits.
ROOMY, NARROW = [(3, 3, 15), (4, 1, 3)], [(3, 4, 1)]


def model_of(C: int, N: int, p: int) -> fc.UFM:
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p)


@partial(jax.jit, static_argnames=("name", "dtype"))
def draw(name: str, model: fc.UFM, key, eps=0.3, dtype=jnp.float64) -> fc.State:
    """A start by name, compiled; a collapsed point has no eps."""
    options = {} if name == "collapsed" else {"eps": eps}
    return getattr(fc.initial, name)(model, key=key, dtype=dtype, **options)


@pytest.fixture(scope="module")
def small() -> fc.UFM:
    return model_of(3, 2, 4)


@pytest.mark.parametrize("eps", [1e3, 1.0, 1e-8, 1e-100])
def test_sphere_has_norm_eps_and_no_bias(paper_model, key, eps):
    start = fc.initial.sphere(paper_model, eps=eps, key=key)
    np.testing.assert_allclose(np.linalg.norm(start.H / eps), 1, rtol=100 * EPS)
    np.testing.assert_allclose(np.linalg.norm(start.W / eps), 1, rtol=100 * EPS)
    assert not start.b.any()


@pytest.mark.parametrize("reduced", [False, True])
def test_sphere_directions_are_uniform(small, key, reduced):
    """A uniform direction in d dimensions has `E x x^T = I/d`, and `x_i^2` has variance `2 (d - 1) / (d^2 (d + 2))`.

    For a reduced draw, this holds for the entries of the class means B, as part of d = p n_tot numbers.
    """
    draws, p, C, n_tot = 4096, 4, 3, 6
    sphere = jax.vmap(lambda k: fc.initial.sphere(small, eps=1.0, key=k, reduced=reduced))
    starts = jax.jit(sphere)(jax.random.split(key, draws))
    for block, d in ((starts.W, C * p), (starts.X[..., :C], p * n_tot)):
        x = np.asarray(block).reshape(draws, -1)
        moments = x.T @ x / draws
        sigma = np.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / draws)
        # 5 standard deviations: the chance that any of these numbers exceeds them is about 1e-4.
        np.testing.assert_allclose(moments, np.eye(x.shape[1]) / d, atol=5 * sigma)
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=5 / np.sqrt(d * draws))


@pytest.mark.parametrize(("C", "N", "p"), ROOMY + NARROW)
def test_points_of_the_subspace_meet_its_conditions(C, N, p, key):
    eps = 0.3
    H, W, b = systems.arrays(draw("on_subspace", model_of(C, N, p), key, eps))
    np.testing.assert_allclose(H, np.repeat(W.T, N, axis=1) / np.sqrt(N), atol=10 * EPS)
    np.testing.assert_allclose(W.sum(axis=0), 0, atol=10 * EPS)
    np.testing.assert_allclose([np.linalg.norm(W), np.linalg.norm(H)], eps, rtol=100 * EPS)
    assert not b.any()


@pytest.mark.parametrize(("C", "N", "p"), ROOMY + NARROW)
def test_balanced_starts_are_balanced(C, N, p, key):
    eps = 0.3
    H, W, b = systems.arrays(draw("balanced", model_of(C, N, p), key, eps))
    np.testing.assert_allclose(W.T @ W, H @ H.T, atol=100 * EPS * eps**2)
    np.testing.assert_allclose([np.linalg.norm(W), np.linalg.norm(H)], eps, rtol=100 * EPS)
    assert not b.any()


@pytest.mark.parametrize(("C", "N", "p"), ROOMY)
def test_collapsed_points_meet_snc(C, N, p, key):
    """SNC1: `W W^T = sqrt N P`; SNC2: `H = (W (x) 1_N)^T / sqrt N`; SNC3: `b = 1/C`."""
    H, W, b = systems.arrays(draw("collapsed", model_of(C, N, p), key))
    s = np.sqrt(N)
    np.testing.assert_allclose(W @ W.T, s * systems.centring(C), atol=100 * EPS * s)
    np.testing.assert_allclose(H, np.repeat(W.T, N, axis=1) / s, atol=100 * EPS)
    np.testing.assert_allclose(b, 1 / C, rtol=EPS)


def test_collapsed_points_without_a_bias_are_orthogonal_frames(key):
    model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, use_bias=False)
    state = fc.initial.collapsed(model, key=key)
    np.testing.assert_allclose(state.W @ state.W.T, 2 * np.eye(3), atol=100 * EPS)
    assert float(fc.risk(model, state)) < (100 * EPS) ** 2
    assert not state.b.any()


@pytest.mark.parametrize("name", STARTS)
def test_the_key_decides_and_jit_changes_nothing(small, key, name):
    """Equal keys give equal starts and other keys other starts; under jit with traced eps, up to rounding."""
    options = {} if name == "collapsed" else {"eps": 0.3}
    plain = getattr(fc.initial, name)(small, key=key, **options)
    first, again, other = (draw(name, small, k) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(first.H, again.H)
    assert systems.relative_error(systems.arrays(other), systems.arrays(first)) > 0.1
    assert systems.relative_error(systems.arrays(first), systems.arrays(plain)) < 100 * EPS


@pytest.mark.parametrize("name", STARTS)
def test_starts_in_single_precision(small, key, name):
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(draw(name, small, key, dtype=jnp.float32))}
    assert dtypes == {jnp.dtype(jnp.float32)}

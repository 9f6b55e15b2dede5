"""The invariant subspace S: an orthogonal projection, invariance, membership by size, and the risk in two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

subspace = fc.theory.subspace
EPS = float(jnp.finfo(jnp.float64).eps)
ROUNDED = 100 * EPS

PAPER = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
IMBALANCED = fc.UFM(num_classes=3, samples_per_class=(4, 2, 3), num_features=4)


def ufm(C, N, p, **options):
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, **options)


def flat(state) -> np.ndarray:
    return np.concatenate([part.ravel() for part in systems.arrays(state)])


@systems.compiled
def projected_and_distances(model, state):
    """The projections from samples and from class means, and the distances."""
    means = subspace.project(model, fc.to_class_means(model, state))
    assert means.coordinates == "class-mean"
    samples = subspace.project(model, state)
    distances = subspace.distance(model, state), subspace.relative_distance(model, state)
    return samples, fc.State(H=means.H, W=means.W, b=means.b), distances


@pytest.mark.parametrize(("C", "N", "p"), systems.GEOMETRIES)
def test_the_projection_is_the_orthogonal_one(C, N, p):
    """Against an explicit basis of S, in samples and in class means; the distance is the norm of the remainder."""
    model, basis = ufm(C, N, p), systems.subspace_basis(C, N, p)
    state = systems.random_state(model)
    z = flat(state)
    size = float(np.linalg.norm(z))
    exact = basis.T @ (basis @ z)
    samples, means, distances = projected_and_distances(model, state)
    for projected in (samples, means):
        np.testing.assert_allclose(flat(projected), exact, rtol=0, atol=ROUNDED * size)
    off = np.linalg.norm(z - exact)
    np.testing.assert_allclose(distances, [off, off / size], rtol=ROUNDED)
    assert subspace.dimension(model) == len(basis)


@pytest.mark.parametrize("use_bias", [True, False])
def test_the_dimension_is_the_rank_of_the_projection(use_bias):
    model = ufm(3, 2, 4, use_bias=use_bias)
    states = [systems.random_state(model, seed) for seed in range(subspace.dimension(model) + 3)]
    batch = subspace.project(model, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    projected = np.stack([flat(jax.tree.map(lambda x, i=i: x[i], batch)) for i in range(len(states))])
    assert np.linalg.matrix_rank(projected) == subspace.dimension(model)


def test_leading_axes():
    """A grid of states is projected state by state; each remainder is orthogonal to S."""
    basis = systems.subspace_basis(3, 3, 15)
    states = [systems.random_state(PAPER, seed) for seed in range(4)]
    grid = jax.tree.map(lambda *xs: jnp.stack(xs).reshape(2, 2, *xs[0].shape), *states)
    projected = systems.compiled(subspace.project)(PAPER, grid)
    assert projected.H.shape == (2, 2, 15, 9)
    for i, state in enumerate(states):
        found = flat(jax.tree.map(lambda x, i=i: x.reshape(4, *x.shape[2:])[i], projected))
        assert np.linalg.norm(found - basis.T @ (basis @ flat(state))) < ROUNDED * np.linalg.norm(flat(state))
    assert np.all(subspace.contains(PAPER, projected))
    assert subspace.contains(PAPER, grid).shape == subspace.distance(PAPER, grid).shape == (2, 2)


def test_the_subspace_is_invariant_iff_classifier_and_features_decay_alike():
    """The velocity of the flow at a point of S lies in S, by an explicit basis."""
    basis = systems.subspace_basis(4, 7, 6)
    start = systems.arrays(subspace.project(ufm(4, 7, 6), systems.random_state(ufm(4, 7, 6))))
    for decay, invariant in (((0.0, 0.0, 0.0), True), ((0.7, 0.7, 0.2), True), ((0.7, 0.3, 0.0), False)):
        v = np.concatenate([part.ravel() for part in systems.velocity(start, (7,) * 4, decay)])
        off = np.linalg.norm(v - basis.T @ (basis @ v)) / np.linalg.norm(v)
        assert (off < ROUNDED) == invariant


@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_membership_is_judged_by_the_size_of_the_part(size, key):
    """With a bias of 1/C, a small start is close to S relative to the whole state, but not relative to its own size."""
    model = ufm(4, 7, 6)
    off = systems.random_state(model, size=size)
    on = subspace.project(model, off)
    contains = systems.compiled(subspace.contains)
    for rtol, step, expected in ((None, 0.0, True), (None, 1e-9, False), (1e-8, 1e-9, True), (1e-8, 1e-6, False)):
        state = fc.State(H=on.H + step * off.H, W=on.W + step * off.W, b=jnp.full(4, 0.25))
        assert bool(contains(model, state, rtol)) == expected
    uneven = fc.State(H=on.H, W=on.W, b=jnp.full(4, 0.25).at[0].add(1e-9))
    assert not contains(model, uneven)
    assert contains(model, jax.tree.map(jnp.zeros_like, on))
    assert contains(model, fc.initial.on_subspace(model, size, key=key, dtype=jnp.float32))
    assert not contains(model, jax.tree.map(lambda x: x * jnp.nan, on))


@systems.compiled
def projected_and_parts(model, state):
    """The projection, and the risk on S in two parts."""
    on = subspace.project(model, state)
    return on, subspace.risk_parts(model, on)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("decay", [(0.0, 0.0, 0.0), (0.7, 0.3, 0.2)])
@pytest.mark.parametrize(("C", "N", "p"), [(3, 3, 15), (5, 2, 3), (2, 3, 4)])
def test_the_risk_is_the_sum_of_its_parts(C, N, p, decay, use_bias):
    """Each part equals its formula, and their sum equals the sum over single samples."""
    model = ufm(C, N, p, weight_decay=decay, use_bias=use_bias)
    state, (classifier, bias) = projected_and_parts(model, systems.random_state(model))
    _, W, b = systems.arrays(state)
    P, u = (systems.centring(C), 1 / C) if use_bias else (np.eye(C), 0.0)
    expected = 0.5 * np.sum((W @ W.T - np.sqrt(N) * P) ** 2) + (decay[0] + decay[1]) / 2 * np.sum(W**2)
    np.testing.assert_allclose(classifier, expected, rtol=ROUNDED)
    np.testing.assert_allclose(bias, 0.5 * C * N * np.sum((b - u) ** 2) + decay[2] / 2 * np.sum(b**2), atol=ROUNDED)
    np.testing.assert_allclose(
        classifier + bias, systems.risk(systems.arrays(state), model.counts, decay), rtol=ROUNDED
    )


REFUSED = {
    "the dimension of S for unequal counts": (lambda: subspace.dimension(IMBALANCED), ["(4, 2, 3)", "equal counts"]),
    "projection for unequal counts": (
        lambda: subspace.project(IMBALANCED, systems.random_state(IMBALANCED)),
        ["samples_per_class", "(4, 2, 3)", "equal counts"],
    ),
    "membership for unequal counts": (
        lambda: subspace.contains(IMBALANCED, systems.random_state(IMBALANCED)),
        ["(4, 2, 3)", "equal counts"],
    ),
    "parts of the risk off S": (
        lambda: subspace.risk_parts(PAPER, systems.random_state(PAPER)),
        ["off the invariant subspace S", "fc.theory.subspace.project"],
    ),
    "a state of another model": (
        lambda: subspace.project(PAPER, systems.random_state(ufm(3, 3, 4))),
        ["state.W", "(3, 4)", "(3, 15)"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, words = REFUSED[name]
    systems.assert_refused(call, words)


def test_what_is_traced_is_not_judged():
    """The gradient of a part of the risk, inside jit and also off S, is that of its formula: `2 (W W^T - s P) W`."""
    state = systems.random_state(ufm(3, 4, 5))

    def classifier_part(W):
        return subspace.risk_parts(ufm(3, 4, 5), fc.State(H=state.H, W=W, b=state.b)).classifier

    W = np.asarray(state.W)
    expected = 2 * (W @ W.T - 2.0 * systems.centring(3)) @ W
    np.testing.assert_allclose(jax.jit(jax.grad(classifier_part))(state.W), expected, atol=ROUNDED * 100)

"""The landscape on S in closed form, against the dense Hessian in NumPy and against descent at its thresholds."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from hessians import matrix
from trial_losses import Trial

import flowcollapse as fc
from flowcollapse.curvature.hessian import sharpness
from flowcollapse.curvature.spectrum import num_parameters
from flowcollapse.theory import landscape

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(C, N, p, lam=0.0, **options):
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, weight_decay=(lam, lam, 0.0), **options)


def point_on_S(C, N, p, rank, lam, use_bias) -> systems.Arrays:
    """A point with `W W^T = (s - lam)` times a projector of the rank, orthogonal to 1 if there is a bias, in NumPy."""
    rng = np.random.default_rng([C, N, p, rank])
    normal = (systems.centring(C) if use_bias else np.eye(C)) @ rng.standard_normal((C, p))
    U, _, Vt = np.linalg.svd(normal)
    W = math.sqrt(max(math.sqrt(N) - lam, 0.0)) * U[:, :rank] @ Vt[:rank]
    return systems.on_subspace(W, np.array(1 / C if use_bias else 0.0), N)


def multiplicities(values, tolerance) -> dict[float, int]:
    """The multiplicity of each value, by rounding to a tolerance far below the gaps."""
    return dict(collections.Counter(np.round(values / tolerance).astype(int)))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("lam", [0.0, 0.37])
@pytest.mark.parametrize(("C", "N", "p"), systems.GEOMETRIES)
def test_spectrum_at_every_rank(C, N, p, lam, use_bias):
    """Values up to rounding and exact multiplicities, at a critical point of each rank, including the origin."""
    model, decay = ufm(C, N, p, lam, use_bias=use_bias), (lam, lam, 0.0)
    k = C - 1 if use_bias else C
    for rank in range(min(p, k) + 1):
        point = point_on_S(C, N, p, rank, lam, use_bias)
        gradient = systems.velocity(point, model.counts, decay, use_bias)
        assert math.sqrt(sum(np.sum(part**2) for part in gradient)) < 64 * EPS * C * N
        exact = np.linalg.eigvalsh(matrix(point, model.counts, decay, use_bias))
        found = landscape.spectrum(model, rank)
        np.testing.assert_allclose(found.eigenvalues, exact, atol=64 * EPS * exact[-1])
        assert found.total == num_parameters(model)
        assert np.all(np.diff(found.values) > 0)
        table = np.repeat(np.asarray(found.values), found.multiplicities)
        assert multiplicities(table, 1e-9) == multiplicities(exact, 1e-9)
        assert sum(exact < -1e-9) == (p - rank) * (k - rank)


def test_multiplicities_are_whole_numbers_at_sizes_that_no_matrix_could_have():
    C, N, p = 1000, 10**6, 2048
    found = landscape.spectrum(ufm(C, N, p))
    assert found.total == p * C * N + p * C + C
    assert dict(zip(np.asarray(found.values).tolist(), found.multiplicities, strict=True)) == {
        0.0: found.total - 2 * (C - 1) - 1 - (C - 1) ** 2 - (C - 1) * C * (N - 1),
        1000.0: (C - 1) * (1 + C * (N - 1)),
        2000.0: (C - 1) ** 2,
        1e9: 1,
        1e9 + 1e3: C - 1,
    }


def test_critical_points_are_critical_and_of_their_rank_under_jit_with_any_decay():
    """One program serves all decays; with a traced decay, the spectrum equals that of the dense matrix."""
    C, N, p, rank = 4, 3, 5, 2

    @systems.compiled
    @jax.vmap
    def of_decay(lam, key):
        decay = lam * jnp.array([1.0, 1.0, 0.0])
        model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p, weight_decay=decay)
        return landscape.critical_point(model, rank, key=key), landscape.spectrum(model, rank).eigenvalues

    lams = jnp.array([0.0, 0.4, 1.5])
    states, eigenvalues = of_decay(lams, jax.random.split(jax.random.key(0), 3))
    for i, lam in enumerate(lams.tolist()):
        point = systems.Arrays(*(part[i] for part in systems.arrays(states)))
        gradient = systems.velocity(point, (N,) * C, (lam, lam, 0.0))
        assert math.sqrt(sum(np.sum(part**2) for part in gradient)) < 64 * EPS * C * N
        values = np.linalg.eigvalsh(point.W @ point.W.T)
        np.testing.assert_allclose(values, [0, 0, math.sqrt(N) - lam, math.sqrt(N) - lam], atol=16 * EPS)
        exact = np.linalg.eigvalsh(matrix(point, (N,) * C, (lam, lam, 0.0)))
        np.testing.assert_allclose(eigenvalues[i], exact, atol=64 * EPS * exact[-1])


def test_thresholds_at_the_sizes_of_the_paper(paper_model):
    assert abs(float(landscape.stability_threshold(paper_model)) - 0.1864) < 5e-5
    ratio = landscape.divergence_threshold(paper_model) / landscape.stability_threshold(paper_model)
    np.testing.assert_allclose(ratio, 1 + 1 / (3 * math.sqrt(3)), rtol=8 * EPS)


THRESHOLDS = {
    "paper": ufm(3, 3, 15),
    "one sample a class": ufm(3, 1, 2),
    "decay": ufm(3, 4, 3, 0.5),
    "no bias": ufm(2, 4, 3, use_bias=False),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_descent_is_stable_below_the_threshold_and_not_above(name):
    """Near collapse, at ratio r of the threshold, each step multiplies the top mode of a perturbation by `1 - 2 r`.

    So at 0.98 it has decayed after 500 steps, and at 1.02 it has grown by `1.04^500 = 3e8`.
    """
    model = THRESHOLDS[name]
    C, N, p, lam = model.num_classes, model.counts[0], model.num_features, float(model.decays[0])
    rank = min(p, C - 1 if model.use_bias else C)
    collapsed = point_on_S(C, N, p, rank, lam, model.use_bias)
    disturbance = systems.arrays(systems.random_state(model))
    size, steps = 1e-13, 500
    start = fc.State(*(jnp.asarray(z + size * d) for z, d in zip(collapsed, disturbance, strict=True)))

    @systems.compiled
    @jax.vmap
    def descend(ratio):
        eta = ratio * landscape.stability_threshold(model)
        method = fc.Descent("sgd", steps, learning_rate=eta)
        return fc.simulate(model, start, method, [0.0], metrics=()).final

    ends = descend(jnp.array([0.98, 1.02]))
    below, above = (
        math.sqrt(sum(np.sum((part[i] - z) ** 2) for part, z in zip(systems.arrays(ends), collapsed, strict=True)))
        for i in range(2)
    )
    # Neutral directions, mainly rotations, do not change.
    assert below < 20 * size * math.sqrt(num_parameters(model))
    assert 1e-3 < above / (size * 1.04**steps) < 1e3


def test_no_state_is_less_curved_than_the_divergence_threshold_says():
    """`2 / eta` at that threshold is a lower bound on the largest eigenvalue at any state, counts and decays."""
    model = fc.UFM(num_classes=3, samples_per_class=(4, 1, 2), num_features=3, weight_decay=(0.1, 0.0, 0.6))
    bound = 2 / float(landscape.divergence_threshold(model))
    np.testing.assert_allclose(bound, 7.6, rtol=8 * EPS)
    zero = systems.Arrays(np.zeros((3, 7)), np.zeros((3, 3)), np.zeros(3))
    for point in (zero, *(systems.arrays(systems.random_state(model, seed, 0.3)) for seed in range(3))):
        assert np.linalg.eigvalsh(matrix(point, model.counts, (0.1, 0.0, 0.6)))[-1] > bound - 64 * EPS * bound


def test_descent_on_S_diverges_at_the_divergence_threshold_and_comes_to_rest_below(paper_model):
    """At ratio r of the threshold each step multiplies the bias by `1 - 2 r`: it falls at 0.99 and grows at 1.01.

    Between the two thresholds no point with eigenvalues of `W W^T` above `2/eta - C N` is at rest. The risk falls to
    the small value of the plateau, and the start decides the eigenvalues, so they are below the bound.
    """
    s, ratios = math.sqrt(3), np.array([1.02, 1.06, 1.10])
    on_S = systems.arrays(fc.initial.on_subspace(paper_model, 0.1, key=jax.random.key(0)))
    generic = systems.arrays(fc.initial.sphere(paper_model, 1e-2, key=jax.random.key(1)))
    rates = landscape.stability_threshold(paper_model) * ratios
    rates = jnp.concatenate([landscape.divergence_threshold(paper_model) * np.array([0.99, 1.01]), rates])
    starts = (np.stack([x] * 2 + [y] * 3) for x, y in zip(on_S, generic, strict=True))

    @systems.compiled
    @jax.vmap
    def descend(start, eta):
        method = fc.Descent("sgd", 2000, learning_rate=eta)
        path = fc.simulate(paper_model, start, method, jnp.stack([50 * eta]), metrics=("snc3",))
        end = path.final
        return path.metrics["snc3"][0], end, fc.risk(paper_model, end), sharpness(paper_model, end)

    snc3, ends, risks, curvatures = descend(fc.State(*map(jnp.asarray, starts)), rates)
    np.testing.assert_allclose(snc3[:2], np.abs(1 - 2 * np.array([0.99, 1.01])) ** 50 / s, rtol=1e-9)
    bounds = landscape.settled_eigenvalue(paper_model, rates[2:])
    np.testing.assert_allclose(bounds, 10.7320508 / ratios - 9, rtol=1e-7)
    for i in range(3):
        values = np.linalg.eigvalsh(ends.W[2 + i] @ ends.W[2 + i].T)
        assert 0.2 < values[-1] < bounds[i]
        assert risks[2 + i] < 1e-7
        assert curvatures[2 + i] * rates[2 + i] < 2
    assert float(landscape.settled_eigenvalue(paper_model, 0.1)) == pytest.approx(s, rel=4 * EPS)


IMBALANCED = fc.UFM(num_classes=3, samples_per_class=(1, 2, 3), num_features=4)
CASES = {
    "imbalanced": (lambda: landscape.spectrum(IMBALANCED), ["samples_per_class", "(1, 2, 3)", "equal counts"]),
    "negative rank": (lambda: landscape.spectrum(ufm(3, 3, 4), -1), ["rank", "-1", "at least 0"]),
    "a rank beyond the frame": (lambda: landscape.spectrum(ufm(4, 3, 5), 4), ["rank is 4", "at most 3", "lower"]),
    "a rank beyond the features": (
        lambda: landscape.critical_point(ufm(5, 3, 2), 3, key=jax.random.key(0)),
        ["rank is 3", "at most 2", "lower"],
    ),
    "unequal decays": (
        lambda: landscape.spectrum(fc.UFM(num_classes=3, samples_per_class=3, num_features=4, weight_decay=(1, 0, 0))),
        ["weight_decay", "(1, 0, 0)", "(lam, lam, 0)"],
    ),
    "a bias that decays": (
        lambda: landscape.stability_threshold(
            fc.UFM(num_classes=3, samples_per_class=3, num_features=4, weight_decay=0.1)
        ),
        ["weight_decay", "0.1", "(lam, lam, 0)"],
    ),
    "more decay than collapse bears": (
        lambda: landscape.spectrum(ufm(3, 4, 4, 2.0)),
        ["weight_decay", "(2.0, 2.0, 0.0)", "sqrt N = 2", "rank=0"],
    ),
    "divergence without a bias": (
        lambda: landscape.divergence_threshold(ufm(3, 3, 4, use_bias=False)),
        ["use_bias", "False", "use a model with a bias"],
    ),
    "rest without a bias": (
        lambda: landscape.settled_eigenvalue(ufm(3, 3, 4, use_bias=False), 0.1),
        ["use_bias", "False", "use a model with a bias"],
    ),
    "rest with decay": (
        lambda: landscape.settled_eigenvalue(ufm(3, 3, 4, 0.1), 0.1),
        ["weight_decay", "0.1", "use none"],
    ),
    "rest without room": (lambda: landscape.settled_eigenvalue(ufm(4, 3, 2), 0.1), ["num_features is 2", "3", "raise"]),
    "no step": (lambda: landscape.settled_eigenvalue(ufm(3, 3, 4), 0.0), ["learning_rate", "0.0", "positive"]),
    "too long a step": (
        lambda: landscape.settled_eigenvalue(ufm(3, 3, 4), jnp.array([0.1, 0.3])),
        ["learning_rate", "0.3", "0.222222", "lower"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, fragments = CASES[name]
    systems.assert_refused(call, fragments)


def test_closed_forms_are_refused_for_another_loss():
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss=Trial())
    for call in (landscape.spectrum, landscape.divergence_threshold):
        with pytest.raises(fc.UsageError, match=r"loss is 'trial'.*use loss=\"squared\""):
            call(model)

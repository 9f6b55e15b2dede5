"""Unequal counts: order of learning, thresholds, free bias and the Riccati equation, against runs of the flow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.theory import exact, imbalance, minimiser

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(counts, p, loss="squared", **options):
    return systems.model_of(counts, p, loss=loss, **{"use_bias": False, **options})


@pytest.mark.parametrize(("counts", "tolerance"), [((100, 25, 4), 1e-4), ((16, 49, 64, 36), 2e-3)])
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_each_class_has_half_of_its_weight_at_its_time(counts, tolerance, lam):
    model = ufm(counts, len(counts), weight_decay=(lam, lam, 0.0))
    start = fc.initial.sphere(model, 1e-6, key=jax.random.key(0))
    times = np.asarray(imbalance.learning_times(model, start))
    assert np.all(np.diff(times[np.argsort(counts)]) < 0)
    order = np.argsort(times)
    flow = fc.Flow("dopri8", t1=1.01 * times.max(), rtol=1e-9)
    path = fc.simulate(model, start, flow, times[order], save_states=True)
    assert path.states is not None
    for W, k in zip(np.asarray(path.states.W), order, strict=True):
        assert abs(np.sum(W[k] ** 2) / (math.sqrt(counts[k]) - lam) - 0.5) < tolerance


def aligned(counts, p, size=0.4) -> fc.State:
    """A random start with `B = W^T`."""
    W = size * np.random.default_rng(2).standard_normal((len(counts), p))
    return fc.State(H=np.repeat(W.T / np.sqrt(counts), counts, axis=1), W=W)


@pytest.mark.parametrize("lam", [0.0, 0.4, 2.0, 3.5])
@pytest.mark.parametrize(("counts", "p"), [((9, 4, 1), 3), ((5, 5, 2, 1), 6)])
def test_the_gram_matrix_of_an_aligned_start(counts, p, lam):
    """Also for a decay equal to and above `sqrt n_k`, where the class vanishes; at late times it is the minimum."""
    model, start, ts = ufm(counts, p, weight_decay=(lam, lam, 0.0)), aligned(counts, p), np.linspace(0.0, 4.0, 9)
    path = systems.flow(systems.arrays(start), counts, ts, decay=(lam, lam, 0.0), use_bias=False)
    gram = np.asarray(imbalance.gram(model, start, ts))
    np.testing.assert_allclose(gram, path.W @ np.swapaxes(path.W, 1, 2), atol=1e-11)
    late = np.asarray(imbalance.gram(model, start, [1e4]))[0]
    limit = np.diag(np.maximum(np.sqrt(counts) - lam, 0.0))
    np.testing.assert_allclose(late, limit, atol=1e-11 if lam != 2.0 or 4 not in counts else 1e-4)


def test_the_gram_matrix_keeps_its_digits_from_a_tiny_start():
    """Against the solution of the same equation that does not invert the start, in exact columns."""
    counts = (9, 4, 1)
    model, start, ts = ufm(counts, 3), aligned(counts, 3, size=1e-7), np.linspace(0.0, 40.0, 9)
    W = np.asarray(exact.balanced_flow(model, start, ts).W)
    np.testing.assert_allclose(imbalance.gram(model, start, ts), W @ np.swapaxes(W, 1, 2), atol=1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("counts", "p"), [((6, 3, 1), 3), ((2, 5, 2, 4), 2)])
def test_the_free_bias(counts, p, reduction):
    """The closed form against the certified minimum: b, `W Hbar`, `H 1 = 0`, and the eigenvalues that it names."""
    n, a = np.array(counts), 1.0 if reduction == "sum" else 1 / sum(counts)
    lam = 0.7 * a
    model = ufm(counts, p, use_bias=True, weight_decay=(lam, lam, 0.0), reduction=reduction)
    found, state = imbalance.free_bias(model), minimiser(model).state
    np.testing.assert_allclose(found.b, n / n.sum(), rtol=4 * EPS)
    np.testing.assert_allclose(found.b, state.b, atol=16 * EPS)
    roots = np.sqrt(np.linalg.eigvalsh(np.diag(n) - np.outer(n, n) / n.sum())[:0:-1])
    lowered = np.maximum(roots - 0.7, 0) * (np.arange(len(n) - 1) < p)
    np.testing.assert_allclose(found.singular_values, lowered, atol=64 * EPS)
    H, W, _ = systems.arrays(state)
    np.testing.assert_allclose(found.class_means, W @ systems.means_and_deviations(H, counts)[0], atol=64 * EPS)
    assert np.abs(H.sum(axis=1)).max() < 64 * EPS * n.sum()


@pytest.mark.parametrize(
    ("loss", "use_bias", "reduction"),
    [
        ("squared", False, "mean"),
        ("cross-entropy", False, "mean"),
        ("cross-entropy", True, "sum"),
        ("label-smoothing:0.3", True, "mean"),
    ],
)
def test_classes_are_lost_at_their_thresholds(loss, use_bias, reduction):
    counts = (9, 9, 4, 4)
    model = ufm(counts, 4, loss, use_bias=use_bias, reduction=reduction)
    thresholds = np.asarray(imbalance.class_thresholds(model))
    a, eps = (1.0 if reduction == "sum" else 1 / 26), (0.3 if "smoothing" in loss else 0.0)
    np.testing.assert_allclose(thresholds, a * (1 - eps) * np.sqrt(counts), rtol=4 * EPS)
    for ratio in (0.98, 1.02):
        mu = float(ratio * thresholds[-1])
        found = minimiser(ufm(counts, 4, loss, use_bias=use_bias, reduction=reduction, weight_decay=(mu, mu, 0.0)))
        assert found.learned.tolist() == [True, True, ratio < 1, ratio < 1]


def test_thresholds_of_all_classes():
    counts = (16, 4, 1)
    P = systems.centring(3)
    cross_entropy = ufm(counts, 3, "cross-entropy")
    np.testing.assert_allclose(
        imbalance.vanishing_threshold(cross_entropy), np.linalg.norm(P * np.sqrt(counts), 2), rtol=16 * EPS
    )
    np.testing.assert_allclose(imbalance.vanishing_threshold(ufm(counts, 3)), 4.0, rtol=16 * EPS)
    mean = ufm(counts, 3, "cross-entropy", reduction="mean")
    ratio = imbalance.vanishing_threshold(mean) / imbalance.vanishing_threshold(cross_entropy)
    np.testing.assert_allclose(ratio, 1 / 21, rtol=16 * EPS)
    assert np.isnan(imbalance.class_thresholds(cross_entropy)).all()


def test_programs_serve_all_decays_and_starts():
    counts = (9, 4, 1)
    lams = jnp.array([0.1, 0.6])

    def of(lam):
        model = ufm(counts, 3, weight_decay=lam * jnp.array([1.0, 1.0, 0.0]))
        start = aligned(counts, 3)
        return imbalance.gram(model, start, [1.0])[0], imbalance.learning_times(model, start)

    together = jax.jit(jax.vmap(of))(lams)
    for i, lam in enumerate(lams.tolist()):
        for one, other in zip(of(jnp.asarray(lam)), together, strict=True):
            np.testing.assert_allclose(other[i], one, rtol=1e-12)


SMALL = fc.initial.sphere(ufm((4, 2), 2), 1e-3, key=jax.random.key(0))
CASES = {
    "another loss": (
        lambda: imbalance.learning_times(ufm((4, 2), 2, "cross-entropy"), SMALL),
        ["'cross-entropy'", "use"],
    ),
    "the mean": (lambda: imbalance.gram(ufm((4, 2), 2, reduction="mean"), SMALL, [1.0]), ["'mean'", "model.summed"]),
    "a bias": (
        lambda: imbalance.learning_times(ufm((4, 2), 2, use_bias=True), SMALL),
        ["use_bias is True", "use_bias=False"],
    ),
    "equal counts": (
        lambda: imbalance.learning_times(ufm((4, 4), 2), SMALL),
        ["samples_per_class=4", "different counts"],
    ),
    "few features": (lambda: imbalance.learning_times(ufm((4, 2), 1), SMALL), ["num_features is 1", "raise"]),
    "unequal decay": (
        lambda: imbalance.gram(ufm((4, 2), 2, weight_decay=(0.1, 0.2, 0.0)), SMALL, [1.0]),
        ["0.1 for W and 0.2 for H", "use (lam, lam"],
    ),
    "decay above the least class": (
        lambda: imbalance.learning_times(ufm((4, 2), 2, weight_decay=1.5), SMALL),
        ["weight_decay is 1.5", "lower"],
    ),
    "not aligned": (lambda: imbalance.gram(ufm((4, 2), 2), SMALL, [1.0]), ["away from B = W^T", "use a start"]),
    "negative times": (lambda: imbalance.gram(ufm((4, 2), 2), aligned((4, 2), 2), [-1.0]), ["ts", "-1.0"]),
    "rank": (lambda: imbalance.gram(ufm((4, 2), 1), aligned((4, 2), 1), [1.0]), ["rank 1", "rank 2"]),
    "a decaying bias": (
        lambda: imbalance.free_bias(ufm((4, 2), 2, use_bias=True, weight_decay=0.1)),
        ["weight_decay is 0.1", "(lam, lam, 0)"],
    ),
    "no free bias": (lambda: imbalance.free_bias(ufm((4, 2), 2)), ["use_bias is False", "use_bias=True"]),
    "classes with a bias": (
        lambda: imbalance.class_thresholds(ufm((4, 2), 2, use_bias=True)),
        ["'squared'", "use_bias=False"],
    ),
    "focal": (
        lambda: imbalance.vanishing_threshold(ufm((4, 2), 2, "focal:2")),
        ["'focal:gamma=2.0'", "use equal counts"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, fragments = CASES[name]
    systems.assert_refused(call, fragments)

"""The global minimum with weight decay, against closed forms, Newton's method from random starts, and the Hessian."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import logit_losses
import numpy as np
import pytest
import systems
from trial_losses import Trial

import flowcollapse as fc
from flowcollapse.curvature.spectrum import num_parameters
from flowcollapse.theory import limits, minimiser

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(counts, p, decay, loss: Any = "cross-entropy", **options):
    return systems.model_of(counts, p, weight_decay=decay, loss=loss, **options)


def critical(model, state, tolerance=1e-11) -> None:
    """The gradient of the independent risk vanishes at the state."""
    x = logit_losses.flat(state, model.use_bias)
    gradient = systems.compiled(jax.grad(logit_losses.risk_of(model)))(x)
    assert float(jnp.linalg.norm(gradient)) < tolerance * max(1.0, float(np.linalg.norm(x)))


# counts, p, (lam_W, lam_H, lam_b), bias, reduction; mu is below the threshold in all
SETTINGS = [
    ((4,) * 3, 5, (0.2, 0.7, 0.3), True, "sum"),
    ((2,) * 4, 3, (0.3, 0.3, 0.0), True, "sum"),
    ((9,) * 3, 4, (1e-3, 2e-2, 0.0), False, "mean"),
    ((1,) * 5, 4, (1e-6, 1e-6, 1e-6), True, "sum"),
    ((5,) * 2, 2, (0.05, 0.01, 0.1), True, "mean"),
]


@pytest.mark.parametrize(("counts", "p", "decay", "use_bias", "reduction"), SETTINGS)
def test_cross_entropy_ends_in_the_simplex_frame(counts, p, decay, use_bias, reduction):
    """`W W^T = alpha^2 P`, `W H = rho P`, H from W, and the risk, all explicit in the decay."""
    model = ufm(counts, p, decay, use_bias=use_bias, reduction=reduction)
    C, N, a = len(counts), counts[0], 1.0 if reduction == "sum" else 1 / sum(counts)
    mu, s, P = math.sqrt(decay[0] * decay[1]), math.sqrt(counts[0]), systems.centring(C)
    phi = mu / (a * s)
    rho = math.log(1 + C * (1 / phi - 1))
    found = minimiser(model)
    H, W, b = systems.arrays(found.state)
    rtol = 64 * EPS
    np.testing.assert_allclose(found.rho, rho, rtol=rtol)
    np.testing.assert_allclose(W @ W.T, rho * math.sqrt(N * decay[1] / decay[0]) * P, atol=rtol * np.sum(W**2))
    np.testing.assert_allclose(W @ H, rho * np.repeat(P, N, axis=1), atol=rtol * rho)
    expected = math.sqrt(decay[0] / (decay[1] * N)) * np.repeat(W.T, N, axis=1)
    np.testing.assert_allclose(H, expected, atol=rtol * np.abs(H).max())
    np.testing.assert_array_equal(b, 0)
    risk = a * C * N * math.log1p((C - 1) * math.exp(-rho)) + mu * s * (C - 1) * rho
    np.testing.assert_allclose(found.risk, risk, rtol=rtol)
    np.testing.assert_allclose(found.threshold, a * s, rtol=rtol)
    assert bool(found.collapsed)
    critical(model, found.state)


DECAYS = (0.5, 0.2, 0.1)
SMALL = {
    "cross-entropy": ufm((2, 2, 2), 3, DECAYS),
    "label smoothing": ufm((2, 2, 2), 2, DECAYS, "label-smoothing:0.1"),
    "focal": ufm((2, 2, 2), 3, DECAYS, "focal:2"),
    "imbalanced": ufm((3, 1, 2), 3, DECAYS),
    "imbalanced, free bias": ufm((3, 1, 1), 2, (0.5, 0.2, 0.0)),
    "imbalanced, smoothing, mean": ufm((3, 1, 1), 3, (0.05, 0.05, 0.01), "label-smoothing:0.2", reduction="mean"),
    "squared": ufm((2, 2, 2), 3, (0.5, 0.2, 0.3), "squared"),
    "squared, imbalanced": ufm((3, 1, 2), 3, DECAYS, "squared"),
    "squared, mean": ufm((3, 1, 2), 3, (0.05, 0.05, 0.0), "squared", reduction="mean"),
    "squared, few features": ufm((3, 1, 2), 2, DECAYS, "squared", use_bias=False),
    "squared, two features fewer": ufm((3, 2, 1, 1), 2, (0.3, 0.2, 0.0), "squared"),
}


@pytest.mark.parametrize("name", SMALL)
def test_newtons_method_finds_nothing_lower_and_often_the_same(name):
    model = SMALL[name]
    found, lowest = minimiser(model), logit_losses.descend(model, seeds=4)
    critical(model, found.state)
    assert lowest.min() > float(found.risk) * (1 - 1e-12)
    np.testing.assert_allclose(lowest.min(), found.risk, rtol=1e-9)


@pytest.mark.parametrize(
    ("loss", "reduction", "counts", "use_bias"),
    [
        ("cross-entropy", "mean", (4, 4, 4), True),
        ("label-smoothing:0.2", "mean", (4, 4, 4), True),
        ("focal:1", "sum", (4, 4, 4), True),
        ("cross-entropy", "sum", (5, 2, 3), True),
        ("cross-entropy", "mean", (5, 2, 3), False),
        ("squared", "sum", (5, 2, 3), True),
        ("squared", "sum", (5, 2, 3), False),
    ],
)
def test_everything_vanishes_above_the_threshold_and_not_below(loss, counts, use_bias, reduction):

    def at(mu):  # three decays also where they are equal, so that one program serves all
        return minimiser(ufm(counts, 3, (mu, mu, 0.01), loss, use_bias=use_bias, reduction=reduction))

    threshold = float(at(0.01).threshold)
    below, above = (at(r * threshold) for r in (0.98, 1.02))
    np.testing.assert_allclose(above.threshold, threshold, rtol=1e-4 if use_bias and len(set(counts)) > 1 else 1e-12)
    assert float(jnp.linalg.norm(above.state.W)) < 1e-7
    assert not above.learned.any()
    assert float(jnp.linalg.norm(below.state.W)) > 1e-2
    assert below.learned.any()


def test_the_threshold_is_that_of_the_counts():
    """`a s (1 - eps)`; `a ||P diag(sqrt n)||_op` without a bias; `a sqrt(max n)` and `max sing Y(I - 11^T/M)`."""
    counts = (5, 2, 3)
    n = np.array(counts)
    P, u = systems.centring(3), np.sqrt(n)
    left = np.diag(u) - np.outer(n, u) / n.sum()
    expected = {
        (True, "squared"): np.linalg.norm(left, 2),
        (False, "squared"): np.sqrt(5),
        (False, "cross-entropy"): np.linalg.norm(P * u, 2),
        (False, "label-smoothing:0.2"): 0.8 * np.linalg.norm(P * u, 2),
        (True, "cross-entropy"): np.linalg.norm(left, 2),  # with b = ln n all logits predict n / M
    }
    for (use_bias, loss), value in expected.items():
        found = minimiser(ufm(counts, 3, (0.1, 0.1, 0.0), loss, use_bias=use_bias)).threshold
        np.testing.assert_allclose(found, value, rtol=1e-12)


# ---- the focal loss


def test_the_focal_loss_with_many_classes_jumps():
    """C = 40, gamma = 2: the three thresholds, and on both sides of the jump the lower of two local minima."""
    model = ufm((1,) * 40, 40, 1.0, "focal:2")
    thresholds = [float(x) for x in fc.theory.transition(model)]
    np.testing.assert_allclose(thresholds, [1.13046, 1.14973, 1.15793], atol=5e-6)
    rho = np.linspace(0.0, 12.0, 200_001)
    p = np.exp(rho) / (np.exp(rho) + 39)
    loss = -((1 - p) ** 2) * np.log(p)
    for mu in (1.12, 1.14, 1.1496, 1.1499, 1.157, 1.16):
        found = minimiser(ufm((1,) * 40, 40, mu, "focal:2"))
        risk = 40 * loss + mu * 39 * rho
        np.testing.assert_allclose(found.risk, risk.min(), rtol=1e-8)
        assert abs(float(found.rho) - rho[risk.argmin()]) < 1e-3
        assert bool(found.collapsed) == (mu < thresholds[1])


@pytest.mark.parametrize(("gamma", "first"), [(1, 24), (2, 18), (3, 18), (5, 20)])
def test_the_jump_begins_at_a_number_of_classes(gamma, first):
    below, above = (fc.theory.transition(ufm((1,) * C, C, 1.0, f"focal:{gamma}")) for C in (first - 1, first))
    assert float(below.frame_ends / below.origin_stable) == pytest.approx(1, abs=1e-12)
    assert float(above.frame_ends / above.origin_stable) > 1 + 1e-7
    assert above.origin_stable < above.origin_minimal < above.frame_ends


# ---- losses that are the same


@pytest.mark.parametrize("decay", [0.3, 1.9, 2.1])
def test_smoothing_and_focus_zero_are_cross_entropy(decay):
    plain = minimiser(ufm((4, 4, 4), 4, decay))
    for loss in ("label-smoothing:0", "focal:0", fc.losses.CrossEntropy(jnp.asarray(0.0))):
        other = minimiser(ufm((4, 4, 4), 4, decay, loss))
        for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


def test_two_classes_are_logistic_regression():
    """With two classes the loss is `ln(1 + e^{-m})` of the margin m, and `N l'(m) ... ` has one unknown."""
    N, mu = 3, 0.4
    found = minimiser(ufm((N, N), 2, (mu, mu, 0.0)))
    margins = np.linspace(0, 10, 2_000_001)
    risk = 2 * N * np.log1p(np.exp(-margins)) + mu * math.sqrt(N) * margins
    assert abs(float(found.rho) - margins[risk.argmin()]) < 1e-5
    np.testing.assert_allclose(found.risk, risk.min(), rtol=1e-11)


class Convex(Trial):
    """Cross-entropy as a user writes it, who says only that it is convex."""

    convex = True
    shift_invariant = True


@pytest.mark.parametrize("counts", [(4, 4, 4), (20, 20, 5)])
def test_a_loss_of_ones_own_is_minimised_numerically(counts):
    options = {"p": 4, "decay": (0.4, 0.9, 0.2)}
    own, known = (minimiser(ufm(counts, loss=loss, **options)) for loss in (Convex(), "cross-entropy"))
    np.testing.assert_allclose(own.risk, known.risk, rtol=1e-12)
    np.testing.assert_allclose(own.state.W @ own.state.X, known.state.W @ known.state.X, atol=1e-8)
    np.testing.assert_allclose(own.threshold, known.threshold, rtol=1e-12)
    np.testing.assert_allclose(own.rho, np.broadcast_to(known.rho, 3), rtol=1e-7)


# ---- imbalance


@pytest.mark.parametrize(("reduction", "use_bias"), [("sum", True), ("mean", False)])
@pytest.mark.parametrize("ratio", [0.9, 0.97, 1.03, 1.1])
def test_minority_collapse(ratio, use_bias, reduction):
    """The small classes merge if and only if `mu >= a sqrt(n_B)`; `p_on - p_off = max(0, 1 - mu/(a sqrt n))`."""
    counts, n = (16, 4, 16, 4, 4), np.array([16, 4, 16, 4, 4])
    a = 1.0 if reduction == "sum" else 1 / n.sum()
    mu = ratio * a * 2
    found = minimiser(ufm(counts, 5, (mu / 2, mu * 2, 0.1 * a), use_bias=use_bias, reduction=reduction))
    logits = found.state.W @ found.state.X / np.sqrt(n) + found.state.b[:, None]
    p = np.array(jax.nn.softmax(logits, axis=0))
    for k in range(5):
        twin = next(j for j in range(5) if j != k and counts[j] == counts[k])
        np.testing.assert_allclose(p[k, k] - p[twin, k], max(0, 1 - mu / (a * math.sqrt(n[k]))), atol=1e-11)
    minority = found.state.W[np.array([1, 3, 4])]
    spread = float(jnp.abs(minority - minority.mean(axis=0)).max())
    assert (spread < 1e-6) == (ratio > 1)
    assert found.learned.tolist() == [True, ratio < 1, True, ratio < 1, ratio < 1]
    assert bool(found.collapsed) == (ratio < 1)


def test_the_squared_error_of_unequal_counts_keeps_the_classes_apart():
    """`sigma_k = (sqrt n_k - mu/a)_+` in an orthogonal frame, and class k vanishes iff `n_k <= (mu/a)^2`."""
    counts, (lam_W, lam_H) = (9, 4, 1), (0.5, 8.0)
    n = np.array(counts)
    found = minimiser(ufm(counts, 4, (lam_W, lam_H, 0.0), "squared", use_bias=False))
    sigma = np.maximum(np.sqrt(n) - 2, 0)
    H, W, _ = systems.arrays(found.state)
    means, deviations = systems.means_and_deviations(H, n)
    np.testing.assert_allclose(W @ W.T, math.sqrt(lam_H / lam_W) * np.diag(sigma), atol=64 * EPS)
    np.testing.assert_allclose(means.T @ means, math.sqrt(lam_W / lam_H) * np.diag(sigma / n), atol=64 * EPS)
    assert np.abs(deviations).max() < 16 * EPS
    assert found.learned.tolist() == [True, False, False]


def test_balanced_squared_error_is_the_limit_of_small_starts():
    for decay in [
        (0.5, 0.5, 0.0),
        (0.4, 0.9, 0.0),
        (0.5, 0.5, 1.0),
        (0.1, 0.1, 2.0),
        (0.2, 0.05, 1.5),
        (3.0, 3.0, 0.3),
    ]:
        model = ufm((4, 4, 4), 5, decay, "squared")
        found, limit = minimiser(model), limits.decay_limit(model)
        np.testing.assert_allclose(found.state.W @ found.state.W.T, limit.gram, atol=64 * EPS)
        np.testing.assert_allclose(found.state.b, limit.b, atol=16 * EPS)


def test_without_decay_smoothed_labels_are_fitted_and_the_risk_is_their_entropy():
    eps = 0.2
    for counts in [(3, 3, 3), (4, 1, 2)]:
        found = minimiser(ufm(counts, 2, 0.0, f"label-smoothing:{eps}"))
        rho = math.log(1 + 3 * (1 / eps - 1))
        np.testing.assert_allclose(found.rho, np.full(np.shape(found.rho), rho), rtol=64 * EPS)
        q = np.array([1 - eps + eps / 3, eps / 3, eps / 3])
        np.testing.assert_allclose(found.risk, -sum(counts) * np.sum(q * np.log(q)), rtol=64 * EPS)


# ---- the spectrum


SPECTRA = {
    "cross-entropy": ufm((3,) * 4, 5, (0.3, 0.7, 0.2)),
    "p = C - 1": ufm((2,) * 4, 3, (0.3, 0.7, 0.2)),
    "two classes": ufm((3,) * 2, 3, (0.3, 0.2, 0.2)),
    "no bias, mean": ufm((2,) * 5, 5, (0.03, 0.02, 0.0), use_bias=False, reduction="mean"),
    "smoothing": ufm((3,) * 3, 4, (0.3, 0.3, 0.5), "label-smoothing:0.1"),
    "focal": ufm((3,) * 3, 3, (0.3, 0.2, 0.5), "focal:2"),
    "origin": ufm((3,) * 3, 3, (2.0, 3.0, 0.5)),
    "origin, p below": ufm((3,) * 4, 2, (2.0, 2.0, 0.5), "label-smoothing:0.1"),
    "origin, no bias, focal": ufm((3,) * 3, 3, (2.0, 4.0, 0.5), "focal:1", use_bias=False),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectrum_at_the_minimum(name):
    """Each listed value is an eigenvalue of the dense Hessian with at least its multiplicity."""
    model = SPECTRA[name]
    found = minimiser(model)
    spectrum = found.spectrum
    assert spectrum is not None
    exact = np.linalg.eigvalsh(
        systems.compiled(jax.hessian(logit_losses.risk_of(model)))(logit_losses.flat(found.state, model.use_bias))
    )
    C = model.num_classes
    missing = 0 if name.startswith("origin") else (3 + model.use_bias - 2 * (C == 2)) * (C - 1)
    assert spectrum.total == num_parameters(model) - missing == len(exact) - missing
    left = list(exact)
    for value in np.asarray(spectrum.eigenvalues):
        nearest = int(np.argmin(np.abs(np.array(left) - value)))
        assert abs(left.pop(nearest) - value) < 1e-12 * exact[-1]
    assert min(exact) > -1e-12 * exact[-1]


def test_a_spectrum_is_given_only_where_it_is_known():
    assert minimiser(ufm((3, 2, 2), 3, 0.1)).spectrum is None
    assert minimiser(ufm((3, 3, 3), 3, 0.1, "squared")).spectrum is None


# ---- inside programs


def rest(found):
    """The scale of the logits, and the logits."""
    return found.rho, found.state.W @ found.state.X


def test_derivatives_are_those_of_the_minimum():
    """The risk's derivative in lam_W is `1/2 ||W||^2`; rho and the logits agree with differences."""
    for counts, loss in [((3, 3, 3), "cross-entropy"), ((3, 3, 3), "focal:2"), ((4, 1, 2), "cross-entropy")]:

        def value(lam_W, counts=counts, loss=loss):
            found = minimiser(ufm(counts, 3, (lam_W, 0.3, 0.2), loss))
            return found.risk, rest(found)

        def both_ways(lam_W, value=value):
            forward = jax.jvp(value, (lam_W,), (jnp.ones_like(lam_W),))[1]
            (_, aux), pull = jax.vjp(value, lam_W)
            return forward, pull((jnp.ones(()), jax.tree.map(jnp.zeros_like, aux)))[0]

        (slope, of_rest), backward = systems.compiled(both_ways)(0.4)
        h = 1e-5
        W, up, down = (minimiser(ufm(counts, 3, (lam_W, 0.3, 0.2), loss)) for lam_W in (0.4, 0.4 + h, 0.4 - h))
        np.testing.assert_allclose(slope, 0.5 * jnp.sum(W.state.W**2), rtol=1e-10)
        for found, one, two in zip(of_rest, rest(up), rest(down), strict=True):
            np.testing.assert_allclose(found, (one - two) / (2 * h), atol=1e-7)
        np.testing.assert_allclose(backward, slope, rtol=1e-12)


@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 1, 2)])
def test_one_program_serves_all_decays(counts):
    decays = jnp.array([0.1, 0.9, 2.5])
    together = jax.jit(jax.vmap(lambda lam: minimiser(ufm(counts, 3, (lam, 0.3, 0.2)))))(decays)
    for i, lam in enumerate(decays.tolist()):
        one = minimiser(ufm(counts, 3, (lam, 0.3, 0.2)))
        np.testing.assert_allclose(together.risk[i], one.risk, rtol=1e-12)
        np.testing.assert_allclose(together.rho[i], one.rho, atol=1e-9)


@pytest.mark.usefixtures("thirty_two_bits")
def test_single_precision():
    for counts in ((4, 4, 4), (6, 2, 2)):
        found = minimiser(ufm(counts, 3, (0.4, 0.4, 0.0)))
        assert found.risk.dtype == jnp.float32
        assert bool(found.collapsed)


# ---- bad input

CASES = {
    "no minimum": (ufm((3, 3), 2, 0.0), ["weight_decay is 0.0", "'cross-entropy'", "max_margin"]),
    "no decay of H": (ufm((3, 3), 2, (0.1, 0.0, 0.0)), ["(0.1, 0.0, 0.0)", "only one of W and H"]),
    "no decay of W": (ufm((3, 3), 2, (0.0, 0.1, 0.0), "squared"), ["(0.0, 0.1, 0.0)", "only one of W and H"]),
    "few features": (ufm((3,) * 5, 3, 0.1), ["num_features is 3", "raise num_features to 4"]),
    "few features, imbalanced": (ufm((3, 4, 5, 6, 7), 2, 0.1), ["num_features is 2", "raise num_features"]),
    "few features, smoothing": (ufm((3,) * 5, 3, 0.0, "label-smoothing:0.1"), ["num_features is 3", "raise"]),
    "few features, a bias that decays": (
        ufm((3,) * 3, 2, (0.01, 0.01, 1.0), "squared"),
        ["num_features is 2", "raise"],
    ),
    "focal, imbalanced": (ufm((3, 2), 2, 0.1, "focal:2"), ["'focal:gamma=2.0'", "(3, 2)", "use equal counts"]),
    "not known to be convex": (ufm((3, 3), 2, 0.1, Trial()), ["'trial'", "convex"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    model, fragments = CASES[name]
    systems.assert_refused(lambda: minimiser(model), fragments)


def test_few_features_are_enough_where_the_best_logits_have_few_modes():
    """Above the threshold every p will do; and merged classes need one feature for all of them."""
    assert not minimiser(ufm((3,) * 5, 2, 2.0)).learned.any()
    merged = minimiser(ufm((16, 4, 4, 4), 2, 2.5, use_bias=False))
    assert merged.learned.tolist() == [True, False, False, False]
    critical(ufm((16, 4, 4, 4), 2, 2.5, use_bias=False), merged.state)

"""Margins, logits and the residual: their definitions sample by sample, and strong collapse of other losses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from trial_losses import Scaled, Trial

import flowcollapse as fc
from flowcollapse.metrics.registry import METRICS, checked_names
from flowcollapse.model.columns import SAMPLES, ClassMeanColumns
from flowcollapse.model.coordinates import enter
from flowcollapse.sweeps.grid import make_grid
from flowcollapse.sweeps.lane import common_metrics

EPS = float(np.finfo(np.float64).eps)
KEY = jax.random.key(0)
NAMES = ("margin", "normalised_margin", "smoothed_margin", "logit_spread", "alignment", "residual_norm")
SOFTMAX = NAMES[:-1]
SNC = ("snc1", "snc2", "snc3")


def by_samples(model: fc.UFM, state: fc.State) -> dict[str, Any]:
    """The definitions in NumPy, one sample after the other; for cross-entropy and the squared error."""
    H, W, b = systems.arrays(state)
    C, counts = model.num_classes, np.array(model.counts)
    labels = np.repeat(np.arange(C), counts)
    Z = W @ H + b[:, None]
    others = [np.delete(z, y) for z, y in zip(Z.T, labels, strict=True)]
    margin = min(float(z[y] - max(other)) for z, y, other in zip(Z.T, labels, others, strict=True))
    square = np.sum(W**2) + np.sum(H**2)
    Y, centre = np.eye(C)[:, labels], systems.centring(C)
    if model.loss.squared_error:
        R, G = 0.5 * np.sum((Z - Y) ** 2), Z - Y
        targets = np.diag(np.sqrt(counts)) @ (np.eye(C) - np.sqrt(np.outer(counts, counts)) / sum(counts))
    else:
        R = sum(np.log(np.sum(np.exp(z - z[y]))) for z, y in zip(Z.T, labels, strict=True))
        G = np.exp(Z) / np.sum(np.exp(Z), axis=0) - Y
        targets = centre @ np.diag(np.sqrt(counts))
    U, _, Vt = np.linalg.svd(targets)
    means = np.array([H[:, labels == c].mean(axis=1) for c in range(C)]).T
    one, other = W.T @ U[:, :-1], means * np.sqrt(counts) @ Vt[:-1].T
    rho = np.sum(centre @ Z * (centre @ Y)) / np.sum((centre @ Y) ** 2)
    return {
        "margin": margin,
        "normalised_margin": margin / (0.5 * square),
        "smoothed_margin": -np.log(np.expm1(R)) / square,
        "logit_spread": np.linalg.norm(centre @ Z - rho * centre @ Y) / np.linalg.norm(centre @ Z),
        "alignment": np.linalg.norm(one / np.linalg.norm(one) - other / np.linalg.norm(other)),
        "residual_norm": np.linalg.norm(G, 2) * model.scale,
    }


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("loss", ["cross-entropy", "squared"])
@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 1, 3)])
def test_every_metric_is_its_definition(counts, loss, reduction):
    model = systems.model_of(counts, 4, loss=loss, reduction=reduction)
    state = systems.random_state(model, size=0.7)
    found = fc.metrics.evaluate(model, state, NAMES)
    for name, value in by_samples(model, state).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("samples", [2, 9])
def test_class_means_and_compressed_rows_have_the_margins_of_the_samples(samples):
    """Class means with a part within the classes, in the fixed basis and in a factorised one, and compressed rows."""
    model = systems.model_of((samples,) * 3, 3)
    state = systems.random_state(model)
    means = fc.to_class_means(model, state)
    assert means.L.shape[1] > 0
    wide = systems.model_of((samples,) * 3, 40 * samples)
    broad = systems.random_state(wide, size=0.1)
    frame, _, point = enter(wide, broad, "auto")
    assert frame.rows is not None
    for one, two, of_model in ((state, means, model), (broad, frame.leave(point), wide)):
        first, second = (fc.metrics.evaluate(of_model, x, NAMES) for x in (one, two))
        for name in NAMES:
            np.testing.assert_allclose(first[name], second[name], rtol=1e-10, atol=1e-13, err_msg=name)
    path = fc.simulate(wide, broad, fc.Descent("sgd", 1, learning_rate=1e-9), 2, metrics=NAMES)
    for name, value in by_samples(wide, broad).items():
        np.testing.assert_allclose(path.metrics[name][0], value, rtol=1e-10, err_msg=name)


def test_a_collapsed_state_has_its_margins_whatever_the_number_of_samples():
    """All samples of a class share a margin: 10^9 of them, whose logits fill no memory, cost as much as one."""
    counts = (10**9, 10**9, 10**9)
    model, small = (systems.model_of(n, 4, loss="cross-entropy") for n in (counts, (1, 1, 1)))
    means, W = np.random.default_rng(0).normal(size=(2, 4, 3))
    b = np.arange(3.0)
    state = fc.State(X=means * 1e9**0.5, W=W.T, b=b, columns=ClassMeanColumns(counts))
    one = fc.metrics.evaluate(small, fc.State(H=means, W=W.T, b=b), "margin")
    np.testing.assert_allclose(fc.metrics.evaluate(model, state, "margin")["margin"], one["margin"], rtol=1e-12)


# ---- large logits


@pytest.mark.parametrize("rho", [1e3, 1e5])
@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_overflows_at_large_logits(rho, sign):
    """At logits `rho P` the margin is rho and R is `C N ln(1 + (C - 1) e^-rho)`, here far below or above any number."""
    C, N = 4, 3
    model = systems.model_of((N,) * C, C, loss="cross-entropy")
    W = systems.centring(C) * (rho * N**0.5) ** 0.5
    H = sign * np.repeat(W.T, N, axis=1) / N**0.5
    found = fc.metrics.evaluate(model, fc.State(H=H, W=W, b=np.zeros(C)), (*NAMES, "risk"))
    square = 2 * rho * N**0.5 * (C - 1)
    log_excess = np.log(C * N * (C - 1)) - rho if sign > 0 else C * N * (rho + np.log1p((C - 2) * np.exp(-rho)))
    # With sign -1 the class has the logit -rho (1 - 1/C) and the others are rho / C, all C - 1 of them.
    log_excess = log_excess if sign > 0 else C * N * (rho + np.log(C - 1))
    np.testing.assert_allclose(found["margin"], sign * rho, rtol=1e-12)
    np.testing.assert_allclose(found["normalised_margin"], sign * rho / (square / 2), rtol=1e-12)
    np.testing.assert_allclose(found["smoothed_margin"], -log_excess / square, rtol=1e-10)
    np.testing.assert_allclose(found["logit_spread"], 0, atol=1e-12)
    assert all(np.isfinite(value) for value in found.values())


def test_ratios_at_zero_are_nan():
    model = systems.model_of((3, 3, 3), 4, loss="cross-entropy")
    zero = jax.tree.map(jnp.zeros_like, systems.random_state(model))
    found = fc.metrics.evaluate(model, zero, NAMES)
    assert {name for name, value in found.items() if np.isnan(value)} == set(NAMES) - {"margin", "residual_norm"}
    assert float(found["margin"]) == 0
    np.testing.assert_allclose(found["residual_norm"], 3**0.5, rtol=16 * EPS)


# ---- laws


@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 2, 1)])
def test_the_smoothed_margin_never_decreases_once_the_risk_is_below_ln_2(counts):
    """Lyu and Li 2020, for the flow of cross-entropy without decay and bias, from t = 1 to e^50."""
    model = systems.model_of(counts, 4, loss="cross-entropy", use_bias=False)
    start = fc.initial.sphere(model, 1.0, key=KEY)
    path = fc.simulate(
        model, start, fc.Flow(rtol=1e-9), np.exp(np.linspace(0, 50, 101)), metrics="smoothed_margin,risk"
    )
    smooth = np.asarray(path.metrics["smoothed_margin"])[np.asarray(path.metrics["risk"]) < np.log(2)]
    assert len(smooth) > 50
    assert np.all(np.diff(smooth) >= -1e-8)
    assert smooth[-1] > 1.1 * smooth[0]


def test_the_normalised_margin_approaches_that_of_the_frame():
    """`margin / (1/2 ||theta||^2)` tends to `1 / (s (C - 1))`, and the misalignment falls like `1 / log t`.

    Sources: Ji et al. 2022 for the margin; the rate is derived here.
    """
    C, N = 3, 2
    model = systems.model_of((N,) * C, C - 1, loss="cross-entropy", use_bias=False)
    start = fc.initial.sphere(model, 1.0, key=KEY)
    names = ("normalised_margin", "alignment", "logit_spread")
    path = fc.simulate(model, start, fc.Flow(clock="log", rtol=1e-8), [200.0, 400.0], metrics=names)
    np.testing.assert_allclose(path.metrics["normalised_margin"][-1], 1 / (N**0.5 * (C - 1)), rtol=1e-3)
    early, late = path.metrics["alignment"]
    # The logits grow like ln t + ln ln t + ln(2 s C), see `docs/explanation/theory.md`.
    rho = np.array([time + np.log(time) + np.log(2 * N**0.5 * C) for time in (200.0, 400.0)])
    np.testing.assert_allclose(late / early, rho[0] / rho[1], rtol=1e-2)
    assert path.metrics["logit_spread"][-1] < 1e-6


@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 2, 1)])
def test_the_largest_margin_has_aligned_and_collapsed_logits(counts):
    """`W` and `B` are the two halves of the singular value decomposition of `P diag(sqrt n)` (Thrampoulidis 2022)."""
    model = systems.model_of(counts, 4, loss="cross-entropy")
    U, s, Vt = np.linalg.svd(systems.centring(3) * np.sqrt(counts))
    halves = np.sqrt(s[:2])
    W, B = np.zeros((3, 4)), np.zeros((4, 3))
    W[:, :2], B[:2] = U[:, :2] * halves, halves[:, None] * Vt[:2]
    state = fc.State(X=B, W=W, b=np.full(3, 7.0), columns=ClassMeanColumns(counts))
    found = fc.metrics.evaluate(model, state, NAMES)
    for name in ("logit_spread", "alignment"):
        assert float(found[name]) < 1e-14, name
    np.testing.assert_allclose(found["margin"], 1, rtol=1e-13)
    np.testing.assert_allclose(found["normalised_margin"], 1 / np.sum(s), rtol=1e-13)


DECAYED = {
    "cross-entropy": ("cross-entropy", 0.3, "sum"),
    "unequal decay": ("cross-entropy", (0.1, 0.4, 0.2), "sum"),
    "free bias": ("cross-entropy", (0.2, 0.3, 0.0), "sum"),
    "mean": ("cross-entropy", 0.3 / 12, "mean"),
    "above the threshold": ("cross-entropy", 2.0, "sum"),
    "label smoothing": ("label-smoothing:0.1", 0.3, "sum"),
    "focal": ("focal:2", (0.1, 0.4, 0.2), "sum"),
}


@pytest.mark.parametrize("name", DECAYED)
def test_flows_with_decay_collapse_strongly(name):
    """SNC1 to SNC3 fall below 1e-6 by the default end, where 2e-9 of the start is left. Above mu = s all is zero."""
    loss, decay, reduction = DECAYED[name]
    model = systems.model_of((3, 3, 3, 3), 6, loss=loss, weight_decay=decay, reduction=reduction)
    start = fc.initial.sphere(model, 1.0, key=KEY)
    start = fc.State(H=start.H, W=start.W, b=jnp.arange(4.0))
    path = fc.simulate(model, start, fc.Flow(rtol=1e-9), 3)
    assert set(SNC) < set(path.metrics)
    assert float(path.metrics["snc1"][-1]) < 1e-6
    assert float(path.metrics["snc3"][-1]) < 1e-6
    assert name == "above the threshold" or float(path.metrics["snc2"][-1]) < 1e-6
    assert min(float(path.metrics[name][0]) for name in SNC) > 0.1


def test_label_smoothing_without_decay_has_a_target():
    model = systems.model_of((3, 3, 3), 2, loss="label-smoothing:0.2")
    rho, W = np.log(1 + 3 * 4), np.linalg.svd(systems.centring(3))[0][:, :2]
    W = W * (rho * 3**0.5) ** 0.5
    state = fc.State(H=np.repeat(W.T, 3, axis=1) / 3**0.5, W=W, b=np.full(3, -2.0))
    assert max(map(float, fc.metrics.snc(model, state))) < 1e-13
    assert float(fc.metrics.evaluate(model, state, "grad_norm")["grad_norm"]) < 1e-13


# ---- which there are


def test_the_defaults_belong_to_the_loss():
    squared, entropy, smoothing = (
        systems.model_of((3, 3, 3), 4, loss=loss) for loss in ("squared", "cross-entropy", "label-smoothing:0.1")
    )
    usual = checked_names(squared, SAMPLES, None)
    assert usual == tuple(name for name, metric in METRICS.items() if metric.usual and name not in NAMES)
    nothing = {*SNC, "distance", "relative_distance"}
    assert set(checked_names(entropy, SAMPLES, None)) == (set(usual) | set(SOFTMAX)) - nothing
    assert set(checked_names(smoothing, SAMPLES, None)) == (set(usual) | set(SOFTMAX)) - nothing | set(SNC)
    assert checked_names(squared, SAMPLES, NAMES) == NAMES


REFUSED = {
    "no decay": ("cross-entropy", 0.0, r"the loss 'cross-entropy' lacks.*0 of W and 0 of H: set both, or use margin"),
    "decay of W": ("focal:2", (0.1, 0.0, 0.0), r"'focal:gamma=2.0'.*0\.1 of W and 0 of H: set both, or use margin"),
    "one decay": ("label-smoothing:0.1", (0.0, 0.1, 0.0), r"0 of W and 0\.1 of H: set both or neither"),
    "another loss": (Trial(), 0.3, r"squared error or of a loss of the softmax.*'trial': leave it out"),
    "a multiple": (Scaled(), 0.0, r"squared error or of a loss of the softmax.*'scaled.*: leave it out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_without_a_minimum_has_no_strong_collapse(name):
    loss, decay, message = REFUSED[name]
    model = systems.model_of((3, 3, 3), 4, loss=loss, weight_decay=decay)
    state = systems.random_state(model)
    for metric in SNC:
        with pytest.raises(fc.UsageError, match=f"'{metric}'.*{message}"):
            fc.metrics.evaluate(model, state, metric)
    with pytest.raises(fc.UsageError, match=message):
        fc.metrics.snc(model, state)
    assert not set(SNC) & set(fc.metrics.evaluate(model, state))


def test_where_the_decay_is_traced_a_missing_target_is_nan():
    model = systems.model_of((3, 3, 3), 4, loss="cross-entropy", weight_decay=0.3)
    state = systems.random_state(model)

    @jax.jit
    @jax.vmap
    def values(decay):
        return fc.metrics.evaluate(model.with_numbers({"weight_decay": decay}), state, SNC)

    found = values(jnp.asarray([0.0, 0.3]))
    expected = fc.metrics.evaluate(model, state, SNC)
    for name in SNC:
        assert np.isnan(found[name][0])
        np.testing.assert_allclose(found[name][1], expected[name], rtol=1e-12)


def test_a_sweep_has_the_targets_that_every_lane_has():
    model = systems.model_of((3, 3, 3), 4, loss="cross-entropy")
    some, all_ = (
        make_grid(model, fc.Flow(), [0.1], 1, {"weight_decay": decays}) for decays in ([0.0, 0.1], [0.1, 0.2])
    )
    assert not set(SNC) & set(common_metrics(some, None))
    assert set(SNC) < set(common_metrics(all_, None))
    assert common_metrics(all_, SNC) == SNC
    with pytest.raises(fc.UsageError, match=r"'snc1'.*0 of W and 0 of H"):
        common_metrics(some, SNC)

"""A fit recovers the model that made a curve: its time scale, the growing part of its start, its decay, its level."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import systems
import xarray as xr

import flowcollapse as fc
from flowcollapse.fitting.closed_forms import MOST_SHAPES, Setting, predicted, shapes_basis

SCALE = 0.05
"""Model time per epoch in the curves below."""

RTOL = 1e-12
"""That of the reference flow, far below what a start off S adds."""


def classifier(C: int, p: int, eps: float, seed: int = 0) -> np.ndarray:
    """A W on S with the norm eps, and modes that differ by a factor of at least 1.5."""
    rng = np.random.default_rng([7, C, p, seed])
    k = min(C - 1, p)
    U = np.linalg.qr(systems.centring(C) @ rng.normal(size=(C, k)))[0]
    V = np.linalg.qr(rng.normal(size=(p, k)))[0]
    sigma = 1.5 ** -np.arange(k)
    return eps * (U * sigma / np.linalg.norm(sigma)) @ V.T


def run_on_subspace(C: int, N: int, p: int, eps: float, decay: float = 0.0, epochs: int = 101, end: float = 1.6):
    """Epochs and path on S, until `end` times the half time of the slowest mode; W at the start."""
    W, s = classifier(C, p, eps), math.sqrt(N)
    slowest = np.linalg.svd(W, compute_uv=False)[min(C - 1, p) - 1]
    last = end * math.log(s / slowest**2) / (2 * (s - decay))
    epoch = np.linspace(0.0, last / SCALE, epochs)
    return epoch, systems.flow_on_subspace(W, 0.0, N, SCALE * epoch, (decay,) * 3), W


def risks(path: systems.Arrays, counts, decay: float = 0.0) -> np.ndarray:
    return np.array([systems.risk(systems.Arrays(*point), counts, (decay,) * 3) for point in zip(*path, strict=True)])


def shapes_of(mu: np.ndarray) -> np.ndarray:
    """The shapes that describe up to five modes: `ln mu` in the basis, with a positive first coefficient, squared."""
    basis, logs = shapes_basis(len(mu), min(len(mu) - 1, MOST_SHAPES)), np.sort(np.log(mu))
    shapes = np.linalg.lstsq(basis, logs - np.mean(logs), rcond=None)[0]
    if len(shapes) and shapes[0] < 0:
        shapes = np.linalg.lstsq(basis, logs[::-1] - np.mean(logs), rcond=None)[0]
    return np.concatenate([shapes[:1] ** 2, shapes[1:]])


@pytest.mark.parametrize(
    ("C", "N", "p", "decay", "use_bias"),
    [(3, 4, 5, 0.0, True), (4, 7, 6, 0.3, True), (5, 4, 2, 0.1, True), (3, 4, 5, 0.2, False), (2, 1, 3, 0.0, True)],
)
def test_the_curves_are_those_of_the_flow_on_the_subspace(C, N, p, decay, use_bias, key):
    """Two routes: from the eigenvalues of `W W^T` alone, and by the metrics of the states of the closed form."""
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p, weight_decay=decay, use_bias=use_bias)
    start = fc.initial.on_subspace(model, eps=0.1, key=key)
    ts = jnp.linspace(0.0, 4.0, 30)
    K = C - 1 if use_bias else C
    setting = Setting(C, float(N), min(K, p), max(K - p, 0), False, 1.0, use_bias, True)
    mu = np.linalg.svd(np.asarray(start.W), compute_uv=False)[: setting.num_modes] ** 2
    values = jnp.asarray([0.0, 0.5 * math.log(mu.sum()), decay / math.sqrt(N), 0.0, *shapes_of(mu)])
    found = predicted(setting, setting.names, values, ts)
    states = fc.theory.exact.subspace_flow(model, start, ts)
    expected = fc.metrics.evaluate(model, states, setting.names)
    for name, row in zip(setting.names, found, strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(expected[name]))))
        np.testing.assert_allclose(row, expected[name], atol=1e4 * np.finfo(float).eps * scale, err_msg=name)


@pytest.mark.parametrize(
    ("C", "N", "p", "decay"), [(2, 3, 4, 0.2), (3, 3, 15, 0.0), (4, 7, 6, 0.3), (5, 4, 2, 0.0), (3, 20, 6, 0.05)]
)
def test_a_run_on_the_subspace_is_recovered(C, N, p, decay):
    epoch, path, W = run_on_subspace(C, N, p, 1e-2, decay)
    fit = fc.fit(
        {"epoch": epoch, "risk": risks(path, (N,) * C, decay)},
        num_classes=C, samples_per_class=N, num_features=p, penalised=True,
    )  # fmt: skip
    assert fit.explains, fit
    assert fit.scale.value == pytest.approx(SCALE, rel=1e-6)
    assert fit.eps.value == pytest.approx(1e-2, rel=1e-5)
    assert fit.decay.value == pytest.approx(decay, abs=1e-6)
    mu = np.linalg.svd(W, compute_uv=False)[: len(fit.modes)] ** 2
    np.testing.assert_allclose(fit.modes, mu, rtol=1e-4)
    assert fit.misfit["risk"] < 1e-8


@pytest.mark.parametrize("eps", [1e-3, 1e-2])
def test_a_generic_small_start_is_recovered_up_to_its_size_squared(eps):
    """The curve follows that of the growing part up to eps^2 ln(1/eps); here a start of norm eps in H, W each."""
    C, N, p, counts = 3, 3, 15, (3, 3, 3)
    rng = np.random.default_rng(5)
    H, W = rng.normal(size=(p, C * N)), rng.normal(size=(C, p))
    start = systems.Arrays(eps * H / np.linalg.norm(H), eps * W / np.linalg.norm(W), np.zeros(C))
    epoch = np.linspace(0.0, 12.0 / SCALE, 101)
    path = systems.flow(start, counts, SCALE * epoch, rtol=RTOL)
    fit = fc.fit({"epoch": epoch, "risk": risks(path, counts)}, num_classes=C, samples_per_class=N)
    means, _ = systems.means_and_deviations(start.H, counts)
    V = systems.centring(C) @ (start.W + math.sqrt(N) * means.T) / 2
    allowed = 10 * eps**2 * math.log(1 / eps)
    assert fit.explains, fit
    assert fit.scale.value == pytest.approx(SCALE, rel=allowed)
    assert fit.eps.value == pytest.approx(np.linalg.norm(V), rel=10 * allowed)  # ln eps is 2 s t times as sensitive
    assert fit.decay.value < math.sqrt(N) * allowed**0.5  # the risk at the end is quadratic in a small decay
    np.testing.assert_allclose(fit.modes, np.linalg.svd(V, compute_uv=False)[:2] ** 2, rtol=100 * allowed)


def test_a_run_of_this_package_tells_its_sizes(paper_model, key):
    """A Trajectory, its Dataset, and a mapping with the sizes beside it, give the same fit; metrics are compared."""
    start = fc.initial.on_subspace(paper_model, eps=1e-2, key=key)
    path = fc.simulate(paper_model, start, fc.Flow(rtol=1e-9), metrics=("risk", "snc1", "snc3", "nc1"), ts=61)
    fit = fc.fit(path)
    again = fc.fit(path.to_xarray())
    mapped = fc.fit(
        {"time": path.ts, "loss": path.metrics["risk"]}, num_classes=3, samples_per_class=[3, 3, 3], penalised=True
    )
    assert fit.explains
    assert fit.scale.value == pytest.approx(1.0, rel=1e-6)
    for other in (again, mapped):
        assert other.scale == fit.scale
        assert other.eps == fit.eps
    assert set(fit.r_squared) == {"risk", "snc1", "snc3"}
    assert min(fit.r_squared.values()) > 1 - 1e-9
    both = fc.fit(path, metrics=("snc1", "snc3"))
    assert both.explains
    assert both.scale.value == pytest.approx(1.0, rel=1e-6)
    assert both.eps.value == pytest.approx(1e-2, rel=1e-4)
    np.testing.assert_allclose(fit.predict(path.ts, "risk")["risk"], path.metrics["risk"], atol=1e-7)


@pytest.mark.parametrize("eta", [0.01, 0.05])
def test_a_descent_is_explained_up_to_its_step_size(eta):
    """A step multiplies a small mode by `1 + eta s` where the flow multiplies it by `e^{eta s}`: the rates are off by
    `eta s / 2` at most, and the time scale by the same order."""
    C, N, counts = 3, 4, (4, 4, 4)
    path = systems.descent_on_subspace(classifier(C, 5, 1e-2), 0.0, N, eta, steps=round(8 / eta))
    kept = np.arange(0, round(8 / eta), round(0.08 / eta))
    risk = risks(systems.Arrays(*(part[kept] for part in path)), counts)
    fit = fc.fit({"t": eta * kept, "risk": risk}, num_classes=C, samples_per_class=N)
    assert fit.explains, fit
    assert fit.scale.value == pytest.approx(1.0, abs=eta * math.sqrt(N))


def noisy(seed: int, sigma: float, decay: float = 0.6, end: float = 2.0) -> dict[str, np.ndarray]:
    """The risk of a run of two classes of nine samples with white noise; a decay keeps it above 0 at its plateau."""
    epoch, path, _ = run_on_subspace(2, 9, 4, 1e-3, decay, end=end)
    risk = risks(path, (9, 9), decay)
    noise = np.random.default_rng([seed, 3]).normal(size=len(epoch))
    return {"epoch": epoch[1:], "risk": risk[1:] + sigma * np.ptp(risk) * noise[1:]}


KNOWN: dict[str, Any] = {"num_classes": 2, "samples_per_class": 9, "penalised": True}


def test_the_unit_of_time_changes_the_scale_alone():
    run = noisy(0, 0.01)
    fit = fc.fit(run, **KNOWN)
    slow = fc.fit(run | {"epoch": 7.0 * run["epoch"]}, **KNOWN)
    close = 1e-3  # of the width of each interval: minima are found far more closely than they are determined
    for name, factor in (("scale", 7.0), ("eps", 1.0), ("decay", 1.0)):
        one, other = getattr(fit, name), getattr(slow, name)
        for value, same in zip(one, other, strict=True):
            assert factor * same == pytest.approx(value, abs=close * (one.high - one.low))


def test_the_normalisation_changes_the_level_alone():
    run = noisy(0, 0.01)
    total = 18
    summed = fc.fit(run, **KNOWN)
    for reduction, factor in (("mean", 1 / total), ("mse", 2 / (total * 2)), ("free", 0.37)):
        other = fc.fit(run | {"risk": factor * run["risk"]}, reduction=reduction, **KNOWN)
        width = summed.scale.high - summed.scale.low
        assert other.level.value == pytest.approx(factor, rel=0.01)
        assert other.scale.value == pytest.approx(
            summed.scale.value, abs=width if reduction == "free" else 1e-3 * width
        )
        assert ("level" in other.fixed) == (reduction != "free")


def test_counts_may_differ_a_little():
    run = noisy(0, 1e-3)
    fit = fc.fit(run, num_classes=2, samples_per_class=[9, 9])
    assert fit.setting.samples == 9
    near = fc.fit(run, num_classes=2, samples_per_class=[100, 108], reduction="free")
    assert near.setting.samples == 104


def test_intervals_cover_at_their_rate():
    """White noise on a curve with one mode and a decay: each interval holds the truth in 95 % of the runs.

    The number of hits is binomial, so four standard deviations are allowed on either side.
    """
    runs, rate = 50, 0.95
    truth = {"scale": SCALE, "eps": 1e-3, "decay": 0.6}
    hits = dict.fromkeys(truth, 0)
    for seed in range(runs):
        fit = fc.fit(noisy(seed, 0.02), **KNOWN)
        assert fit.explains, fit
        for name, value in truth.items():
            estimate = getattr(fit, name)
            hits[name] += estimate.low <= value <= estimate.high
    spread = 4 * math.sqrt(rate * (1 - rate) / runs)
    for name, count in hits.items():
        assert count / runs == pytest.approx(rate, abs=spread), name


def test_intervals_shrink_with_the_noise():
    wide, narrow = (fc.fit(noisy(1, sigma), **KNOWN) for sigma in (0.02, 0.002))
    for name in ("scale", "eps", "decay"):
        one, other = getattr(wide, name), getattr(narrow, name)
        assert 5 < (one.high - one.low) / (other.high - other.low) < 20


def test_a_profile_is_used_where_the_linear_interval_is_wrong():
    """A decay of zero is the end of its range, so the linear interval would reach below it."""
    fit = fc.fit(noisy(2, 2e-3, decay=0.0, end=1.1), **KNOWN)
    assert "decay" in fit.profiled
    assert 0 <= fit.decay.low <= fit.decay.value <= fit.decay.high < 0.5


def test_a_given_decay_is_kept():
    run = noisy(1, 0.01)
    fit = fc.fit(run, decay=0.6, **KNOWN)
    assert fit.decay.value == pytest.approx(0.6, rel=1e-12)
    assert "decay" in fit.fixed
    free = fc.fit(run, **KNOWN)
    assert fit.scale.high - fit.scale.low < free.scale.high - free.scale.low


def test_the_start_of_a_random_run_is_told_as_its_eps(key):
    """`sphere_eps` undoes the mean share of the growing part: over many starts its mean square is that of eps."""
    model = fc.UFM(num_classes=4, samples_per_class=5, num_features=30)
    keys = jax.random.split(key, 400)
    starts = jax.vmap(lambda key: fc.initial.sphere(model, 1.0, key=key))(keys)
    growing = fc.theory.subspace.project(model, starts).W
    epoch, path, _ = run_on_subspace(4, 5, 30, 1e-2)
    fit = fc.fit({"epoch": epoch, "risk": risks(path, (5,) * 4)}, num_classes=4, samples_per_class=5)
    squares = np.sum(np.asarray(growing) ** 2, axis=(1, 2))
    share = (fit.eps.value / fit.sphere_eps) ** 2
    assert share == pytest.approx(np.mean(squares), abs=float(4 * np.std(squares) / math.sqrt(len(squares))))


def test_a_dataset_and_a_table_are_read():
    run = noisy(0, 0.01)
    measured = xr.Dataset(
        {"risk": ("epoch", run["risk"]), "accuracy": ("epoch", 0 * run["risk"])},
        {"epoch": run["epoch"]},
        {"num_classes": 2, "samples_per_class": np.array([9, 9]), "reduction": "sum", "use_bias": 1},
    )
    fit = fc.fit(run, **KNOWN)
    assert fc.fit(measured, penalised=True).scale == fit.scale
    table = pd.DataFrame(run | {"accuracy": 0 * run["risk"]})
    for log in (table, table.set_index("epoch")):
        assert fc.fit(log, **KNOWN).scale == fit.scale


def test_it_reads_well():
    text = str(fc.fit(noisy(0, 0.01), **KNOWN))
    for part in ("explains", "yes", "model time per epoch", "sphere eps", "95%", "risk", "R^2"):
        assert part in text

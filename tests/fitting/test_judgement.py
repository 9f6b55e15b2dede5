"""A fit says when the model does not explain the curves, and why; input that is no curve is refused in one line."""

import math
from typing import Any

import jax
import numpy as np
import pytest
import systems
import xarray as xr

import flowcollapse as fc

C, N, P = 3, 4, 6
KNOWN: dict[str, Any] = {"num_classes": C, "samples_per_class": N}
EPOCHS = np.linspace(0.0, 120.0, 121)


def logistic(rate: float, half: float) -> np.ndarray:
    return 1 / (1 + np.exp(-rate * (EPOCHS - half)))


def of_modes(*modes: tuple[float, float]) -> np.ndarray:
    """The risk of modes with these rates and half times, and of a bias that relaxes within the first epoch."""
    return N / 2 * (sum((1 - logistic(*mode)) ** 2 for mode in modes) + np.exp(-9 * EPOCHS))


def explained(eps: float = 1e-3) -> np.ndarray:
    """The risk of a flow on S with equal modes: `1/2 sum (mu_i - s)^2 + N/2 e^{-2 C N t}`, half grown at epoch 60."""
    s = math.sqrt(N)
    rate = math.log(s / (eps**2 / (C - 1))) / 60
    return of_modes((rate, 60.0), (rate, 60.0)) + N / 2 * (np.exp(-C * N * EPOCHS * rate / s) - np.exp(-9 * EPOCHS))


def of_a_start(eps: float) -> np.ndarray:
    """The risk of the flow from a generic start of norm eps in H and in W, by SciPy."""
    rng = np.random.default_rng(8)
    H, W = rng.normal(size=(P, C * N)), rng.normal(size=(C, P))
    start = systems.Arrays(eps * H / np.linalg.norm(H), eps * W / np.linalg.norm(W), np.zeros(C))
    path = systems.flow(start, (N,) * C, EPOCHS / 15, rtol=1e-9)
    return np.array([systems.risk(systems.Arrays(*point), (N,) * C) for point in zip(*path, strict=True)])


def of_cross_entropy() -> np.ndarray:
    """The summed cross-entropy of the same model under gradient descent from a small start."""
    rng = np.random.default_rng(9)
    H, W = 1e-2 * rng.normal(size=(P, C * N)), 1e-2 * rng.normal(size=(C, P))
    Y, found = systems.one_hot((N,) * C), []
    for _ in EPOCHS:
        Z = W @ H
        odds = np.exp(Z - Z.max(axis=0))
        odds /= odds.sum(axis=0)
        found.append(-np.sum(Y * np.log(odds)))
        G = odds - Y
        H, W = H - 0.1 * W.T @ G, W - 0.1 * G @ H.T
    return np.array(found)


def fitted(risk: np.ndarray, **options) -> fc.Fit:
    return fc.fit({"epoch": EPOCHS, "risk": risk}, **(KNOWN | options))


def test_the_curve_that_the_others_are_compared_with_is_explained():
    fit = fitted(explained())
    assert fit.explains, fit
    assert "small start" in fit.reason
    assert fitted(of_a_start(1e-2)).explains


NOISE = np.random.default_rng(3).normal(size=len(EPOCHS))

STRANGE: dict[str, Any] = {
    "constant": (lambda: np.full(len(EPOCHS), 2.0), {}, "constant"),
    "zero": (lambda: np.zeros(len(EPOCHS)), {}, "constant"),
    "oscillating": (lambda: 4 * (1.01 + np.cos(EPOCHS / 8)) / 2.01, {}, "rises again"),
    "bump": (lambda: explained() + 2 * np.exp(-(((EPOCHS - 100) / 5) ** 2)), {}, "rises again"),
    "noise of SGD": (lambda: explained() * np.exp(0.4 * NOISE), {}, "scatters"),
    "cross-entropy": (of_cross_entropy, {}, "cross-entropy"),
    "cross-entropy of any level": (of_cross_entropy, {"reduction": "free"}, "the model misses risk"),
    "large start": (lambda: of_a_start(1.5), {}, "not small"),
    "very large start": (lambda: of_a_start(6.0), {}, "starts at"),
    "mean": (lambda: explained() / (C * N), {}, "reduction='mean'"),
    "mse": (lambda: explained() * 2 / (C * N * C), {}, "'mse'"),
    "rates that differ": (lambda: of_modes((1.0, 20.0), (0.06, 60.0)), {}, "misses risk"),
    "late": (lambda: explained() - N / 2 * (EPOCHS == 0), {}, "leave out that time"),
    "power law": (lambda: 4 / (1 + EPOCHS / 5), {}, "not small"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_a_curve_of_another_kind_is_not_explained(kind):
    curve, options, reason = STRANGE[kind]
    fit = fitted(curve(), **options)
    assert not fit.explains, fit
    assert reason in fit.reason, fit
    assert f"no: {fit.reason}" in str(fit)
    assert "\n" not in fit.reason


def test_a_run_with_another_loss_is_not_explained(key):
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss="cross-entropy")
    start = fc.initial.sphere(model, eps=0.1, key=key)
    fit = fc.fit(fc.simulate(model, start, fc.Descent("sgd", 60, learning_rate=0.2), ts=31, metrics="risk"))
    assert not fit.explains
    assert "cross-entropy" in fit.reason


def test_a_curve_that_stops_before_the_plateau_does_not_determine_the_decay():
    known = EPOCHS < 60
    noisy = explained()[known] + 0.02 * N * NOISE[known]
    run = {"epoch": EPOCHS[known], "risk": noisy}
    fit = fc.fit(run, **KNOWN)
    assert not fit.explains
    assert "decay" in fit.undetermined
    assert "before the plateau" in fit.reason
    assert "not determined" in str(fit)


def test_the_tolerance_decides_what_a_systematic_misfit_may_be():
    """A slow wave of 1 % of the range is a systematic misfit, and noise of 1 % is none."""
    known = EPOCHS < 66
    epoch, risk, size = EPOCHS[known], explained()[known], 0.01 * N
    wavy = {"epoch": epoch, "risk": risk + size * np.sin(epoch / 3)}
    rough = {"epoch": epoch, "risk": risk + size * NOISE[known]}
    strict, lax, noise = (
        fc.fit(run, decay=0.0, tolerance=tolerance, **KNOWN)
        for run, tolerance in ((wavy, 3e-3), (wavy, 2e-2), (rough, 3e-3))
    )
    assert strict.systematic == lax.systematic
    assert not strict.explains
    assert "systematic" in strict.reason
    assert lax.explains, lax
    assert noise.explains, noise


CURVES = {"epoch": EPOCHS, "risk": explained()}


def changed(**curves) -> dict:
    return CURVES | curves


TWO_RUNS = xr.Dataset({"risk": (("seed", "epoch"), np.ones((2, 20)))}, {"epoch": np.arange(20.0)})

WRONG: dict[str, Any] = {
    "a number": (3.0, {}, "curves must be a mapping"),
    "no time": ({"risk": explained()}, {}, "one time axis"),
    "two times": (changed(t=EPOCHS), {}, "one time axis"),
    "lengths": (changed(risk=explained()[1:]), {}, "120 values and epoch has 121"),
    "not increasing": (changed(epoch=EPOCHS[::-1]), {}, "must increase"),
    "negative time": (changed(epoch=EPOCHS - 1), {}, "not below 0"),
    "NaN time": (changed(epoch=np.where(EPOCHS == 3, np.nan, EPOCHS)), {}, "epoch must be finite"),
    "NaN": (changed(risk=np.where(EPOCHS == 3, np.nan, explained())), {}, "risk is NaN or infinite at epoch = 3"),
    "negative": (changed(risk=explained() - 1), {}, "risk is below 0"),
    "few points": ({"epoch": EPOCHS[:8], "risk": explained()[:8]}, {}, "8 points"),
    "a misspelt name": ({"epoch": EPOCHS, "rsik": explained()}, {}, "did you mean 'risk'?"),
    "no metric of the theory": ({"epoch": EPOCHS, "nc1": explained()}, {}, "need the risk or snc1"),
    "a metric without a form": (changed(nc1=explained()), {"metrics": "nc1"}, "no closed form"),
    "a metric that is not there": (CURVES, {"metrics": "snc1"}, "'snc1' is not among the curves"),
    "an unknown metric": (CURVES, {"metrics": "snc9"}, "did you mean"),
    "the bias alone": (changed(snc3=explained()), {"metrics": "snc3"}, "need the risk or snc1"),
    "text": (changed(risk=["a"] * 121), {}, "risk must be real numbers"),
    "two axes": (changed(risk=np.ones((121, 2))), {}, "one row of numbers"),
    "no classes": (CURVES, {"num_classes": None}, "num_classes is not known"),
    "one class": (CURVES, {"num_classes": 1}, "num_classes must be an integer of at least 2"),
    "no counts": (CURVES, {"samples_per_class": None}, "samples_per_class is not known"),
    "unequal counts": (CURVES, {"samples_per_class": [4, 4, 9]}, "equal counts"),
    "another reduction": (CURVES, {"reduction": "none"}, "reduction 'none' is not known"),
    "a decay below 0": (CURVES, {"decay": -1.0}, "decay must be a number from 0"),
    "a decay that stops growth": (CURVES, {"decay": 2.0}, "decay must be a number from 0"),
    "a confidence of 95": (CURVES, {"confidence": 95}, "confidence must lie between"),
    "a tolerance of 0": (CURVES, {"tolerance": 0.0}, "tolerance must be a positive number"),
    "several runs": (TWO_RUNS, {}, "select one run"),
    "a dataset without times": (xr.Dataset({"risk": ("x", np.ones(20))}), {}, "one axis of times"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_refused(kind):
    curves, options, fragment = WRONG[kind]
    systems.assert_refused(lambda: fc.fit(curves, **(KNOWN | options)), [fragment])


def test_a_logarithmic_clock_is_refused(key):
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss="cross-entropy")
    start = fc.initial.sphere(model, eps=0.1, key=key)
    path = fc.simulate(model, start, fc.Flow("tsit5", rtol=1e-3, clock="log", t1=3.0), ts=13, metrics="risk")
    for run in (path, path.to_xarray()):
        systems.assert_refused(lambda run=run: fc.fit(run), ["ln(1 + t)"])


def test_float64_is_needed(thirty_two_bits):
    systems.assert_refused(lambda: fc.fit(CURVES, **KNOWN), ["fc.enable_x64()"])


def test_lanes_and_traced_curves_are_refused(key):
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
    starts = jax.vmap(lambda key: fc.initial.sphere(model, 0.1, key=key))(jax.random.split(key, 2))
    method = fc.Descent("sgd", 20, learning_rate=0.05)
    paths = jax.vmap(lambda start: fc.simulate(model, start, method, ts=13, metrics="risk"))(starts)
    systems.assert_refused(lambda: fc.fit(paths), ["curves has (2,) runs"])
    run = {"epoch": EPOCHS}
    traced = jax.jit(lambda risk: fc.fit(run | {"risk": risk}, **KNOWN).scale.value)
    systems.assert_refused(lambda: traced(explained()), ["traced"])

"""The log clock: cross-entropy without decay to t = e^1000, against the plain clock and against the exact ray."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from scipy.special import expi

import flowcollapse as fc

EPS = float(np.finfo(np.float64).eps)


def ufm(loss: Any = "cross-entropy", C=3, N=3, p=5, **options) -> fc.UFM:
    options = {"use_bias": False} | options
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, loss=loss, **options)


def sphere(model, eps=0.5, seed=0):
    return fc.initial.sphere(model, eps, key=jax.random.key(seed))


def end(model, start, clock, t1, rtol=1e-10, solver="exponential"):
    return fc.simulate(model, start, fc.Flow(solver, clock=clock, t1=t1, rtol=rtol), [t1], metrics=())


def margins(state: fc.State) -> np.ndarray:
    H, W, b = systems.arrays(state)
    Z, C = W @ H + b[:, None], len(W)
    labels = np.repeat(np.arange(C), Z.shape[1] // C)
    others = np.where(np.arange(C)[:, None] == labels, -np.inf, Z)
    return Z[labels, np.arange(len(labels))] - others.max(axis=0)


def assert_near(one: fc.State, other: fc.State, tolerance: float) -> None:
    for x, y in zip(systems.arrays(one), systems.arrays(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(np.max(np.abs(y)), 1e-300))


@pytest.mark.parametrize("options", [{}, {"use_bias": True, "reduction": "mean"}, {"p": 2, "loss": "focal:2"}], ids=str)
def test_both_clocks_follow_the_same_flow(options):
    model = ufm(**options)
    start = sphere(model)
    for t in (1.0, 30.0, 1e3, 2e4):
        plain = end(model, start, "time", t)
        assert_near(end(model, start, "log", np.log1p(t)).final, plain.final, 1e-8)
        assert_near(end(model, start, "log-steps", t).final, plain.final, 1e-8)


@pytest.mark.parametrize("solver", ["exponential", "tsit5", "dopri8"])
def test_errors_follow_rtol(solver):
    model = ufm()
    start = sphere(model)
    exact = end(model, start, "log", 50.0, rtol=1e-13).final
    for rtol in (1e-5, 1e-7, 1e-9):
        assert_near(end(model, start, "log", 50.0, rtol=rtol, solver=solver).final, exact, 200 * rtol)


def log_time_on_the_ray(rho: float, rho0: float, C: int, s: float) -> float:
    """`ln t` from `2 s C t = Ei(rho) - Ei(rho0) + (C-1) ln(rho/rho0)`; for large rho from Ei's asymptotic series."""
    if rho < 300:
        return float(np.log((expi(rho) - expi(rho0) + (C - 1) * np.log(rho / rho0)) / (2 * s * C)))
    terms = np.cumprod(np.append(1.0, np.arange(1.0, 40.0) / rho))
    return float(rho - np.log(rho) + np.log(np.sum(terms)) - np.log(2 * s * C))  # the rest is e^-300 of it


@pytest.mark.parametrize(("C", "N", "p"), [(3, 1, 5), (3, 4, 2), (5, 2, 6)])
def test_the_exact_time_on_the_ray_of_collapsed_balanced_states(C, N, p):
    """From `W W^T = s rho P`, `H = (W (x) 1)^T / s`, the flow stays on that ray, and its time is known."""
    model, s, rho0 = ufm(C=C, N=N, p=p), N**0.5, 0.3
    U = np.linalg.svd(np.eye(C) - 1 / C)[0][:, : C - 1]
    W = (s * rho0) ** 0.5 * U @ np.eye(C - 1, p)
    start = fc.State(H=np.repeat(W, N, axis=0).T / s, W=W)
    for clock in (1.0, 20.0, 300.0, 900.0):
        path = end(model, start, "log", clock, rtol=1e-12)
        assert path.coordinates.startswith("class-mean")
        rho = margins(path.final)
        assert np.ptp(rho) < 1e-9 * rho[0]
        log_time = log_time_on_the_ray(float(rho[0]), rho0, C, s)
        np.testing.assert_allclose(np.logaddexp(0.0, log_time), clock, rtol=0, atol=1e-9 * max(1.0, clock))


def test_to_the_end_of_time_in_few_steps():
    """At t = e^1000, margin over half the squared norms is `1 / (s (C - 1))` up to O(1 / ln t)."""
    model = ufm()
    path = end(model, sphere(model), "log", 1000.0, rtol=1e-8)
    assert int(path.stats["accepted"]) + int(path.stats["rejected"]) < 1000
    H, W, _ = systems.arrays(path.final)
    margin = np.min(margins(path.final))
    np.testing.assert_allclose(margin / ((np.sum(W**2) + np.sum(H**2)) / 2), 1 / (3**0.5 * 2), rtol=1e-4)
    assert abs(margin - (1000 + np.log(1000) + np.log(2 * 3**0.5 * 3))) < 0.1


def test_times_are_those_of_the_clock():
    model = ufm()
    start = sphere(model)
    path = fc.simulate(model, start, fc.Flow(clock="log", t1=60.0, rtol=1e-6), ts=5, metrics="risk")
    np.testing.assert_allclose(path.ts, np.linspace(0, 60, 5), rtol=4 * EPS)
    assert float(path.t_end) == 60
    assert "ln(1 + t) = 60" in repr(path)
    assert path.to_xarray()["time"].attrs["long_name"] == "ln(1 + t)"
    steps = fc.simulate(model, start, fc.Flow(clock="log-steps", rtol=1e-6), ts=[0.0, 1.0, 1e300], metrics="risk")
    assert steps.ts.tolist() == [0.0, 1.0, 1e300]
    assert float(steps.t_end) == 1e300
    assert " t = 1e+300" in repr(steps)


def test_auto_takes_the_log_clock_only_where_it_helps():
    model = ufm()
    start = sphere(model)
    # In the plain clock, steps to t = 1e12 are limited by accuracy as long as rates fall like 1/t.
    auto, plain = (end(model, start, clock, 1e12, rtol=1e-8).stats["accepted"] for clock in ("auto", "time"))
    assert int(auto) < 0.75 * int(plain)
    for other in (ufm(weight_decay=0.1), ufm(loss="label-smoothing:0.1"), ufm(loss="squared")):
        assert fc.Flow().prepared(other, 5).clock == "time"
    assert fc.Flow().prepared(model, 5).clock == "log-steps"


def test_lanes_of_a_sweep_are_single_runs():
    model = ufm()
    grid = fc.sweep(
        model,
        fc.Flow(clock="log", t1=200.0),
        eps=[0.1, 1.0],
        seeds=3,
        ts=[0.0, 200.0],
        metrics="risk",
        progress=False,
        keep_final=True,
    )
    assert grid["time"].attrs["long_name"] == "ln(1 + t)"
    for eps in (0.1, 1.0):
        for seed in range(3):
            alone = end(model, sphere(model, eps, seed), "log", 200.0, rtol=1e-8).final
            lane = grid.sel(eps=eps, seed=seed)
            np.testing.assert_allclose(lane["W"], alone.W, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(alone.W))))


def test_the_derivative_through_the_log_clock():
    model = ufm(p=3)

    def size(eps):
        start = fc.initial.sphere(model, eps, key=jax.random.key(2))
        flow = fc.Flow(clock="log", t1=30.0, rtol=1e-10)
        return jnp.sum(fc.simulate(model, start, flow, [30.0], metrics=()).final.W ** 2)

    h = 1e-4
    expected = (size(0.5 + h) - size(0.5 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(size)(0.5), expected, rtol=1e-5)


def test_a_traced_decay_keeps_the_flow_exact():
    """Where the decay is not known, the log clock cannot be refused; its field has the decay then."""
    decayed = ufm(weight_decay=0.3)
    start = sphere(decayed)

    @jax.jit
    def at(decay):
        return fc.simulate(ufm(weight_decay=decay), start, fc.Flow(clock="log", t1=1.0), [1.0], metrics=()).final

    assert_near(at(0.3), end(decayed, start, "time", np.expm1(1.0), rtol=1e-8).final, 1e-6)


def run(model, **options: Any):
    return lambda: fc.simulate(model, sphere(model), fc.Flow(**(dict[str, Any](t1=1.0) | options)), metrics=())


REFUSED = {
    "decay": (run(ufm(weight_decay=0.1), clock="log"), ["clock is 'log'", "weight_decay", "0.1", 'clock="time"']),
    "one decay": (run(ufm(weight_decay=(0.0, 0.0, 0.1)), clock="log-steps"), ["'log-steps'", "weight_decay"]),
    "a loss with a minimum": (run(ufm("label-smoothing:0.1"), clock="log"), ["label_smoothing=0.1", "minimum"]),
    "the squared error": (run(ufm("squared"), clock="log"), ["'squared'", "minimum"]),
    "too late": (run(ufm(), clock="log", t1=1e7), ["t1", "1e+06", "ln(1 + t)"]),
    "another clock": (lambda: fc.Flow(clock="fast"), ["clock", "'fast'", "'log'"]),
    "until rest": (lambda: fc.Flow(clock="log", until="rest"), ["clock", "'rest'", "leave"]),
    "no rest without decay": (run(ufm(), until="rest", t1=None), ["'rest'", "no minimum", "give t1"]),
    "implicit": (lambda: fc.Flow(clock="log", approach="implicit"), ["clock", "'implicit'"]),
    "another flow": (lambda: fc.HeavyBallFlow(0.1, clock="log"), ["heavy-ball-flow", "fc.Flow"]),
    "an axis of decays": (
        lambda: fc.sweep(ufm(), fc.Flow(clock="log", t1=1.0), eps=[0.1], seeds=1, weight_decay=[0.0, 0.1]),
        ["clock is 'log'", "0.1"],
    ),
    "a comparison": (
        lambda: fc.compare(ufm(), sphere(ufm()), ["sgd:learning_rate=0.1"], [1.0], flow=fc.Flow(clock="log")),
        ["ln(1 + t)", "log-steps"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_clocks_are_refused(name):
    systems.assert_refused(*REFUSED[name])


def test_times_too_late_for_a_loss_that_cannot_scale_inside():
    from trial_losses import Trial

    model = ufm(loss=Trial())
    systems.assert_refused(run(model, clock="log", t1=800.0), ["t1", "709", "overflows", "lower"])
    # Its `p - y` cancels: at margins near 20 it has lost 8 of its digits.
    path = end(model, sphere(model), "log", 15.0, rtol=1e-9)
    assert_near(path.final, end(ufm(), sphere(model), "log", 15.0, rtol=1e-9).final, 1e-5)

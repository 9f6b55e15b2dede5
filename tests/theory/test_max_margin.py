"""Directions, margins and times of flows of cross-entropy without decay, against runs in the log clock and SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from scipy.integrate import quad
from scipy.special import expi

import flowcollapse as fc
from flowcollapse.theory import max_margin

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(counts, p, loss="cross-entropy", **options):
    return systems.model_of(counts, p, loss=loss, **options)


def margin_of(model, state) -> float:
    """The margin over half the squared norm, in NumPy."""
    H, W, b = systems.arrays(state)
    logits, labels = W @ H + b[:, None], np.repeat(np.arange(model.num_classes), model.counts)
    own = logits[labels, np.arange(len(labels))]
    logits[labels, np.arange(len(labels))] = -np.inf
    return float((own - logits.max(axis=0)).min() / ((np.sum(H**2) + np.sum(W**2) + np.sum(b**2)) / 2))


@pytest.mark.parametrize(("counts", "p"), [((6, 3, 1), 2), ((10, 10, 2, 2), 5), ((4, 4, 4), 4), ((5, 2), 1)])
def test_seli_has_margins_one_and_the_least_norm(counts, p):
    model = ufm(counts, p, use_bias=False)
    state, P = max_margin.seli(model), systems.centring(len(counts))
    np.testing.assert_allclose(state.W @ state.H, P @ systems.one_hot(counts), atol=16 * EPS)
    nuclear = np.linalg.svd(P * np.sqrt(counts), compute_uv=False).sum()
    np.testing.assert_allclose(max_margin.margin(model), 1 / nuclear, rtol=16 * EPS)
    np.testing.assert_allclose(margin_of(model, state), 1 / nuclear, rtol=64 * EPS)
    np.testing.assert_allclose(state.W.T @ state.W, state.B @ state.B.T, atol=64 * EPS * nuclear)


@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 2, 1)])
def test_no_random_logits_with_margins_one_have_a_smaller_norm(counts):
    """Least squares over margins: the nuclear norm of feasible logits is at least that of SELI."""
    random, n, C = np.random.default_rng(0), np.sqrt(counts), 3
    least = np.linalg.svd(systems.centring(C) * n, compute_uv=False).sum()
    for size in (0.01, 0.1, 1.0):
        for _ in range(50):
            Z = systems.centring(C) + size * random.standard_normal((C, C))
            margin = min(Z[k, k] - Z[j, k] for k in range(C) for j in range(C) if j != k)
            if margin > 0:
                assert np.linalg.svd(Z / margin * n, compute_uv=False).sum() > least * (1 - 1e-12)


@pytest.fixture(scope="module")
def late():
    """A run of a small system from a generic start to t = e^400, in the log clock."""
    model = ufm((3, 3, 3), 2, use_bias=False)
    start = fc.initial.sphere(model, 1.0, key=jax.random.key(3))
    ls = [40.0, 50.0, 100.0, 400.0]
    return model, start, ls, fc.simulate(model, start, fc.Flow(clock="log", t1=400.0, rtol=1e-9), ls, save_states=True)


def test_the_margin_of_the_flow_tends_to_the_largest(late):
    model, _, _, path = late
    found = margin_of(model, path.final) / float(max_margin.margin(model))
    assert 0.999 < found < 1 + 1e-9


def test_generic_starts_follow_the_ray(late):
    """`rho = ln t + ln ln t + ln(2 a s C) + o(1)`, and within 0.2 of the ray at the given times."""
    model, _, ls, path = late
    for time, W, H in zip(ls, path.states.W, path.states.H, strict=True):
        logits = np.asarray(W @ H)[:, ::3]
        rho = np.trace(logits - logits.mean(axis=0)) / 2
        ray = float(max_margin.logit_on_ray(model, time, 1.0))
        assert abs(rho - ray) < 0.2
        assert abs(ray - time - math.log(time) - math.log(2 * math.sqrt(3) * 3)) < 2 * math.log(time) / time + 0.3


def test_the_memory_of_the_start(late):
    """`rho ||W/||W|| - B^T/||B|| ||` tends to a constant that is known at the start."""
    model, start, _, path = late
    W, H = (np.asarray(x[-1]) for x in (path.states.W, path.states.H))
    B = H.reshape(2, 3, 3).mean(axis=2) * math.sqrt(3)
    W, B = W - W.mean(axis=0), B - B.mean(axis=1, keepdims=True)
    gap = (
        np.linalg.norm(W)
        * np.linalg.norm(B)
        / (math.sqrt(3) * 2)
        * np.linalg.norm(W / np.linalg.norm(W) - B.T / np.linalg.norm(B))
    )
    np.testing.assert_allclose(gap, max_margin.memory(model, start), rtol=1e-4)


def test_the_powers_of_the_within_class_part():
    """Deviations on the frame fall as powers of t between e^40 and e^50; outside the row space they freeze."""
    C, N, p = 3, 2, 3
    model = ufm((N,) * C, p)
    rho0, rng = 2.0, np.random.default_rng(1)
    U = np.linalg.svd(systems.centring(C))[0][:, : C - 1]
    W = np.sqrt(np.sqrt(N) * rho0) * np.hstack([U, np.zeros((C, 1))])
    noise = 1e-6 * rng.standard_normal((p, C, 1)) * np.array([1.0, -1.0])
    H = (W.T[:, :, None] / math.sqrt(N) + noise).reshape(p, C * N)
    ls = np.array([40.0, 50.0])
    path = fc.simulate(model, fc.State(H=H, W=W), fc.Flow(clock="log", t1=50.0, rtol=1e-11), ls, save_states=True)
    assert path.states is not None
    found = max_margin.powers(model)
    parts = {"own": [], "other": [], "outside": []}
    for W, H in zip(np.asarray(path.states.W), np.asarray(path.states.H), strict=True):
        half = (H[:, ::2] - H[:, 1::2]) / 2
        basis = np.linalg.svd(W - W.mean(axis=0))[2]
        parts["outside"].append(np.linalg.norm(basis[2] @ half))
        inside = [basis[:2] @ half[:, k] for k in range(C)]
        along = [basis[:2] @ (W[k] / np.linalg.norm(W[k])) for k in range(C)]
        parts["own"].append(np.linalg.norm([x @ d for x, d in zip(inside, along, strict=True)]))
        parts["other"].append(np.linalg.norm([x - (x @ d) * d for x, d in zip(inside, along, strict=True)]))
    rho = [float(max_margin.logit_on_ray(model, time, rho0)) for time in ls]
    for name, power in (("other", found.other), ("outside", found.outside)):
        slope = math.log(parts[name][1] / parts[name][0]) / (rho[1] - rho[0])
        assert power is not None
        assert abs(slope - power) < 2e-3, name
    assert found.own == -0.5


# ---- the time on the frame


def scipys_time(C, N, rho, rho0, a=1.0):
    return (expi(rho) - expi(rho0) + (C - 1) * math.log(rho / rho0)) / (2 * a * math.sqrt(N) * C)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("C", "N"), [(2, 1), (3, 4), (10, 100)])
def test_the_time_on_the_frame_is_an_exponential_integral(C, N, reduction):
    model, a = ufm((N,) * C, C, reduction=reduction), 1.0 if reduction == "sum" else 1 / (C * N)
    for rho0 in (1e-3, 0.3, 2.0, 30.0):
        for rho in rho0 * np.array([1.1, 2.0, 15.0]):
            time = float(max_margin.time_on_ray(model, rho, rho0))
            np.testing.assert_allclose(np.expm1(time), scipys_time(C, N, rho, rho0, a), rtol=1e-12)
            integral = quad(lambda r: (math.exp(r) + C - 1) / r, rho0, rho, epsrel=1e-12)[0] / (
                2 * a * math.sqrt(N) * C
            )
            np.testing.assert_allclose(np.expm1(time), integral, rtol=1e-9)
            np.testing.assert_allclose(max_margin.logit_on_ray(model, time, rho0), rho, rtol=1e-12)


def test_times_far_beyond_the_largest_float():
    model = ufm((4, 4, 4), 2)
    times = np.array([1e3, 1e4, 1e6])
    rho = np.asarray(max_margin.logit_on_ray(model, times, 0.5))
    # Ei(x) = e^x/x (1 + 1/x + 2/x^2 + ...), so l = rho - ln rho + ln(1 + 1/rho + ...) - ln(2 s C)
    series = 1 + 1 / rho + 2 / rho**2 + 6 / rho**3 + 24 / rho**4 + 120 / rho**5
    np.testing.assert_allclose(rho - np.log(rho) + np.log(series) - math.log(12), times, rtol=1e-12)
    np.testing.assert_allclose(max_margin.time_on_ray(model, rho, 0.5), times, rtol=1e-13)
    assert float(max_margin.logit_on_ray(model, 0.0, 0.5)) == 0.5
    assert float(max_margin.time_on_ray(model, 0.5, 0.5)) == 0.0


def test_the_flow_follows_the_ray():
    """From a start on the frame, to t = e^1000: the logits are those of the closed form, and stay of the form rho P."""
    C, N, p, rho0 = 3, 4, 3, 0.1
    model = ufm((N,) * C, p)
    U = np.linalg.svd(systems.centring(C))[0][:, : C - 1]
    W = np.sqrt(math.sqrt(N) * rho0) * np.hstack([U, np.zeros((C, p - C + 1))])
    start = fc.State(H=np.repeat(W.T, N, axis=1) / math.sqrt(N), W=W)
    ls = [1.0, 5.0, 30.0, 700.0, 1000.0]
    path = fc.simulate(model, start, fc.Flow(clock="log", t1=1000.0, rtol=1e-10), ls, save_states=True)
    assert path.states is not None
    logits = np.asarray(path.states.W @ path.states.H)[:, :, ::N]
    rho = np.asarray(max_margin.logit_on_ray(model, np.array(ls), rho0))
    np.testing.assert_allclose(logits, rho[:, None, None] * systems.centring(C), atol=1e-7 * rho.max())
    norms = np.sum(np.asarray(path.states.W) ** 2, axis=(1, 2))
    np.testing.assert_allclose(norms, math.sqrt(N) * (C - 1) * rho, rtol=1e-7)


def test_derivatives_and_programs():
    """`drho/dl` is `2 s rho phi (1 + t)`, and one program serves all times."""
    model, s, C, time = ufm((4, 4, 4), 3), 2.0, 3, 5.0
    of_time = jax.jit(jax.vmap(lambda t: max_margin.logit_on_ray(model, t, 0.1)))
    rho = float(of_time(jnp.array([0.1, time]))[1])
    slope = float(jax.grad(lambda t: max_margin.logit_on_ray(model, t, 0.1))(time))
    np.testing.assert_allclose(slope, 2 * s * rho * C / (math.exp(rho) + C - 1) * math.exp(time), rtol=1e-11)
    inverse = float(jax.grad(lambda r: max_margin.time_on_ray(model, r, 0.1))(rho))
    np.testing.assert_allclose(inverse * slope, 1, rtol=1e-11)


# ---- bad input

BALANCED = ufm((3, 3, 3), 2)
CASES = {
    "a loss with a minimum": (
        lambda: max_margin.margin(ufm((3, 3), 2, "squared")),
        ["loss is 'squared'", 'use loss="cross-entropy"'],
    ),
    "smoothing": (lambda: max_margin.seli(ufm((3, 3), 2, "label-smoothing:0.1")), ["label_smoothing=0.1", "use loss"]),
    "decay": (lambda: max_margin.margin(ufm((3, 3), 2, weight_decay=0.1)), ["weight_decay is 0.1", "use none"]),
    "few features": (lambda: max_margin.seli(ufm((3,) * 4, 2)), ["num_features is 2", "raise num_features to 3"]),
    "a bias": (lambda: max_margin.margin(ufm((3, 2), 2)), ["(3, 2)", "use use_bias=False"]),
    "focal": (lambda: max_margin.powers(ufm((3, 3), 2, "focal:2")), ["'focal:gamma=2.0'", "use loss"]),
    "imbalanced": (lambda: max_margin.powers(ufm((3, 2), 2)), ["(3, 2)", "use equal counts"]),
    "memory with more features": (
        lambda: max_margin.memory(ufm((3,) * 3, 3), systems.random_state(ufm((3,) * 3, 3))),
        ["num_features is 3", "use num_features=2"],
    ),
    "memory with a bias": (
        lambda: max_margin.memory(BALANCED, systems.random_state(BALANCED)),
        ["use_bias is True", "use use_bias=False"],
    ),
    "rho0": (lambda: max_margin.time_on_ray(BALANCED, 1.0, 0.0), ["rho0", "0.0", "above 0"]),
    "a falling rho": (
        lambda: max_margin.time_on_ray(BALANCED, np.array([1.0, 0.05]), 0.1),
        ["rho", "0.05", "from 0.1 on"],
    ),
    "a negative time": (lambda: max_margin.logit_on_ray(BALANCED, -1.0, 0.1), ["log_time", "-1.0", "from 0 on"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, fragments = CASES[name]
    systems.assert_refused(call, fragments)

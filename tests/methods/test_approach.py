"""The slow approach to rest: implicit steps, the stop at rest, default times, and runs that do not reach their end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.endings.plateau import default_times
from flowcollapse.methods.integration import REST, Legs

RTOL = 1e-8
C, N, P_FEATURES = 3, 100, 4
SIZES: dict[str, Any] = {"num_classes": C, "samples_per_class": N, "num_features": P_FEATURES}

# Typical weight decays, one number or three; W and H have equal decay in all but the last four.
DECAYS = [
    (1e-5, 1e-5, 1e-5),
    (5e-4, 5e-4, 5e-4),
    (5e-4, 5e-4, 0.0),
    (1e-2, 1e-2, 1e-3),
    (1e-1, 1e-1, 1e-1),
    (1e-4, 5e-4, 0.0),
    (2e-3, 1e-3, 1e-4),
    (1e-3, 1e-5, 0.0),
    (1e-4, 1e-2, 1e-1),
]
EPS = [0.1, 1e-2, 1.0, 1e-3, 0.3, 0.1, 0.5, 0.1, 0.3]


def decaying(decay) -> fc.UFM:
    return fc.UFM(**SIZES, weight_decay=decay)


@pytest.fixture(scope="module")
def to_rest(key):
    """One lane per decay in `DECAYS`: the default flow from spheres, and with `until="rest"`, one program each."""

    def run(method):
        def lane(decay, eps):
            model = decaying(decay)
            start = fc.initial.sphere(model, eps, key=key)
            return fc.simulate(model, start, method, metrics=("risk", "grad_norm", "snc1"), save_states=True)

        return systems.compiled(jax.vmap(lane))(jnp.asarray(DECAYS), jnp.asarray(EPS))

    return run


@pytest.fixture(scope="module")
def defaults(to_rest) -> fc.Trajectory:
    return to_rest(fc.Flow(rtol=RTOL))


def test_usual_weight_decays_reach_the_plateau_in_a_few_hundred_steps(defaults):
    """Explicit steps would be limited to `6 / (2 s)`, and up to 7 million would be needed."""
    assert np.all(defaults.result == fc.Verdict.plateau)
    assert int(np.max(defaults.stats["accepted"] + defaults.stats["rejected"])) < 400


@pytest.mark.parametrize("decay", [(1e-2, 1e-4, 1e-3), (0.0, 1e-2, 0.0), (1e-2, 0.0, 1e-1)])
def test_unequal_decays_are_followed_along_the_valley(key, decay):
    """W and the features exchange scale at constant logits; all saves equal those of SciPy on the samples."""
    model = fc.UFM(num_classes=C, samples_per_class=5, num_features=P_FEATURES, weight_decay=decay)
    start, ts = fc.initial.sphere(model, 0.1, key=key), np.linspace(0.0, 400.0, 9)
    path = fc.simulate(model, start, fc.Flow(rtol=RTOL, approach="implicit"), ts, metrics=(), save_states=True)
    expected = systems.flow(systems.arrays(start), model.counts, ts, rtol=1e-11, decay=decay)
    for found, exact in zip(systems.arrays(path.states), expected, strict=True):
        assert np.max(np.abs(np.asarray(found) - exact)) < 100 * RTOL * np.max(np.abs(exact))


def test_the_imbalance_decays_with_the_decay(defaults):
    """For equal decays of W and H, `D = W^T W - H H^T` is `e^{-2 lam t} D(0)` through the escape and the approach."""
    H, W, _ = systems.arrays(defaults.states)
    D = np.swapaxes(W, -1, -2) @ W - H @ np.swapaxes(H, -1, -2)
    for lane, (lam_W, lam_H, _) in enumerate(DECAYS):
        if lam_W == lam_H:
            expected = np.exp(-2 * lam_W * defaults.ts[lane])[:, None, None] * D[lane, 0]
            # Each step errs by rtol of the norms; the error is then damped like D itself.
            scale = RTOL * np.max(np.sum(W[lane] ** 2, axis=(1, 2)) + np.sum(H[lane] ** 2, axis=(1, 2)))
            assert np.max(np.linalg.norm(D[lane] - expected, axis=(1, 2))) < 100 * scale


def test_the_ends_are_the_limits_of_small_starts(defaults):
    """`W W^T = sqrt(lam_H / lam_W) (s - g) P` with `g = sqrt(lam_W lam_H)`, if the mean mode does not grow."""
    s = N**0.5
    for lane, (lam_W, lam_H, lam_b) in enumerate(DECAYS):
        g = np.sqrt(lam_W * lam_H)
        if lam_b == 0 or g * (1 + C * N / lam_b) > s:
            W = np.asarray(defaults.final.W[lane])
            expected = np.sqrt(lam_H / lam_W) * (s - g) * systems.centring(C)
            # After 20 decay times, the remainder e^-20 of the start is below rtol.
            np.testing.assert_allclose(W @ W.T, expected, atol=1e3 * RTOL * s)


def test_on_the_subspace_the_approach_is_the_closed_form(key):
    """The logistic equation and the exponential of the bias hold at the default times, up to the end at t = 4e4."""
    lam = 5e-4
    W0 = np.asarray(fc.initial.on_subspace(decaying(0.0), eps=0.3, key=key).W)
    start = fc.State(*map(jnp.asarray, systems.on_subspace(W0, -0.7, N)))
    path = fc.simulate(decaying((lam, lam, lam)), start, fc.Flow(rtol=RTOL), metrics=(), save_states=True)
    assert float(path.t_end) > 20 / lam
    expected = systems.flow_on_subspace(W0, -0.7, N, np.asarray(path.ts), (lam, lam, lam))
    for found, exact in zip(systems.arrays(path.states), expected, strict=True):
        assert np.max(np.abs(found - exact)) < 20 * RTOL * np.max(np.abs(exact))


def test_the_default_times_show_the_escape_and_the_approach(defaults):
    """At least a third of the saves are in the escape, evenly spaced in t; a third come later, evenly in ln t."""
    escape = np.array(
        [float(t) for t in jnp.asarray(defaults.t_end) - 20 / jnp.asarray([min(filter(None, d)) for d in DECAYS])]
    )
    for ts, before, end in zip(np.asarray(defaults.ts), escape, np.asarray(defaults.t_end), strict=True):
        early, late = ts[ts <= before * (1 + 1e-6)], ts[ts >= before * (1 - 1e-6)]
        assert len(early) > len(ts) / 3
        assert len(late) > len(ts) / 3
        np.testing.assert_allclose(np.diff(early), early[1], rtol=1e-6)
        np.testing.assert_allclose(np.diff(np.log(late)), np.log(late[1] / late[0]), rtol=1e-6)
        assert (ts[0], ts[-1]) == (0.0, end)


@pytest.mark.parametrize("count", [1, 2, 3, 101])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 10.0, 1e6])
def test_default_times_increase_from_zero_to_the_end(count, ratio):
    times = np.asarray(default_times(count, jnp.asarray(7.0), jnp.asarray(7.0 * ratio)))
    assert times[-1] == 7.0 * ratio
    assert np.all(np.diff(times) > 0)
    assert count == 1 or times[0] == 0
    if ratio == 1:  # without an approach, the times are equally spaced
        np.testing.assert_allclose(
            times, 7 * np.linspace(1, 0, count)[::-1], rtol=0, atol=7e-15
        )  # counted from the end


def test_long_times_without_decay_are_no_trouble(key):
    """Also without decay, if the end is far (here 1e6), steps at rest are as long as their error allows."""
    model = decaying(0.0)
    path = fc.simulate(model, fc.initial.sphere(model, 1e-2, key=key), fc.Flow(t1=1e6), 11, metrics=("risk",))
    assert path.result == fc.Verdict.plateau
    assert int(path.stats["accepted"] + path.stats["rejected"]) < 500
    assert float(path.metrics["risk"][-1]) < 1e-6


# ---- until rest


@pytest.fixture(scope="module")
def resting(to_rest) -> fc.Trajectory:
    return to_rest(fc.Flow(rtol=RTOL, until="rest"))


def test_at_rest_the_velocity_is_small(resting):
    """At the slowest rate, each part has less than `REST rtol` of its norm left to move."""
    assert np.all(resting.result == fc.Verdict.plateau)
    for lane, decay in enumerate(DECAYS):
        end = jax.tree.map(lambda x, lane=lane: x[lane], resting.final)
        velocity = fc.velocity(decaying(decay), end)
        slowest = min(lam for lam in decay if lam > 0)
        W, H = (float(jnp.linalg.norm(x)) for x in (end.W, end.H))
        for part, scale in ((velocity.W, W), (velocity.H, H), (velocity.b, H + 1)):
            assert float(jnp.linalg.norm(part)) < 1.01 * REST * RTOL * slowest * scale


def test_rest_is_where_the_long_run_ends(resting, defaults):
    """Both ends are the same point, up to the remaining distance of one and e^-20 of the decay of the other."""
    for found, expected in zip(systems.arrays(resting.final), systems.arrays(defaults.final), strict=True):
        np.testing.assert_allclose(found, expected, atol=30 * REST * RTOL * N**0.5)


def test_a_saddle_is_not_rest(key):
    """A start that lacks a mode comes to rest at a saddle: the run ends there, and its verdict says so."""
    model = fc.UFM(**SIZES)
    on_subspace = np.asarray(fc.initial.on_subspace(model, eps=0.1, key=key).W)
    U, sigma, Vt = np.linalg.svd(on_subspace, full_matrices=False)
    start = fc.State(*map(jnp.asarray, systems.on_subspace(sigma[0] * np.outer(U[:, 0], Vt[0]), 0.0, N)))
    path = fc.simulate(model, start, fc.Flow(until="rest"), metrics=("risk",))
    assert path.result == fc.Verdict.saddle
    np.testing.assert_allclose(path.metrics["risk"][-1], N / 2, rtol=1e-6)
    # From a generic start, the flow is slow near the saddle at the origin too, but passes it.
    path = fc.simulate(model, fc.initial.sphere(model, 1e-6, key=key), fc.Flow(until="rest"), metrics=("risk",))
    assert path.result == fc.Verdict.plateau
    assert float(path.metrics["risk"][-1]) < 1e-8
    assert float(path.ts[-1]) == float(path.t_end)


def test_an_early_end_is_no_rest(key):
    """`t1` is the latest end of a run until rest, and a run that ends there gets the verdict of a time limit."""
    model = decaying(5e-4)
    start = fc.initial.sphere(model, 0.1, key=key)
    path = fc.simulate(model, start, fc.Flow(until="rest", t1=3.0), 5, metrics=("risk",))
    assert path.result == fc.Verdict.time_limit
    assert float(path.t_end) == 3.0


# ---- runs that do not reach their end


def ends_where_it_says(full: fc.Trajectory, short: fc.Trajectory) -> bool:
    """The law: up to `t_end`, a short run equals a full run; later values are NaN; `t_end` is before the last time."""
    reached = np.asarray(short.ts) <= float(short.t_end)
    same = np.allclose(short.metrics["risk"][reached], full.metrics["risk"][reached], rtol=1e3 * RTOL)
    return bool(same and np.all(np.isnan(short.metrics["risk"][~reached])) and np.any(~reached))


@pytest.fixture(scope="module")
def cut_short(key):
    """The same saves for a full run, and for a run that uses up its steps."""
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
    start, ts = fc.initial.sphere(model, 0.1, key=key), np.linspace(0, 13, 27)

    def run(steps: int, **options) -> fc.Trajectory:
        return fc.simulate(model, start, fc.Flow(rtol=RTOL, max_steps=steps), ts, metrics=("risk",), **options)

    return run


def test_a_run_out_of_steps_says_where_it_ended(cut_short):
    full, short = cut_short(65_536), cut_short(20, save_states=True)
    assert short.result == fc.Verdict.step_limit
    assert 0 < float(short.t_end) < 13
    assert ends_where_it_says(full, short)
    reached = np.asarray(short.ts) <= float(short.t_end)
    for part in systems.arrays(short.states):
        assert np.all(np.isfinite(part[reached]))
        assert np.all(np.isnan(part[~reached]))
    # The end is the state at t_end: a run continued from it equals the full run.
    rest = fc.simulate(short.model, short.final, fc.Flow(rtol=RTOL), [13 - float(short.t_end)], metrics=("risk",))
    np.testing.assert_allclose(rest.metrics["risk"][-1], full.metrics["risk"][-1], rtol=1e4 * RTOL, atol=1e-12)


def test_the_law_sees_a_run_that_lies_about_its_end(cut_short, monkeypatch):
    """Plant a fault: return the requested end time as the time that was reached."""
    full, integrate = cut_short(65_536), Legs._integrate

    def requested(self, solver, layout, y0, scale, t0, t1, *rest):
        return integrate(self, solver, layout, y0, scale, t0, t1, *rest)._replace(t_end=t1)

    jax.clear_caches()
    monkeypatch.setattr(Legs, "_integrate", requested)
    lying = cut_short(20)
    monkeypatch.undo()
    jax.clear_caches()
    assert not ends_where_it_says(full, lying)


@pytest.mark.filterwarnings("ignore::flowcollapse.PrecisionWarning")
def test_a_start_in_float32_takes_implicit_steps_too(key):
    """With float64 turned on in JAX, a start may still be in float32. Its error is that of rounding at the end."""
    model = decaying(5e-4)
    start = fc.initial.sphere(model, 0.1, key=key)
    single = fc.State(*(x.astype(jnp.float32) for x in (start.H, start.W, start.b)))
    exact, found = (fc.simulate(model, one, fc.Flow(rtol=1e-5), 2, metrics="snc1") for one in (start, single))
    assert found.metrics["snc1"].dtype == jnp.float32
    assert found.result == fc.Verdict.plateau
    assert found.stats["accepted"] < 1000  # explicit steps would be thousands of times as many
    np.testing.assert_allclose(found.final.W, exact.final.W, atol=1e-3 * N**0.25)

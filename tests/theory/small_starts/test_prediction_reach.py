"""The range of predictions: their error within it, against SciPy's flow, and the refusals beyond it.

With `x = (||H0||^2 + ||W0||^2)/(2 sqrt N)` a start is small up to x = 1/32. The errors below are those that
`fc.predict` claims there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.theory.small_starts import curves, limits, prediction

KEY = jax.random.key(0)
BOUND = 1 / 32
STATE, SNC1 = 0.03, 0.12

# p above and at C - 1, two classes with the largest measured error, one sample per class.
SIZES = [(3, 3, 15), (3, 3, 2), (2, 10, 4), (3, 1, 5)]
PAPER = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)


def model_of(C: int, N: int, p: int) -> fc.UFM:
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p)


def start_of(model: fc.UFM, x: float, seed: int = 0) -> fc.State:
    eps = np.sqrt(x * np.sqrt(model.counts[0]))
    return fc.initial.sphere(model, eps, key=jax.random.key(seed), reduced=False)


@functools.cache
def predicted(model: fc.UFM):
    """The predicted states as a compiled function: inside jit, no start is refused."""
    return systems.compiled(lambda start, ts: prediction.states(model, start, ts))


def errors(model: fc.UFM, x: float, seed: int) -> tuple[float, float]:
    """The largest relative errors of the state and of SNC1 over the times to the plateau."""
    start = start_of(model, x, seed)
    ts = np.linspace(0, float(limits.plateau_time(model, start)), 41)
    true = systems.flow(systems.arrays(start), model.counts, ts, rtol=1e-10)
    found = systems.arrays(predicted(model)(start, jnp.asarray(ts)))
    off, size = (sum(np.sum(part**2, axis=tuple(range(1, part.ndim))) for part in parts) for parts in (
        [a - b for a, b in zip(found, true, strict=True)], true
    ))  # fmt: skip
    snc1 = [np.linalg.norm(W @ np.swapaxes(W, 1, 2) - frame(model), axis=(1, 2)) for W in (found.W, true.W)]
    return float(np.sqrt(np.max(off / size))), float(np.max(np.abs(snc1[0] / snc1[1] - 1)))


def frame(model: fc.UFM) -> np.ndarray:
    return np.sqrt(model.counts[0]) * systems.centring(model.num_classes)


@pytest.mark.parametrize(("C", "N", "p"), SIZES)
def test_at_the_bound_the_error_is_as_claimed_and_far_beyond_it_is_not(C, N, p):
    model = model_of(C, N, p)
    near, far = 0.8 * BOUND, 1.5  # the turn of the mean modes adds up to a few per cent to x
    prediction.states(model, start_of(model, near), [0.0])
    state, snc1 = np.max([errors(model, near, seed) for seed in range(3)], axis=0)
    assert state < STATE
    assert snc1 < SNC1
    state, snc1 = np.max([errors(model, far, seed) for seed in range(3)], axis=0)
    assert state > STATE
    assert snc1 > SNC1


@pytest.mark.parametrize(("eps", "N"), [(10.0, 3), (1.0, 3), (0.3, 3), (0.2, 1), (1.0, 100), (10.0, 10_000)])
def test_a_start_that_is_not_small_is_refused(eps, N):
    model = model_of(3, N, 5)
    with pytest.raises(fc.UsageError, match=r"start is not small.*sqrt N.*0\.03125.*fc\.simulate") as caught:
        fc.predict(model, fc.initial.sphere(model, eps, key=KEY))
    assert f"{eps**2 / np.sqrt(N):.1g}"[0] in str(caught.value)


@pytest.mark.parametrize(("eps", "N"), [(0.1, 1), (0.2, 3), (0.5, 100), (1e-6, 3)])
def test_a_small_start_is_measured_against_sqrt_n(eps, N):
    model = model_of(3, N, 5)
    assert limits.plateau(model, fc.initial.sphere(model, eps, key=KEY)).metrics["snc1"] > 0


EVERY = {
    "predict": lambda start: fc.predict(PAPER, start, [0.0]),
    "trajectory": lambda start: prediction.trajectory(PAPER, start, [0.0]),
    "states": lambda start: prediction.states(PAPER, start, [0.0]),
    "learning curve": lambda start: curves.learning_curve(PAPER, start, [0.0]),
    "descent curve": lambda start: curves.descent_curve(PAPER, start, 0.1, 2),
    "mean modes": lambda start: curves.mean_modes(PAPER, start, [0.0]),
    "plateau": lambda start: limits.plateau(PAPER, start),
    "plateau steps": lambda start: limits.plateau_steps(PAPER, start, 0.1),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_function_of_small_starts_refuses_a_large_one(name):
    with pytest.raises(fc.UsageError, match=r"start is not small"):
        EVERY[name](fc.initial.sphere(PAPER, 1.0, key=KEY))


def test_norms_of_small_starts_are_refused_when_they_are_not():
    with pytest.raises(fc.UsageError, match=r"eps is 0\.5.*up to 0\.233.*fc\.simulate"):
        limits.rms(PAPER, 0.5)
    assert limits.rms(PAPER, np.array([0.2, 1e-3]))["distance"].shape == (2,)


def test_on_the_subspace_any_size_is_predicted():
    """On S both equal the closed form of the flow, which holds at any size."""
    start, ts = fc.initial.on_subspace(PAPER, 3.0, key=KEY), np.array([0.0, 0.1, 1.0])
    exact = systems.flow_on_subspace(np.asarray(start.W), 0.0, 3, ts)
    found = prediction.states(PAPER, start, ts)
    assert systems.relative_error(systems.arrays(found), exact) < 1e3 * float(np.finfo(np.float64).eps)


def test_a_mode_that_is_too_faint_is_refused():
    """The rest of the start seeds it, at order eps^3, so the mode's part of the start does not determine its escape."""
    start = start_of(PAPER, 1e-3)
    means = systems.arrays(start).H.reshape(15, 3, 3).mean(axis=2) * np.sqrt(3)
    growing = systems.centring(3) @ (systems.arrays(start).W + means.T) / 2
    U, sigma, Vt = np.linalg.svd(growing)
    faint = (1 - 1e-6) * sigma[1] * np.outer(U[:, 1], Vt[1])
    H, W, b = systems.arrays(start)
    without = fc.State(H=H - np.repeat(faint.T, 3, axis=1) / np.sqrt(3), W=W - faint, b=b)
    prediction.states(PAPER, start, [0.0])
    with pytest.raises(fc.UsageError, match=r"start is not small.*faint mode"):
        prediction.states(PAPER, without, [0.0])


def test_times_after_which_the_slow_motion_is_unknown_are_refused():
    start = start_of(PAPER, 1e-3)
    with pytest.raises(fc.UsageError, match=r"ts ends at 1e\+06.*slow motion.*fc\.simulate"):
        fc.predict(PAPER, start, [0.0, 1e6])
    # With p = C - 1, no part is orthogonal to the modes, so nothing moves.
    model = model_of(3, 3, 2)
    risk = fc.predict(model, start_of(model, 1e-3), [0.0, 1e6], metrics=["risk"])["risk"]
    assert float(risk[-1]) < (1e-3 * 3**0.5) ** 4  # the next order, eps^8


def test_what_is_not_finite_is_not_predicted():
    start = start_of(PAPER, 1e-3)
    with pytest.raises(fc.UsageError, match="NaN or infinity"):
        fc.predict(PAPER, fc.State(H=start.H, W=start.W * jnp.nan, b=start.b))


def test_inside_jit_no_start_has_a_size_yet():
    path = jax.eval_shape(lambda: prediction.trajectory(PAPER, fc.initial.sphere(PAPER, 1.0, key=KEY), [0.0]))
    assert path.ts.shape == (1,)
    assert "not a run" in path.method.label

"""Runs of other losses than the squared error: rest at a certified minimum, at a saddle, or growing margins."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import systems
from jax.flatten_util import ravel_pytree
from trial_losses import Scaled

import flowcollapse as fc
from flowcollapse.endings.choice import ending_of
from flowcollapse.endings.stationary import residual_norm, slowest_rate
from flowcollapse.metrics.target import Target
from flowcollapse.model.problem import problem_of
from flowcollapse.simulation import as_arrays

KEY = jax.random.key(0)
C, N, P = 4, 3, 6
S = N**0.5
EPS = float(np.finfo(np.float64).eps)


def ufm(loss: Any = "cross-entropy", decay: Any = 0.0, counts=(N,) * C, p=P, **options) -> fc.UFM:
    """The model, always with three decays, so that programs do not differ in their number."""
    decays = decay if isinstance(decay, tuple) else (decay, decay, decay)
    return systems.model_of(counts, p, loss=loss, weight_decay=decays, **options)


def start_of(model: fc.UFM, eps=0.1) -> fc.State:
    return fc.initial.sphere(model, eps, key=KEY)


def run(model: fc.UFM, start: fc.State | None = None, ts=2, **options) -> fc.Trajectory:
    return fc.simulate(model, start_of(model) if start is None else start, fc.Flow(**options), ts, metrics="risk")


def largest_of_residual(model: fc.UFM, state: fc.State) -> float:
    """`||dR/dZ||_op`, from the risk's derivative in a shift of the logits of each sample."""
    H, W, b = systems.arrays(state)
    free = model.with_numbers({"weight_decay": 0.0})
    # With H = [0; I] and W = [., Z], the derivative in W's part Z is that in the logits.
    Z = W @ H + b[:, None]
    wide = fc.UFM(
        **{name: getattr(free, name) for name in ("num_classes", "samples_per_class", "loss", "reduction")},
        num_features=model.num_samples,
        use_bias=False,
    )
    slope = fc.velocity(wide, fc.State(H=np.eye(model.num_samples), W=Z, b=np.zeros(len(b)))).W
    return float(np.linalg.norm(np.asarray(slope), 2))


# ---- the certificate


@pytest.mark.parametrize("until", [None, "rest"])
@pytest.mark.parametrize("factor", [0.5, 0.98, 1.02])
def test_cross_entropy_on_both_sides_of_the_threshold(factor, until):
    """Below `mu = s` the minimum is the frame with `s phi(rho) = mu`, above it the origin. The run finds both.

    The slowest rate is 1/50 of the decay near the threshold, so the errors are up to `50 s` times the rtol of 1e-8.
    """
    model = ufm(decay=factor * S)
    path = run(model, until=until)
    assert path.result == fc.Verdict.minimum
    rho = max(np.log(1 + C * (1 / factor - 1)), 0.0)
    W = np.asarray(path.final.W)
    np.testing.assert_allclose(W @ W.T, rho * S * systems.centring(C), rtol=0, atol=1e-4)
    risk = C * N * np.log(1 + (C - 1) * np.exp(-rho)) + factor * S * S * (C - 1) * rho
    np.testing.assert_allclose(path.metrics["risk"][-1], risk, rtol=1e-8)
    assert largest_of_residual(model, path.final) <= 1.001 * factor * S


CERTIFIED = {
    "unequal decay, mean": ufm(decay=(0.1 / (C * N), 0.4 / (C * N), 0.0), reduction="mean"),
    "no bias": ufm(decay=0.3, use_bias=False),
    "a class that collapses": ufm(decay=1.2, counts=(9, 4, 1)),
    "label smoothing": ufm("label-smoothing:0.1", 0.2),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_no_other_start_leads_below_a_certified_minimum(name):
    """The certificate says that the minimum is global: quasi-Newton steps from four random starts end no lower."""
    model = CERTIFIED[name]
    path = run(model, until="rest")
    assert path.result == fc.Verdict.minimum
    found = float(path.metrics["risk"][-1])
    flat, unflatten = ravel_pytree(systems.random_state(model))
    risk = jax.jit(jax.value_and_grad(lambda x: fc.risk(model, unflatten(x))))
    for seed in range(4):
        begin = np.random.default_rng(seed).normal(size=flat.shape)
        other = scipy.optimize.minimize(
            lambda x: tuple(map(np.asarray, risk(x))),
            begin,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "gtol": 1e-10, "ftol": 1e-15},
        )
        assert found <= other.fun * (1 + 1e-8)


def test_label_smoothing_collapses_from_a_small_start():
    """Without decay the minimum is `W W^T = s rho* P` up to the start, with `rho* = ln(1 + C (1/eps - 1))`."""
    model = ufm("label-smoothing:0.1")
    path = run(model, start_of(model, 1e-4))
    assert path.result == fc.Verdict.minimum
    W, rho = np.asarray(path.final.W), np.log(1 + C * (1 / 0.1 - 1))
    np.testing.assert_allclose(W @ W.T, S * rho * systems.centring(C), rtol=0, atol=5e-3)


@pytest.mark.parametrize("loss", [Scaled(2.0), fc.losses.Focal(2.0)], ids=lambda loss: loss.name)
def test_a_loss_that_declares_no_convexity_gets_no_minimum(loss):
    """The same rest, of which nothing is known but that no mode can grow."""
    model = ufm(loss, 0.3)
    path = run(model, solver="dopri8", until="rest")
    assert path.result == fc.Verdict.critical
    assert largest_of_residual(model, path.final) <= 1.001 * 0.3


# ---- saddles, and runs that are not over


@pytest.mark.parametrize(("loss", "until"), [("cross-entropy", "rest"), ("focal:2", None)])
def test_a_start_at_the_saddle_stays_and_is_not_called_a_minimum(loss, until):
    model = ufm(loss, 0.3, use_bias=False)
    zero = jax.tree.map(jnp.zeros_like, start_of(model))
    path = run(model, zero, until=until)
    assert path.result == fc.Verdict.critical
    np.testing.assert_allclose(path.metrics["risk"][-1], path.metrics["risk"][0], rtol=64 * EPS)


@pytest.mark.parametrize(("size", "verdict"), [(0.0, fc.Verdict.critical), (1e-12, fc.Verdict.minimum)])
def test_a_mode_that_the_start_lacks_is_not_waited_for_and_a_tiny_one_is(size, verdict):
    """With two of three modes the flow slows down at a saddle, where the third one grows if it is there.

    Features that are zero stay zero, so the start lacks the mode exactly.
    """
    model = ufm(decay=0.3, use_bias=False)
    U = np.linalg.qr(systems.centring(C) @ np.random.default_rng(0).normal(size=(C, 3)))[0]
    W = np.zeros((C, P))
    W[:, :3] = U * np.array([1.0, 0.9, size])
    start = fc.State(H=np.repeat(W.T, N, axis=1) / S, W=W, b=np.zeros(C))
    path = run(model, start, rtol=1e-3, until="rest", solver="dopri8", coordinates="sample")
    assert path.result == verdict
    assert np.linalg.matrix_rank(path.final.W, tol=0.1) == (2 if size == 0 else 3)


def test_too_few_features_leave_a_critical_point_without_certificate():
    """With p < C - 1 the modes compete for the features, so the residual keeps a singular value above mu."""
    model = ufm(decay=0.3, p=2)
    path = run(model)
    assert path.result == fc.Verdict.critical
    assert largest_of_residual(model, path.final) > 1.01 * 0.3


@pytest.mark.parametrize(
    ("loss", "decay"), [("cross-entropy", (0.3, 0.0, 0.0)), ("label-smoothing:0.1", (0.3, 0.3, 0.3))]
)
def test_runs_that_stop_early_say_so(loss, decay):
    model = ufm(loss, decay)
    assert run(model, t1=0.5).result == fc.Verdict.time_limit
    assert run(model, t1=1e3, max_steps=5).result == fc.Verdict.step_limit
    descent = fc.simulate(model, start_of(model), fc.Descent("sgd", 3, learning_rate=0.1), metrics="risk")
    assert descent.result == fc.Verdict.step_limit


def test_decay_of_the_classifier_alone_has_no_minimum():
    """W shrinks and H grows without end: cross-entropy is separated, label smoothing just does not end."""
    assert run(ufm(decay=(0.1, 0.0, 0.0)), t1=300.0).result == fc.Verdict.separated
    assert run(ufm("label-smoothing:0.1", (0.1, 0.0, 0.0)), t1=300.0).result == fc.Verdict.time_limit


# ---- margins that grow


def test_cross_entropy_without_decay_is_separated_and_has_no_end():
    model = ufm()
    start = start_of(model)

    @systems.compiled
    def times(start):
        problem, point = problem_of(model, start)
        ending = ending_of(problem)
        return ending.escape_time(point), ending.log_end_time(point)

    path, (escape, log_end) = run(model, start, rtol=1e-6), times(start)
    assert path.result == fc.Verdict.separated
    np.testing.assert_allclose(path.t_end, np.exp(50) * escape, rtol=1e-10)
    np.testing.assert_allclose(log_end, 50 + np.log(escape), rtol=16 * EPS)
    assert run(model, start, t1=0.5).result == fc.Verdict.time_limit
    descent = fc.simulate(model, start, fc.Descent("sgd", 200, learning_rate=0.1), metrics="risk")
    assert descent.result == fc.Verdict.separated


def test_one_program_serves_decay_and_none():
    """Decays are traced: lanes of one batch end at rest or go on, each at its time."""
    start = start_of(ufm())
    flow = fc.Flow("dopri8", rtol=1e-6)

    @jax.jit
    @jax.vmap
    def lanes(decay):
        path = fc.simulate(ufm(decay=decay), start, flow, 2, metrics="risk")
        return path.code, path.t_end

    codes, ends = lanes(jnp.asarray([0.0, 0.3, 2.0]))
    assert codes.tolist() == [fc.Verdict.separated, fc.Verdict.minimum, fc.Verdict.minimum]
    assert ends[0] > 1e20
    assert np.all(ends[1:] < 1e4)


def test_numbers_of_the_loss_and_the_decay_have_no_derivative_through_the_end():
    """The end of a run is a constant: derivatives of the state there are finite and are those at a fixed time."""
    model = ufm(decay=0.3)
    start = start_of(model)
    t1 = run(model, start, rtol=1e-6).t_end

    def risk(decay, **options):
        decayed = model.with_numbers({"weight_decay": decay})
        return fc.simulate(decayed, start, fc.Flow(rtol=1e-6, **options), 2, metrics="risk").metrics["risk"][-1]

    np.testing.assert_allclose(jax.grad(risk)(0.3), jax.grad(lambda d: risk(d, t1=t1))(0.3), rtol=1e-6)


# ---- times


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_mean_of_the_squared_error_is_the_sum_at_its_pace(decay):
    """With the decay over M as well, the risk is that of the sum over M, so every time is M times as long."""
    M = C * N
    total, mean = ufm("squared", decay), ufm("squared", decay / M, reduction="mean")
    start = start_of(total)
    one, other = (run(model, start, solver="dopri8") for model in (total, mean))
    assert one.result == other.result == fc.Verdict.plateau
    np.testing.assert_allclose(other.t_end, M * one.t_end, rtol=1e-12)
    np.testing.assert_allclose(other.metrics["risk"][-1], one.metrics["risk"][-1] / M, rtol=1e-5)
    early = run(mean, start, solver="dopri8", t1=float(one.t_end))
    assert early.result == fc.Verdict.time_limit


RATES = [
    *((loss, decay) for loss in ("cross-entropy", "focal:2") for decay in (0.02, 0.3, (0.05, 0.8, 0.1))),
    ("cross-entropy", 1.7),
    ("cross-entropy", 1.9),
    ("label-smoothing:0.1", 0.0),
    ("label-smoothing:0.1", (0.02, 0.05, 0.1)),
]


@systems.compiled
def at_rest(model: fc.UFM, blank: fc.State):
    """The size and the ratio of the target, and the slowest rate there."""
    problem, point = problem_of(model, blank)
    target = Target.of(problem, point)
    return target.size, target.ratio, slowest_rate(problem, jnp.float64)


@systems.compiled
def derivatives(model: fc.UFM, state: fc.State):
    """Gradient and Hessian of the risk."""
    flat, unflatten = ravel_pytree(state)
    return tuple(d(lambda x: fc.risk(model, unflatten(x)))(flat) for d in (jax.grad, jax.hessian))


@pytest.mark.parametrize(
    ("loss", "decay", "classes"),
    [*((*rate, 5) for rate in RATES), ("cross-entropy", 0.3, 2), ("focal:2", (0.05, 0.8, 0.1), 3)],
)
def test_the_slowest_rate_is_the_least_curvature_at_the_minimum(loss, decay, classes):
    """From four classes on it is the smallest non-zero eigenvalue of the Hessian, with fewer at most that."""
    model = ufm(loss, decay, (N,) * classes, classes - 1)
    W = np.linalg.svd(systems.centring(classes))[0][:, :-1]
    blank = fc.State(H=np.zeros((classes - 1, classes * N)), W=W, b=np.zeros(classes))
    numbers = as_arrays(model, jnp.float64)
    size, ratio, rate = map(float, at_rest(numbers, blank))
    W = np.sqrt(size) * W
    state = fc.State(H=ratio / S * np.repeat(W.T, N, axis=1), W=W, b=np.zeros(classes))
    gradient, hessian = derivatives(numbers, state)
    np.testing.assert_allclose(gradient, 0, atol=1e-13)
    eigenvalues = np.linalg.eigvalsh(hessian)
    least = np.min(eigenvalues[np.abs(eigenvalues) > 1e-9])
    assert rate <= least * (1 + 1e-10)
    assert classes < 4 or rate >= least * (1 - 1e-10)


@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_the_residual_norm_is_the_largest_singular_value(size):
    G = size * np.random.default_rng(0).normal(size=(4, 9))
    np.testing.assert_allclose(residual_norm(jnp.asarray(G)), np.linalg.norm(G, 2), rtol=64 * EPS)

"""Limits of small starts: constants against special functions and random starts; other models against SciPy's flow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from scipy.special import gammaln, hyp2f1

import flowcollapse as fc
from flowcollapse.theory.small_starts import limits
from flowcollapse.theory.small_starts.escape import mean_mode_average
from flowcollapse.theory.small_starts.limits import decay_limit, imbalanced_limit

EPS = float(np.finfo(np.float64).eps)


def model_of(C: int, N, p: int, **options) -> fc.UFM:
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, **options)


# ---- the mean mode after the escape


@pytest.mark.parametrize(("C", "N"), [(2, 1), (3, 1), (3, 3), (3, 9), (5, 2), (10, 100), (100, 500)])
def test_kappa_is_a_ratio_of_gamma_functions(C, N):
    a = (1 + C * math.sqrt(N)) / 2
    wanted = 2 * gammaln(a) - gammaln(a - 0.5) - gammaln(a + 0.5)
    assert abs(math.log(limits.kappa(model_of(C, N, 2))) - wanted) < 16 * EPS * (1 + gammaln(a))


def test_kappa_of_a_large_problem():
    """`1 - 1/(4a) - 3/(32 a^2)` for large a, where the gamma functions cancel; the next term is of order a^-3."""
    a = (1 + 1000 * math.sqrt(5000)) / 2
    assert abs(limits.kappa(model_of(1000, 5000, 2)) - (1 - 1 / (4 * a) - 3 / (32 * a**2))) < 4 * EPS


@pytest.mark.parametrize("Cs", [2.0, 3 * math.sqrt(3), 6.5, 9.0, 20.0])
def test_the_mean_mode_follows_gauss(Cs):
    """`(1 - F)/x` and `-2 F'` of `F = 2F1(1/2, -1/2; c; x)`; the derivative is `-1/(4c) 2F1(3/2, 1/2; c + 1; x)`."""
    c, x = (1 + Cs) / 2, np.array([1e-9, 0.01, 0.3, 0.8, 0.99, 1.0 - 1e-9])
    lag, drive = mean_mode_average(Cs, jnp.asarray(x), jnp.asarray(1 - x))
    np.testing.assert_allclose(1 - x * lag, hyp2f1(0.5, -0.5, c, x), rtol=1e-12)
    np.testing.assert_allclose(drive, hyp2f1(1.5, 0.5, c + 1, x) / (2 * c), rtol=1e-12)


# ---- constants over random starts


@pytest.mark.parametrize("sizes", [(3, 3, 15), (4, 2, 3)])
def test_root_mean_squares_over_random_starts(sizes):
    """The averages of the squares over starts are within five standard errors of the prediction."""
    model, eps, lanes = model_of(*sizes), 1e-6, 4000

    @systems.compiled
    @jax.vmap
    def plateau(key):
        return limits.plateau(model, fc.initial.sphere(model, eps, key=key, reduced=False)).metrics

    found, wanted = plateau(jax.random.split(jax.random.key(0), lanes)), limits.rms(model, eps)
    assert set(wanted) - set(found) == {"snc2_numerator"}
    for name in set(wanted) & set(found):
        if name in ("nc3", "nc1_trace") and model.num_features == model.num_classes - 1:
            assert wanted[name] == 0
            continue
        samples, mean = np.asarray(found[name]), float(wanted[name])
        samples, mean = (samples, mean) if name == "nc1_trace" else (samples**2, mean**2)
        assert abs(samples.mean() - mean) < 5 * samples.std() / math.sqrt(lanes), name
    length = math.sqrt(math.sqrt(sizes[1]) * (sizes[0] - 1))
    np.testing.assert_allclose(wanted["snc2_numerator"], wanted["snc2"] * length, rtol=4 * EPS)


def test_root_mean_squares_at_the_sizes_of_the_paper():
    sizes = np.array([0.1, 1e-3])
    values = limits.rms(model_of(3, 3, 15), sizes)
    for name, wanted in (("snc2_numerator", 0.924), ("snc3", 0.052), ("distance", 1.004), ("nc1_trace", 0.167)):
        power = 2 if name == "nc1_trace" else 1
        np.testing.assert_allclose(values[name] / sizes**power, [wanted, wanted], atol=6e-4)  # of three decimals


def test_powers_of_two_classes():
    """Two class means always form a simplex, and the classifier deviates from it only in higher order."""
    model, sizes = model_of(2, 3, 4), np.array([3e-3, 1e-3])
    known = limits.powers(model)

    @systems.compiled
    @jax.vmap
    def plateau(eps):
        start = fc.initial.sphere(model, eps, key=jax.random.key(2), reduced=False)
        return fc.metrics.evaluate(model, limits.plateau(model, start).state, tuple(known))

    for name, values in plateau(sizes).items():
        assert abs(np.diff(np.log(values))[0] / np.diff(np.log(sizes))[0] - known[name]) < 0.01, name


def test_metrics_that_have_no_power_are_left_out():
    assert "risk" not in limits.powers(model_of(3, 1, 5))
    assert "nc1" not in limits.powers(model_of(4, 2, 3))
    assert "nc3" not in limits.powers(model_of(2, 3, 1))


# ---- unequal counts and decay


def end_of_flow(counts, p: int, t: float, size: float, **options) -> systems.Arrays:
    """SciPy's flow at time t, from a random start with entries of the given size."""
    rng = np.random.default_rng(7)
    C, total = len(counts), sum(counts)
    start = systems.Arrays(size * rng.normal(size=(p, total)), size * rng.normal(size=(C, p)), np.zeros(C))
    path = systems.flow(start, counts, [0.0, t], rtol=1e-10, **options)
    return systems.Arrays(*(part[-1] for part in path))


@pytest.mark.parametrize("use_bias", [True, False])
def test_unequal_counts(use_bias):
    counts, size = (5, 1, 3), 1e-4
    limit = imbalanced_limit(model_of(3, counts, 4, use_bias=use_bias))
    _, W, b = end_of_flow(counts, 4, 30.0, size, use_bias=use_bias)
    assert np.linalg.norm(W @ W.T - limit.gram) < 100 * size**2
    assert np.linalg.norm(b - limit.b) < 10 * size


def test_equal_counts_are_a_special_case():
    limit = imbalanced_limit(model_of(4, 9, 3))
    np.testing.assert_allclose(limit.gram, 3 * systems.centring(4), atol=100 * EPS)
    np.testing.assert_allclose(limit.b, 0.25, rtol=EPS)


# Mean mode: off, off for lack of features, on, on with unequal decays. Then so much decay that W vanishes; no bias.
@pytest.mark.parametrize(
    ("p", "decay", "use_bias", "mean_is_on"),
    [
        (5, (0.4, 0.9, 0.0), True, False),
        (2, (0.4, 0.4, 3.0), True, False),
        (5, (0.3, 0.3, 3.0), True, True),
        (5, (0.4, 0.2, 2.5), True, True),
        (5, (2.5, 2.5, 0.3), True, False),
        (3, (0.5, 0.8, 0.0), False, False),
    ],
)
def test_decay(p, decay, use_bias, mean_is_on):
    limit = decay_limit(model_of(3, 4, p, weight_decay=decay, use_bias=use_bias))
    assert (limit.mean > 0) == mean_is_on
    H, W, b = end_of_flow((4, 4, 4), p, 600.0 if mean_is_on else 80.0, 1e-2, decay=decay, use_bias=use_bias)
    assert np.linalg.norm(W @ W.T - limit.gram) < 1e-7
    assert np.linalg.norm(b - limit.b) < 1e-7
    means = 2 * H.reshape(p, 3, 4).mean(axis=2)
    assert np.linalg.norm(means - math.sqrt(decay[0] / decay[1]) * W.T) < 1e-7


def test_decay_of_the_bias_alone():
    limit = decay_limit(model_of(3, 4, 5, weight_decay=(0.0, 0.0, 0.5)))
    np.testing.assert_allclose(limit.gram, 2 * np.eye(3), atol=4 * EPS)
    np.testing.assert_array_equal(limit.b, 0)


# ---- times, and bad input


def test_the_plateau_time():
    model = model_of(3, 3, 15)
    start = fc.initial.sphere(model, 1e-3, key=jax.random.key(0), reduced=False)
    H, W, _ = systems.arrays(start)
    V0 = systems.centring(3) @ (W + math.sqrt(3) * H.reshape(15, 3, 3).mean(axis=2).T) / 2
    smallest = np.linalg.svd(V0, compute_uv=False)[1]
    for decay in (20.0, 30.0):
        wanted = (math.log(3**0.25 / smallest) + decay) / math.sqrt(3)
        np.testing.assert_allclose(limits.plateau_time(model, start, decay), wanted, rtol=1e4 * EPS)
    # Descent with small steps takes the same time.
    steps = limits.plateau_steps(model, start, 1e-4)
    np.testing.assert_allclose(steps * 1e-4, limits.plateau_time(model, start), rtol=1e-3)


@pytest.mark.parametrize(
    ("function", "model", "message"),
    [
        (decay_limit, model_of(3, (1, 2, 3), 4), "imbalanced"),
        (decay_limit, model_of(3, 2, 1), "num_features is 1"),
        (decay_limit, model_of(3, 2, 4, weight_decay=(0.1, 0.0, 0.0)), "only one of W and H"),
        (imbalanced_limit, model_of(3, 2, 4, weight_decay=0.1), "decay_limit"),
        (imbalanced_limit, model_of(3, (1, 2, 3), 1), "num_features is 1"),
        (limits.kappa, model_of(3, (1, 2, 3), 4), "imbalanced"),
        (limits.powers, model_of(3, (1, 2, 3), 4), "imbalanced"),
        (lambda model: limits.rms(model, 0.1), model_of(3, 2, 4, use_bias=False), "use_bias is False"),
        (lambda model: limits.rms(model, 0.1), model_of(4, 2, 2), "num_features is 2"),
        (lambda model: limits.rms(model, -0.1), model_of(4, 2, 5), "eps must be positive"),
    ],
)
def test_what_is_refused(function, model, message):
    with pytest.raises(fc.UsageError, match=message):
        function(model)


def test_a_learning_rate_that_collapse_repels():
    model = model_of(3, 3, 15)
    start = fc.initial.sphere(model, 1e-3, key=jax.random.key(0))
    with pytest.raises(fc.UsageError, match=r"only below 0\.186"):
        limits.plateau_steps(model, start, 0.19)

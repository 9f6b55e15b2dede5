"""Descent: plain NumPy loops, optax on the full state, the closed form on S, and the flow as its limit."""

import copy
import pickle
import threading
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import systems

import flowcollapse as fc
from flowcollapse.model.problem import Point

EPS = float(jnp.finfo(jnp.float64).eps)
STEPS = 200
# Rounding of a few hundred steps, amplified by the escape from the origin.
ROUNDED = 1e5 * EPS

IMBALANCED = fc.UFM(num_classes=3, samples_per_class=(4, 2, 3), num_features=4)


def gradient(model, z: systems.Arrays) -> systems.Arrays:
    return systems.Arrays(*(-part for part in systems.velocity(z, model.counts)))


def numpy_descent(model, z: systems.Arrays, eta: float, beta: float = 0.0, nesterov: bool = False):
    """All iterates of gradient descent with momentum: `m <- beta m + grad`, `z <- z - eta m` (Polyak), or the same with
    `z <- z - eta (beta m + grad)` (Nesterov, as Sutskever et al. 2013 write it)."""
    m = systems.Arrays(*(0 * part for part in z))
    iterates = [z]
    for _ in range(STEPS):
        g = gradient(model, z)
        m = systems.Arrays(*(beta * mi + gi for mi, gi in zip(m, g, strict=True)))
        step = systems.Arrays(*(beta * mi + gi for mi, gi in zip(m, g, strict=True))) if nesterov else m
        z = systems.Arrays(*(zi - eta * si for zi, si in zip(z, step, strict=True)))
        iterates.append(z)
    return systems.Arrays(*(np.stack(parts) for parts in zip(*iterates, strict=True)))


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.8}, {"momentum": 0.8, "nesterov": True}],
    ids=["plain", "momentum", "Nesterov"],
)
def test_iterates_are_those_of_a_plain_loop(options):
    """The loop runs on the full state, sample by sample; ours runs on class means, where these steps are equal."""
    eta = 0.02
    start = systems.random_state(IMBALANCED, size=0.3)
    method = fc.Descent("sgd", STEPS, learning_rate=eta, **options)
    path = fc.simulate(IMBALANCED, start, method, save_states=True, metrics=("risk",))
    assert path.coordinates == "class-mean"
    beta, nesterov = options.get("momentum", 0.0), options.get("nesterov", False)
    iterates = numpy_descent(IMBALANCED, systems.arrays(start), eta, beta, nesterov)
    kept = np.round(np.linspace(0, STEPS, 101)).astype(int)
    expected = systems.Arrays(*(part[kept] for part in iterates))
    assert systems.relative_error(systems.arrays(path.states), expected) < ROUNDED
    assert systems.relative_error(systems.arrays(path.final), [part[-1] for part in iterates]) < ROUNDED
    risks = [systems.risk(systems.Arrays(*z), IMBALANCED.counts) for z in zip(*expected, strict=True)]
    np.testing.assert_allclose(path.metrics["risk"], risks, rtol=1e-9)


def test_adam_is_adam_on_the_full_state():
    """Kingma and Ba 2015, written out. Adam acts on single entries, so it must run on the samples."""
    eta, b1, b2, small = 0.01, 0.9, 0.999, 1e-8
    start = systems.random_state(IMBALANCED, size=0.3)
    z = systems.arrays(start)
    m, v = ([np.zeros_like(part) for part in z] for _ in range(2))
    for k in range(1, STEPS + 1):
        g = gradient(IMBALANCED, z)
        m = [b1 * mi + (1 - b1) * gi for mi, gi in zip(m, g, strict=True)]
        v = [b2 * vi + (1 - b2) * gi**2 for vi, gi in zip(v, g, strict=True)]
        steps = [mi / (1 - b1**k) / (np.sqrt(vi / (1 - b2**k)) + small) for mi, vi in zip(m, v, strict=True)]
        z = systems.Arrays(*(zi - eta * si for zi, si in zip(z, steps, strict=True)))
    path = fc.simulate(IMBALANCED, start, fc.Descent("adam", STEPS, learning_rate=eta), metrics=())
    assert path.coordinates == "sample"
    assert systems.relative_error(systems.arrays(path.final), z) < 1e-9  # 1 - b2^k cancels three digits at first


def test_descent_on_the_subspace_is_its_recursion(key):
    """S is invariant under descent at any step size; on it each singular value has its own scalar recursion.

    One compilation serves three step sizes; at the last one the bias alternates in sign.
    """
    model = fc.UFM(num_classes=4, samples_per_class=3, num_features=5)
    start = fc.initial.on_subspace(model, eps=0.3, key=key)
    W0 = np.asarray(start.W)

    def run(eta):
        method = fc.Descent("sgd", STEPS, learning_rate=eta, coordinates="class-mean")
        return fc.simulate(model, start, method, save_states=True, metrics=("distance",))

    kept = np.round(np.linspace(0, STEPS, 101)).astype(int)
    for eta in (0.01, 0.05, 0.13):
        path = run(eta)
        iterates = systems.descent_on_subspace(W0, 0.0, 3, eta, STEPS)
        assert systems.relative_error(systems.arrays(path.states), [part[kept] for part in iterates]) < ROUNDED
        assert float(jnp.max(path.metrics["distance"])) < ROUNDED
        np.testing.assert_allclose(path.ts, eta * kept, rtol=1e-12)


def test_the_flow_is_the_limit_of_descent(paper_model):
    """At a fixed time the iterate differs from the flow by O(eta): a slope of 1 over four halvings of the step.

    All step sizes are lanes of one compilation, with as many steps as the smallest needs; the saves at time T are
    compared.
    """
    T, counts = 1.5, jnp.array([100, 200, 400, 800, 1600])
    start = systems.random_state(paper_model, size=0.1)
    exact = systems.flow(systems.arrays(start), paper_model.counts, np.array([T]))

    def run(eta):
        method = fc.Descent("sgd", 1600, learning_rate=eta, coordinates="class-mean")
        return fc.simulate(paper_model, start, method, jnp.array([T]), save_states=True, metrics=())

    etas = T / counts
    paths = [run(eta) for eta in etas]
    np.testing.assert_allclose([path.ts[0] for path in paths], T, rtol=1e-12)
    errors = [systems.relative_error(systems.arrays(path.states), exact) for path in paths]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(etas))
    # The next term of the expansion has one more factor of eta, so each halving halves the defect of the slope.
    np.testing.assert_allclose(slopes[-1], 1, atol=0.02)
    assert np.all(np.diff(np.abs(slopes - 1)) < 0)


def clock(method: fc.Descent, model=IMBALANCED) -> np.ndarray:
    return np.asarray(fc.simulate(model, systems.random_state(model, size=0.1), method, metrics=()).ts)


def test_time_is_the_sum_of_the_step_sizes():
    """For a schedule, the cumulative learning rates; for momentum, `eta (1 + beta + ...)` summed over the steps."""
    schedule = optax.linear_schedule(0.02, 0.0, 50)
    expected = np.cumsum([0.0, *(0.02 * (1 - k / 50) for k in range(50))])
    single = float(jnp.finfo(jnp.float32).eps)  # in which optax evaluates its schedules
    np.testing.assert_allclose(clock(fc.Descent(optax.sgd(schedule), 50)), expected, rtol=single)

    eta, beta = 0.01, 0.5
    speeds = eta * (1 - beta ** np.arange(1, 51)) / (1 - beta)
    momentum = clock(fc.Descent("sgd", 50, learning_rate=eta, momentum=beta))
    np.testing.assert_allclose(momentum, np.cumsum([0.0, *speeds]), rtol=1e-12)


def test_saves_are_at_the_nearest_steps(paper_model):
    """Steps cannot hit every requested time; the result gives the times of the saves."""
    method = fc.Descent("sgd", 100, learning_rate=0.02)
    path = fc.simulate(
        paper_model, systems.random_state(paper_model), method, [0.0, 0.029, 0.031, 1.0, 2.0], metrics=()
    )
    np.testing.assert_allclose(path.ts, [0.0, 0.02, 0.04, 1.0, 2.0], rtol=1e-12)
    nearest = path.to_xarray().sel(time=0.9, method="nearest")
    np.testing.assert_allclose(nearest.time, 1.0, rtol=1e-12)
    assert float(path.t_end) == pytest.approx(2.0)
    assert int(path.stats["taken"]) == 100


def test_stability_ends_at_two_over_the_largest_curvature(paper_model, key):
    """At strong collapse the Hessian's largest eigenvalue is `CN + s`: descent returns iff `eta < 2/(CN + s)`."""
    collapsed = fc.initial.collapsed(paper_model, key=key)
    nearby = jax.tree.map(lambda x, d: x + 1e-6 * d, collapsed, systems.random_state(paper_model))
    before = float(fc.metrics.snc(paper_model, nearby)[0])
    for ratio, returns in ((0.95, True), (1.05, False)):
        method = fc.Descent("sgd", 1000, learning_rate=ratio * 2 / (9 + 3**0.5))
        path = fc.simulate(paper_model, nearby, method, metrics=("snc1",))
        after = float(path.metrics["snc1"][-1])
        assert (after < 2 * before) if returns else (after > 0.1)


# ---- rates by W, H and b

FAST, SLOW = 0.05, 0.01
RATES: dict[Any, Any] = {"fast": optax.sgd(FAST), "slow": optax.sgd(SLOW), "frozen": optax.set_to_zero()}
LABELS = {
    "a dictionary": {"W": "fast", "H": "fast", "b": "slow"},
    "a named tuple": Point("fast", "fast", "slow"),  # pyright: ignore[reportArgumentType]
    "a tuple": ("fast", "fast", "slow"),
    "a function": lambda tree: {name: "slow" if name == "b" else "fast" for name in tree},
}


def loop(z: systems.Arrays, rates: tuple[float, float, float], steps: int) -> systems.Arrays:
    """Gradient descent with rates for H, W and b."""
    for _ in range(steps):
        z = systems.Arrays(*(x - rate * g for x, rate, g in zip(z, rates, gradient(IMBALANCED, z), strict=True)))
    return z


def ended(optimizer, steps: int = 40, **options) -> fc.Trajectory:
    start = systems.random_state(IMBALANCED, size=0.3)
    return fc.simulate(IMBALANCED, start, fc.Descent(optimizer, steps, **options), 3, metrics=())


@pytest.mark.parametrize("form", LABELS)
def test_parts_have_rates_by_their_labels(form):
    path = ended(optax.multi_transform(RATES, LABELS[form]))
    expected = loop(systems.arrays(systems.random_state(IMBALANCED, size=0.3)), (FAST, FAST, SLOW), 40)
    assert path.coordinates == "class-mean"
    assert systems.relative_error(systems.arrays(path.final), expected) < ROUNDED
    np.testing.assert_allclose(path.t_end, 40 * FAST, rtol=1e-12)  # the common rate of W and H


def test_what_is_frozen_rests_and_leaves_the_time_to_the_rest():
    path = ended(optax.multi_transform(RATES, {"W": "fast", "H": "frozen", "b": "slow"}))
    start = systems.random_state(IMBALANCED, size=0.3)
    expected = loop(systems.arrays(start), (0.0, FAST, SLOW), 40)
    assert systems.relative_error(systems.arrays(path.final), expected) < ROUNDED
    np.testing.assert_allclose(path.final.H, start.H, rtol=ROUNDED, atol=ROUNDED)
    np.testing.assert_allclose(path.t_end, 40 * FAST, rtol=1e-12)


def test_the_clock_of_different_rates_is_the_users():
    optimizer = optax.multi_transform(RATES, {"W": "fast", "H": "slow", "b": "slow"})
    with pytest.raises(fc.UsageError, match=r"same for W and H.*clock="):
        ended(optimizer)
    squares = np.arange(41.0) ** 2
    for clock in (lambda k: 2.0 * k + 1.0, squares, squares[1:].tolist()):
        path = ended(optimizer, clock=clock)
        np.testing.assert_allclose(path.ts, [0.0, 400.0, 1600.0], rtol=1e-12)
    assert float(ended(optimizer, clock=0.5).t_end) == 20.0
    expected = loop(systems.arrays(systems.random_state(IMBALANCED, size=0.3)), (SLOW, FAST, SLOW), 40)
    assert systems.relative_error(systems.arrays(path.final), expected) < ROUNDED


# ---- optimizers that need the loss, or random numbers


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), "lbfgs"], ids=["ready", "by name"])
def test_lbfgs_converges_to_zero_risk(optimizer, paper_model):
    """L-BFGS converges superlinearly, in far fewer steps than the thousands that stable gradient descent needs."""
    start = systems.random_state(paper_model, size=0.3)
    path = fc.simulate(paper_model, start, fc.Descent(optimizer, 60), 3, metrics=("risk",))
    assert float(path.metrics["risk"][-1]) < 1e-20
    np.testing.assert_array_equal(path.ts, [0.0, 30.0, 60.0])  # it counts its steps


def test_polyak_steps_are_the_risk_over_the_squared_gradient():
    """`eta = min(max_learning_rate, R / ||grad R||^2)`, as in Loizou et al. 2021 with a smallest risk of 0."""
    z = systems.arrays(systems.random_state(IMBALANCED, size=0.3))
    for _ in range(40):
        g = gradient(IMBALANCED, z)
        eta = min(0.1, systems.risk(z, IMBALANCED.counts) / sum(np.sum(part**2) for part in g))
        z = systems.Arrays(*(x - eta * part for x, part in zip(z, g, strict=True)))
    found = ended("polyak_sgd", max_learning_rate=0.1)
    assert systems.relative_error(systems.arrays(found.final), z) < 1e-7  # optax adds 1e-8 or so to the square


def test_a_rate_that_falls_at_a_plateau_has_the_time_of_the_rate():
    path = ended(optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau()))
    expected = loop(systems.arrays(systems.random_state(IMBALANCED, size=0.3)), (0.05, 0.05, 0.05), 40)
    assert systems.relative_error(systems.arrays(path.final), expected) < ROUNDED
    np.testing.assert_allclose(path.t_end, 40 * 0.05, rtol=1e-6)


def test_noise_has_no_part_in_the_time():
    np.testing.assert_allclose(ended("noisy_sgd", learning_rate=0.01, key=3).t_end, 0.4, rtol=1e-9)


# ---- warm-up


def test_warm_up_from_zero_is_the_plain_loop_in_class_means():
    """The first step has length 0 and takes no time, so saves at both of its ends would have the same time."""
    schedule = optax.linear_schedule(0.0, 0.02, 20)
    start = systems.random_state(IMBALANCED, size=0.3)
    path = fc.simulate(IMBALANCED, start, fc.Descent(optax.sgd(schedule), 40, coordinates="class-mean"), metrics=())
    z, rates = systems.arrays(start), [0.02 * min(k / 20, 1.0) for k in range(40)]
    for eta in rates:
        z = loop(z, (eta, eta, eta), 1)
    single = float(jnp.finfo(jnp.float32).eps)  # in which optax evaluates its schedules
    assert systems.relative_error(systems.arrays(path.final), z) < 100 * single
    np.testing.assert_allclose(path.ts, np.unique(np.cumsum([0.0, *rates])), rtol=100 * single)
    assert np.all(np.diff(path.ts) > 0)


# ---- files and copies


@pytest.mark.parametrize("reduced", [False, True], ids=["samples", "reduced"])
def test_trajectories_survive_pickles_and_copies(paper_model, key, reduced):
    """A ready optimizer, with its closures: the same numbers, and the same steps when it runs again."""
    start = fc.initial.sphere(paper_model, 0.1, key=key, reduced=reduced)
    path = fc.simulate(paper_model, start, fc.Descent(optax.sgd(lambda k: 0.05 / (1 + k)), 9), 4, metrics=("risk",))
    copies = [module.loads(module.dumps(path)) for module in (pickle, cloudpickle)]
    for one in (*copies, copy.deepcopy(path), copy.copy(path)):
        assert repr(one) == repr(path)
        for a, b in zip(systems.arrays(one.final), systems.arrays(path.final), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.method.step_times(jnp.float64), path.method.step_times(jnp.float64))
    again = fc.simulate(paper_model, start, copies[0].method, 4, metrics=("risk",))
    np.testing.assert_allclose(again.metrics["risk"], path.metrics["risk"], rtol=1e-12)


def test_what_cannot_be_pickled_is_told():
    lock = threading.Lock()  # cannot be pickled
    method = fc.Descent(optax.sgd(lambda k: 0.05 if lock else 0.1), 9)
    with pytest.raises(fc.UsageError, match=r"descent \(optax, 9 steps\) cannot be pickled"):
        pickle.dumps(method)


# ---- open numbers, and bad input


def test_an_open_learning_rate_is_an_axis(paper_model):
    options: dict[str, Any] = {"eps": [0.1], "seeds": 1, "ts": 2, "metrics": ["risk"], "progress": False}
    swept = fc.sweep(paper_model, fc.Descent("adam", 20), learning_rate=[0.01, 0.02], **options)
    start = fc.initial.sphere(paper_model, 0.1, key=jax.random.key(0))
    for rate in (0.01, 0.02):
        path = fc.simulate(paper_model, start, fc.Descent("adam", 20, learning_rate=rate), 2, metrics=("risk",))
        found = swept.risk.sel(learning_rate=rate).values.ravel()
        np.testing.assert_allclose(found, path.metrics["risk"], rtol=1e-9)


def fails(updates, state, params=None):
    raise KeyError("kernel")


REFUSED = {
    "an open number": ("adam", {}, ["adam needs learning_rate", "axis"]),
    "labels of another tree": (optax.masked(optax.sgd(0.1), [True, False]), {}, ["optax.masked", "'W', 'H', 'b'"]),
    "an update that raises": (
        optax.GradientTransformation(lambda params: (), fails),
        {},
        ["optax", "KeyError", "kernel"],
    ),
    "pairs of parameters": (optax.lookahead(optax.sgd(0.1), 5, 0.5), {}, ["optax.lookahead"]),
    "noise without a key": ("noisy_sgd", {"learning_rate": 0.1}, ["noisy_sgd", "key=0"]),
    "uphill": (optax.sgd(-0.1), {}, ["clock=", "-0.1"]),
    "all frozen": (optax.set_to_zero(), {}, ["clock=", "0, 0"]),
    "times beyond the end": (
        "sgd",
        {"learning_rate": 0.01, "ts": [0.0, 5.0, 50.0]},
        ["50", "ends at 0.09", "num_steps"],
    ),
    "times beyond t1": ("sgd", {"learning_rate": 0.01, "t1": 0.05, "ts": [0.0, 0.08]}, ["0.08", "t1=0.05"]),
    "two times of one step": ("sgd", {"learning_rate": 0.01, "ts": [0.011, 0.012]}, ["0.011", "0.012", "time 0.01"]),
    "a clock of zero": ("sgd", {"learning_rate": 0.01, "clock": 0.0}, ["clock", "0.0", "positive"]),
    "a clock that goes back": ("sgd", {"learning_rate": 0.01, "clock": [*range(1, 9), 6]}, ["clock", "increase"]),
    "a short clock": ("sgd", {"learning_rate": 0.01, "clock": [1.0, 2.0]}, ["clock", "(2,)", "9 times"]),
    "a word for a clock": ("sgd", {"learning_rate": 0.01, "clock": "fast"}, ["clock", "'fast'"]),
    "a clock that stands still": ("sgd", {"learning_rate": 0.01, "clock": lambda k: 0.0 * k}, ["clock=", "0, 0"]),
    "a clock that raises": ("sgd", {"learning_rate": 0.01, "clock": lambda: 0.1}, ["clock", "TypeError"]),
}


@pytest.mark.filterwarnings("ignore:Specifying a key")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_told_before_it_does(name, monkeypatch):
    optimizer, options, words = REFUSED[name]
    options = dict(options)
    ts = options.pop("ts", 3)
    monkeypatch.setattr(fc.Descent, "run", lambda *_: pytest.fail("the run began"))
    start = systems.random_state(IMBALANCED, size=0.3)

    def run():
        fc.simulate(IMBALANCED, start, fc.Descent(optimizer, 9, **options), ts, metrics=())

    with pytest.raises(fc.UsageError) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message

"""Lanes in lockstep as the last axis give the same numbers as a single lane, whatever the other lanes are."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import compiled

import flowcollapse as fc
from flowcollapse._linalg.algebra import sum_of_squares, times
from flowcollapse.programs import LANES_LAST_UP_TO, lanes_last

EPS = float(jnp.finfo(jnp.float64).eps)

# ---- the function


def seen_by(function):
    """The function, and the number of axes of its first argument at each call."""
    seen = []

    def watched(x, *args):
        seen.append(x.ndim)
        return function(x, *args)

    return lanes_last(watched), seen


def affine(A, x, scale):
    return {"y": scale * times(A, x), "x": x}


@pytest.fixture
def numbers(key):
    A, x = jax.random.normal(key, (5, 3, 4)), jax.random.normal(jax.random.fold_in(key, 1), (5, 4))
    return A, x, jnp.arange(1.0, 6.0)


def test_lanes_come_last(numbers):
    A, x, scale = numbers
    function, seen = seen_by(affine)
    found = jax.vmap(function)(A, x, scale)
    assert seen[-1] == 3
    np.testing.assert_allclose(found["y"], scale[:, None] * jnp.einsum("lmk,lk->lm", A, x), rtol=1e3 * EPS)
    assert found["x"].tolist() == x.tolist()


def test_what_all_lanes_share_is_repeated(numbers):
    A, x, scale = numbers
    function, _ = seen_by(affine)
    found = jax.vmap(function, (None, 0, None))(A[0], x, scale[1])["y"]
    np.testing.assert_allclose(found, 2 * x @ A[0].T, rtol=0, atol=1e3 * EPS)


def test_lanes_of_lanes_are_all_last(numbers):
    A, x, scale = (jnp.stack([a, 2 * a]) for a in numbers)
    function, seen = seen_by(affine)
    found = jax.vmap(jax.vmap(function))(A, x, scale)["y"]
    assert seen[-1] == 4
    np.testing.assert_allclose(found, scale[..., None] * jnp.einsum("ilmk,ilk->ilm", A, x), rtol=1e3 * EPS)


def test_large_arrays_are_mapped_as_usual():
    function, seen = seen_by(lambda x: 2 * x)
    x = jnp.ones((3, LANES_LAST_UP_TO + 1))
    assert jax.vmap(function)(x).tolist() == (2 * x).tolist()
    assert set(seen) == {1}


def test_lanes_of_lanes_share_one_call(numbers):
    """XLA does not inline it, so it computes each operation once for all lanes, whatever turns the outcome back."""
    function = jax.vmap(lanes_last(affine))
    for deeper in (function, jax.vmap(function)):
        arrays = numbers if deeper is function else tuple(x[None] for x in numbers)
        text = jax.jit(deeper).lower(*arrays).as_text()
        assert len(re.findall(r"call @.*inlineable", text)) == 1


def test_derivatives_are_those_of_the_function(numbers):
    A, x, scale = numbers
    loss = lambda function: lambda A, x, s: jnp.sum(function(A, x, s)["y"] ** 2)  # noqa: E731
    wanted = jax.vmap(jax.grad(loss(affine), (0, 1, 2)))(A, x, scale)
    of_lanes = jax.vmap(jax.grad(loss(lanes_last(affine)), (0, 1, 2)))(A, x, scale)
    of_all = jax.grad(lambda *a: jnp.sum(jax.vmap(loss(lanes_last(affine)))(*a)), (0, 1, 2))(A, x, scale)
    tangents = jax.jvp(jax.vmap(loss(lanes_last(affine))), (A, x, scale), (A, x, scale))[1]
    for found in (of_lanes, of_all):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e3 * EPS, atol=1e3 * EPS)
    np.testing.assert_allclose(tangents, 6 * jax.vmap(loss(affine))(A, x, scale), rtol=1e3 * EPS)  # of degree six


@pytest.mark.parametrize("lanes", [(), (2,), (2, 3)])
def test_sums_and_products_of_lanes(key, lanes):
    A, B, v = (jax.random.normal(key, (*shape, *lanes)) for shape in ((3, 7), (7, 2), (7,)))
    np.testing.assert_allclose(times(A, B), jnp.einsum("mk...,kn...->mn...", A, B), atol=1e3 * EPS)
    np.testing.assert_allclose(times(A, v), jnp.einsum("mk...,k...->m...", A, v), atol=1e3 * EPS)
    wanted = jnp.sum(A**2, (0, 1)) + jnp.sum(v**2, 0)
    np.testing.assert_allclose(sum_of_squares([A, v], len(lanes)), wanted, rtol=1e3 * EPS)


# ---- the flow

MODELS = {
    "paper": fc.UFM(num_classes=3, samples_per_class=3, num_features=15),
    "imbalanced": fc.UFM(num_classes=3, samples_per_class=(1, 2, 4), num_features=5),
    "without bias": fc.UFM(num_classes=2, samples_per_class=3, num_features=4, use_bias=False),
    "one sample a class": fc.UFM(num_classes=3, samples_per_class=1, num_features=4, weight_decay=(0.1, 0.2, 0.3)),
}
COORDINATES = {
    "paper": "auto",
    "one sample a class": "auto",
    "imbalanced": "class-mean",
    "without bias": "sample",
}


@functools.cache
def programs_of(name):
    """A run as a function of the seed and eps, and its lanes. It returns its steps and the numbers to compare."""
    model, coordinates = MODELS[name], COORDINATES[name]

    def run(seed, eps):
        start = fc.initial.sphere(model, eps, key=jax.random.key(seed))
        flow = fc.Flow("exponential", rtol=1e-7, approach="explicit", coordinates=coordinates)
        path = fc.simulate(model, start, flow, 7, metrics=("risk", "nc1_trace"), save_states=True)
        steps = {name: path.stats[name] for name in ("accepted", "rejected")}
        states: Any = path.states
        return steps, {**path.metrics, "W": states.W, "H": states.H, "b": states.b, "t": path.ts}

    return compiled(run), compiled(jax.vmap(run))


def same(found, wanted, atol):
    for name, number in wanted[0].items():
        np.testing.assert_array_equal(found[0][name], number, err_msg=name)
    for name, value in wanted[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=atol * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_lane_is_its_run_alone(name):
    """The steps are equal, and the states agree up to rounding amplified by the escape from the origin."""
    alone, lanes = programs_of(name)
    seeds, eps = jnp.arange(3), jnp.array([0.3, 0.1, 1.0])
    together = lanes(seeds, eps)
    for i in range(3):
        same(jax.tree.map(lambda x, i=i: x[i], together), alone(seeds[i], eps[i]), 1e6 * EPS)


EXPLICIT = {
    "tsit5": lambda rate: fc.Flow("tsit5", rtol=1e-5),
    "dopri8": lambda rate: fc.Flow("dopri8", rtol=1e-5),
    "modified": lambda rate: fc.ModifiedFlow(rate, solver="dopri5", rtol=1e-5),
    "heavy ball": lambda rate: fc.HeavyBallFlow(rate, 0.3, rtol=1e-5),
}


@pytest.mark.parametrize(("name", "loss"), [*((name, "squared") for name in EXPLICIT), ("modified", "cross-entropy")])
def test_a_lane_of_an_explicit_solver_is_its_run_alone(name, loss):
    """Each lane has its own decay, and its own step size of the descent that its flow follows."""

    def run(seed, rate):
        model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4, weight_decay=rate, loss=loss)
        start = fc.initial.sphere(model, 0.3, key=jax.random.key(seed))
        path = fc.simulate(model, start, EXPLICIT[name](rate), [1.0, 2.5, 4.0], metrics=("risk",), save_states=True)
        states: Any = path.states
        return path.stats, {"risk": path.metrics["risk"], "W": states.W, "H": states.H, "b": states.b}

    seeds, rates = jnp.arange(3), jnp.array([0.02, 0.05, 0.1])
    together = compiled(jax.vmap(run))(seeds, rates)
    same(jax.tree.map(lambda x: x[2], together), compiled(run)(seeds[2], rates[2]), 1e6 * EPS)


def test_width_and_order_change_nothing():
    _, run = programs_of("paper")
    seeds, eps = jnp.arange(3), jnp.array([0.3, 0.1, 1.0])
    wanted, order = run(seeds, eps), jnp.array([2, 0, 1])
    same(run(seeds[order], eps[order]), jax.tree.map(lambda x: x[order], wanted), 1e6 * EPS)
    same(run(seeds[:2], eps[:2]), jax.tree.map(lambda x: x[:2], wanted), 1e6 * EPS)


@pytest.mark.parametrize("solver", ["exponential", "tsit5"])
def test_a_save_depends_on_no_other_save(solver):
    """With 41 times, several fall into one step of one lane and none into that of another."""

    def run(seed, ts):
        start = fc.initial.sphere(MODELS["paper"], 0.3, key=jax.random.key(seed))
        flow = fc.Flow(solver, rtol=1e-7, approach="explicit")
        return fc.simulate(MODELS["paper"], start, flow, ts, metrics=("risk", "snc3"), save_states=True)

    ends = jnp.array([0.7, 4.0, 9.0])
    lanes = compiled(jax.vmap(run))
    many = lanes(jnp.arange(3), ends[:, None] * jnp.linspace(0, 1, 41))
    few = lanes(jnp.arange(3), ends[:, None] * jnp.linspace(0, 1, 6))
    for found, wanted in zip(*(jax.tree.leaves((path.metrics, path.points)) for path in (many, few)), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found[:, ::8], wanted, rtol=0, atol=1e6 * EPS * scale)


def test_a_lane_of_nan_disturbs_none():
    _, run = programs_of("paper")
    seeds, eps = jnp.arange(2), jnp.array([0.3, 0.1])
    broken, whole = run(seeds, eps.at[1].set(jnp.nan)), run(seeds, eps)
    same(jax.tree.map(lambda x: x[0], broken), jax.tree.map(lambda x: x[0], whole), 1e6 * EPS)
    assert np.isnan(broken[1]["W"][1, -1]).all()


def test_lanes_differ_in_their_decay():
    """Three lanes with one decay each; a model can have three decays, which must not be confused with the lanes."""

    def run(decay):
        model = fc.UFM(num_classes=2, samples_per_class=2, num_features=3, weight_decay=decay)
        start = fc.initial.sphere(model, 0.5, key=jax.random.key(0))
        return fc.simulate(model, start, fc.Flow(rtol=1e-7, approach="explicit"), [1.0, 2.0], metrics=("risk",)).metrics

    decays = jnp.array([0.0, 0.1, 0.3])
    together = compiled(jax.vmap(run))(decays)["risk"]
    np.testing.assert_allclose(together, np.stack([run(float(decay))["risk"] for decay in decays]), rtol=1e-10)


def test_single_precision(thirty_two_bits):
    model = MODELS["paper"]

    def run(seed):
        start = fc.initial.sphere(model, 0.3, key=jax.random.key(seed))
        return fc.simulate(
            model, start, fc.Flow(rtol=1e-4, approach="explicit"), [2.0, 4.0], metrics=("risk",)
        ).metrics["risk"]

    together = jax.jit(jax.vmap(run))(jnp.arange(2))
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together[1], run(1), rtol=1e-4)

"""Starts that are collapsed within their classes: class means alone hold them, for every loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.losses import LOSSES

KEY = jax.random.key(0)
EPS = float(np.finfo(np.float64).eps)


def ufm(counts=(3, 3, 3), loss="cross-entropy", p=4, **options):
    return systems.model_of(counts, p, loss=loss, **options)


def as_samples(state):
    return fc.State(H=np.asarray(state.H), W=state.W, b=state.b)


@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 1, 2)])
def test_the_draw(counts):
    state = fc.initial.class_means(ufm(counts), 0.2, key=KEY)
    H, W, b = systems.arrays(state)
    np.testing.assert_allclose([np.linalg.norm(H), np.linalg.norm(W), np.linalg.norm(b)], [0.2, 0.2, 0], rtol=16 * EPS)
    first = np.cumsum((0, *counts[:-1]))
    assert np.array_equal(H, np.repeat(H[:, first], counts, axis=1))


@pytest.mark.parametrize(
    ("loss", "counts"),
    [("cross-entropy", (3, 3, 3)), *((loss, (5, 1, 2)) for loss in ("label-smoothing:0.1", "focal:2", "squared"))],
)
def test_class_means_are_chosen_and_give_the_path_of_the_samples(counts, loss):
    model = ufm(counts, loss, weight_decay=(0.1, 0.2, 0.3))
    start = as_samples(fc.initial.class_means(model, 0.5, key=KEY))
    flow = fc.Flow(t1=2.0, rtol=1e-10)
    reduced, full = (
        fc.simulate(model, start, method, [0.0, 2.0], metrics="risk")
        for method in (flow, fc.Flow(t1=2.0, rtol=1e-10, coordinates="sample"))
    )
    assert reduced.coordinates == "class-mean"
    assert full.coordinates == "sample"
    np.testing.assert_allclose(reduced.metrics["risk"], full.metrics["risk"], rtol=1e-8)
    for one, other in zip(*(systems.arrays(path.final) for path in (reduced, full)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8 * np.max(np.abs(other)))


def test_one_path_for_any_number_of_samples():
    """Without a bias, `(W, B)` with N samples at t is sqrt(s) times the pair with one sample at s t, `s = sqrt N`.

    With 10^6 samples a class, the run has the size of the one with one sample.
    """
    ends = {}
    for N in (1, 10, 10**6):
        model, s = ufm((N,) * 3, use_bias=False), N**0.5
        start = fc.initial.class_means(model, 0.5 * s**0.5, key=KEY)
        path = fc.simulate(model, start, fc.Flow(t1=2.0 / s, rtol=1e-10), [2.0 / s], metrics="risk")
        assert path.end.X.shape == (4, 3)
        ends[N] = np.asarray(path.final.W) / s**0.5, np.asarray(path.final.B) / s**0.5
    for N in (10, 10**6):
        for one, other in zip(ends[N], ends[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


def test_a_descent_that_commutes_runs_in_class_means():
    model = ufm()
    start = as_samples(fc.initial.class_means(model, 0.5, key=KEY))
    path, other = (
        fc.simulate(model, start, fc.Descent("sgd", 20, learning_rate=0.1, coordinates=coordinates), metrics="risk")
        for coordinates in ("auto", "sample")
    )
    assert path.coordinates == "class-mean"
    np.testing.assert_allclose(path.metrics["risk"], other.metrics["risk"], rtol=1e3 * EPS)
    adam = fc.simulate(model, start, fc.Descent("adam", 5, learning_rate=0.1), metrics=())
    assert adam.coordinates == "sample"


def test_a_sweep_and_a_comparison_of_collapsed_starts():
    model = ufm((2000, 2000, 2000))
    grid = fc.sweep(
        model, fc.Flow(t1=0.1), eps=[0.5], seeds=2, ts=[0.1], start="class-means", metrics="risk", progress=False
    )
    for seed in range(2):
        start = fc.initial.class_means(model, 0.5, key=jax.random.key(seed))
        alone = fc.simulate(model, start, fc.Flow(t1=0.1), [0.1], metrics="risk").metrics["risk"]
        np.testing.assert_allclose(grid["risk"].sel(seed=seed).values.ravel(), alone, rtol=1e-7)
    runs = fc.compare(model, start, ["sgd:learning_rate=1e-4"], [0.02], metrics="risk")
    assert float(runs["max_distance_to_flow"].sel({"method": "sgd:learning_rate=1e-4"})) < 0.05


def test_a_state_that_is_not_collapsed_stays_on_its_samples():
    model = ufm()
    start = fc.initial.sphere(model, 0.5, key=KEY)
    assert fc.simulate(model, start, fc.Flow(t1=0.1), [0.1], metrics=()).coordinates == "sample"
    nearly = as_samples(fc.initial.class_means(model, 0.5, key=KEY))
    nearly = fc.State(H=nearly.H.at[0, 0].add(1e-14), W=nearly.W, b=nearly.b)
    assert fc.simulate(model, nearly, fc.Flow(t1=0.1), [0.1], metrics=()).coordinates == "sample"
    large = fc.simulate(model, start, fc.Flow(t1=0.1), [0.1], metrics=())
    assert fc.to_class_means(model, as_samples(fc.initial.class_means(model, 0.5, key=KEY))).L.shape == (4, 0)
    assert large.final.H.shape == (4, 9)


SPREAD = fc.initial.sphere(ufm(), 0.5, key=KEY)
REFUSED = {
    "a run": lambda: fc.simulate(ufm(), SPREAD, fc.Flow(t1=1.0, coordinates="class-mean")),
    "the map": lambda: fc.to_class_means(ufm(), SPREAD),
    "a traced start": lambda: jax.jit(lambda s: fc.simulate(ufm(), s, fc.Flow(t1=1.0, coordinates="class-mean")).t_end)(
        as_samples(fc.initial.class_means(ufm(), 0.5, key=KEY))
    ),
    "a reduced draw": lambda: fc.initial.sphere(ufm(), 0.5, key=KEY, reduced=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_class_means_asked_for_wrongly_are_refused(name):
    systems.assert_refused(REFUSED[name], ["class", "quadratic losses only", "'cross-entropy'"])


def test_every_loss_by_name_takes_class_means():
    """The risk of class means alone is that of the samples, for every loss that has a name."""
    for name in LOSSES:
        model = ufm((4, 1, 2), loss=f"{name}:0.2" if name in ("label-smoothing", "focal") else name)
        state = fc.initial.class_means(model, 2.0, key=KEY)
        np.testing.assert_allclose(fc.risk(model, state), fc.risk(model, as_samples(state)), rtol=64 * EPS)
        assert bool(jnp.all(state.b == 0))

"""The flow: closed forms, SciPy's integrator, conserved quantities, and how limits depend on the size of the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from scipy.integrate import simpson

import flowcollapse as fc

RTOL = 1e-8


@pytest.fixture(scope="module")
def generic(paper_model) -> fc.Trajectory:
    """One run from an unstructured start with a bias, until well after the escape; saves are dense at first."""
    ts = 10 * jnp.linspace(0, 1, 201) ** 2
    start = systems.random_state(paper_model, size=0.1)
    names = ("risk", "balancedness", "grad_norm")
    return fc.simulate(paper_model, start, fc.Flow(rtol=RTOL), ts, save_states=True, metrics=names)


def test_flow_is_that_of_an_independent_integrator(generic, paper_model):
    """SciPy's DOP853 at rtol 1e-13 on the field of the paper, written in NumPy for the full state."""
    start = systems.Arrays(*(part[0] for part in systems.arrays(generic.states)))
    expected = systems.flow(start, paper_model.counts, np.asarray(generic.ts))
    for found, exact in zip(systems.arrays(generic.states), expected, strict=True):
        scale = np.linalg.norm(exact.reshape(len(generic.ts), -1), axis=1).max()
        assert np.max(np.abs(found - exact)) < 100 * RTOL * scale


def test_risk_never_increases(generic):
    """`dR/dt = -||grad R||^2`; the error of the integrator is below rtol times the risk at the start."""
    risk = np.asarray(generic.metrics["risk"])
    assert np.all(np.diff(risk) < RTOL * risk[0])
    assert risk[-1] < 1e-3 * risk[0]


def test_risk_falls_by_the_square_of_the_gradient(generic):
    """`R(0) - R(t) = int_0^t ||grad R||^2`. Simpson's rule computes the integral, with an error near 1e-5 here."""
    risk, gradient = (np.asarray(generic.metrics[name]) for name in ("risk", "grad_norm"))
    dissipated = simpson(gradient**2, x=np.asarray(generic.ts))
    np.testing.assert_allclose(risk[0] - risk[-1], dissipated, rtol=1e-4)


def test_balancedness_is_conserved(generic):
    """The flow of any loss of the logits conserves `W^T W - H H^T`, here up to the tolerance of W^T W."""
    start, states = (systems.arrays(s) for s in (jax.tree.map(lambda x: x[0], generic.states), generic.states))
    size = np.max(np.sum(states.W**2, axis=(1, 2)) + np.sum(states.H**2, axis=(1, 2)))
    assert float(jnp.max(generic.metrics["balancedness"])) < 10 * RTOL * size / np.sum(start.H**2)
    drift = [W.T @ W - H @ H.T - (start.W.T @ start.W - start.H @ start.H.T) for H, W, _ in zip(*states, strict=True)]
    assert max(map(np.linalg.norm, drift)) < 10 * RTOL * size


def test_the_end_is_at_t1_and_saves_are_where_they_were_asked_for(generic):
    assert float(generic.t_end) == float(generic.ts[-1]) == 10.0
    np.testing.assert_allclose(generic.ts, 10 * np.linspace(0, 1, 201) ** 2, rtol=1e-15)
    last = jax.tree.map(lambda x: x[-1], generic.states)
    assert systems.relative_error(systems.arrays(generic.final), systems.arrays(last)) < RTOL


# Equal decays of W and H keep S invariant; the decay of the bias is free. All are lanes of one compilation.
DECAYS = [(0.0, 0.0, 0.0), (0.4, 0.4, 0.0), (0.4, 0.4, 1.5), (2.0, 2.0, 0.3)]


def test_flow_on_the_subspace_is_the_closed_form(key):
    """The logistic equation for each singular value of W, the exponential for the bias, at every save."""
    model = fc.UFM(num_classes=4, samples_per_class=3, num_features=5)
    W0 = np.asarray(fc.initial.on_subspace(model, eps=0.3, key=key).W)
    beta0 = -0.7
    start = fc.State(*map(jnp.asarray, systems.on_subspace(W0, beta0, 3)))
    ts = np.linspace(0, 6, 31)

    def run(decay):
        decayed = fc.UFM(num_classes=4, samples_per_class=3, num_features=5, weight_decay=decay)
        return fc.simulate(decayed, start, fc.Flow(rtol=RTOL), jnp.asarray(ts), save_states=True, metrics=()).states

    found = systems.arrays(systems.compiled(jax.vmap(run))(jnp.array(DECAYS)))
    for lane, decay in enumerate(DECAYS):
        expected = systems.flow_on_subspace(W0, beta0, 3, ts, decay)
        for part, exact in zip(found, expected, strict=True):
            assert np.max(np.abs(part[lane] - exact)) < 20 * RTOL * np.max(np.abs(exact)), decay


POWERS = {"snc1": 2, "snc2": 1, "snc3": 1, "distance": 1, "nc1_trace": 2, "nc3": 1, "risk": 4}


def test_limits_fall_with_the_powers_of_eps(paper_model, key, run_lanes):
    """From a start of size eps the plateau has SNC1 of order eps^2, SNC2, SNC3, distance of order eps (derived here).

    The direction of each seed stays fixed while eps falls, so the ratio of its errors shows the power. The next terms
    are smaller by eps^2 ln(1/eps), 5e-4 at the largest eps.
    """
    sizes = [1e-2, 1e-3, 1e-4]
    starts = [fc.initial.sphere(paper_model, eps=1.0, key=seed) for seed in jax.random.split(key, 4)]
    directions = jax.tree.map(lambda *xs: jnp.stack(xs), *starts)
    paths = [run_lanes(jax.tree.map(lambda x, eps=eps: eps * x, directions), RTOL) for eps in sizes]
    assert all(np.all(path.result == fc.Verdict.plateau) for path in paths)
    finals = jax.tree.map(lambda *xs: jnp.stack(xs), *(path.final for path in paths))
    ends = fc.metrics.evaluate(paper_model, finals, tuple(POWERS))
    for name, power in POWERS.items():
        slopes = np.diff(np.log10(ends[name]), axis=0) / np.diff(np.log10(sizes))[:, None]
        np.testing.assert_allclose(slopes, power, atol=2e-3, err_msg=name)

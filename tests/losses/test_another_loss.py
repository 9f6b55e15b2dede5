"""A loss that does not separate columns: class means are refused wherever they could come in, and closed forms too.

Softmax cross-entropy is registered by hand. Of a state and its class means it gives two different numbers, of which
one is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.curvature import hessian, spectrum
from flowcollapse.losses.base import Loss
from flowcollapse.losses.registry import LOSSES
from flowcollapse.model.columns import ClassMeanColumns
from flowcollapse.model.coordinates import enter
from flowcollapse.model.problem import problem_of
from flowcollapse.theory import exact, landscape, subspace
from flowcollapse.theory.small_starts import curves, limits, prediction

EPS = float(np.finfo(np.float64).eps)
KEY = jax.random.key(0)
SIZES = {"num_classes": 3, "samples_per_class": 3, "num_features": 4}
SQUARED = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
START = fc.initial.sphere(SQUARED, 0.1, key=KEY)
ON_S = fc.initial.on_subspace(SQUARED, 0.1, key=KEY)
MEANS = fc.to_class_means(SQUARED, START)


def cross_entropy(logits, targets):
    return jnp.sum(jax.nn.logsumexp(logits, axis=0)) - jnp.sum(targets * logits)


def its_gradient(logits, targets):
    return jax.nn.softmax(logits, axis=0) * jnp.sum(targets, axis=0) - targets


@pytest.fixture
def model(monkeypatch) -> fc.UFM:
    monkeypatch.setitem(LOSSES, "trial", Loss(cross_entropy, its_gradient, separates_columns=False))
    return fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss="trial")


def sum_over_samples(state: fc.State) -> float:
    """Cross-entropy summed sample by sample, in NumPy."""
    H, W, b = systems.arrays(state)
    logits = W @ H + b[:, None]
    return float(sum(np.log(np.sum(np.exp(z))) - z[i // 3] for i, z in enumerate(logits.T)))


def test_the_risk_is_the_sum_over_samples(model):
    state = systems.random_state(model)
    np.testing.assert_allclose(fc.risk(model, state), sum_over_samples(state), rtol=100 * EPS)


IN_CLASS_MEANS = {
    "risk": lambda model: fc.risk(model, MEANS),
    "velocity": lambda model: fc.velocity(model, MEANS),
    "metrics": lambda model: fc.metrics.evaluate(model, MEANS, ["risk"]),
    "a reference of metrics": lambda model: fc.metrics.evaluate(model, START, ["balancedness"], start=MEANS),
    "sharpness": lambda model: fc.sharpness(model, MEANS),
    "spectrum": lambda model: fc.hessian_spectrum(model, MEANS),
    "density": lambda model: spectrum.spectral_density(model, MEANS, key=KEY),
    "product": lambda model: hessian.hessian_vector_product(model, MEANS, MEANS),
    "a run": lambda model: fc.simulate(model, MEANS, fc.Descent("sgd", 2, learning_rate=0.1)),
    "a comparison": lambda model: fc.compare(model, MEANS, ["sgd:learning_rate=0.1"], [1.0], flow=fc.Flow("tsit5")),
    "a problem": lambda model: problem_of(model, MEANS),
    "a frame": lambda model: enter(model, MEANS, "auto"),
    "the map": lambda model: fc.to_class_means(model, START),
    "the projection": lambda model: subspace.project(model, MEANS),
    "a reduced start": lambda model: fc.initial.sphere(model, 0.1, key=KEY, reduced=True),
}


@pytest.mark.parametrize("name", IN_CLASS_MEANS)
def test_class_means_are_refused(model, name):
    with pytest.raises(fc.UsageError, match=r"class-mean.*'trial'.*samples"):
        IN_CLASS_MEANS[name](model)


def test_a_large_start_is_drawn_with_its_samples(model, monkeypatch):
    monkeypatch.setattr(fc.initial, "REDUCED_FROM", 1)
    assert fc.initial.sphere(SQUARED, 0.1, key=KEY).coordinates == "class-mean"
    assert fc.initial.sphere(model, 0.1, key=KEY).coordinates == "sample"


def test_without_the_guard_class_means_give_another_risk(model, monkeypatch):
    """The law that the guard keeps: all columns of one state have one risk. Here it is seen to fail."""
    monkeypatch.setattr(ClassMeanColumns, "admits", lambda columns, loss: True)
    assert abs(float(fc.risk(model, MEANS)) / sum_over_samples(START) - 1) > 0.1
    np.testing.assert_allclose(fc.risk(SQUARED, MEANS), fc.risk(SQUARED, START), rtol=100 * EPS)


CLOSED_FORMS = {
    "trace": lambda model: hessian.hessian_trace(model, START),
    "predict": lambda model: fc.predict(model, START),
    "trajectory": lambda model: prediction.trajectory(model, START),
    "states": lambda model: prediction.states(model, START, [1.0]),
    "learning curve": lambda model: curves.learning_curve(model, START, [1.0]),
    "descent curve": lambda model: curves.descent_curve(model, START, 0.1, 2),
    "mean modes": lambda model: curves.mean_modes(model, START, [1.0]),
    "flow on S": lambda model: exact.subspace_flow(model, ON_S, [1.0]),
    "descent on S": lambda model: exact.subspace_descent(model, ON_S, [1], learning_rate=0.1),
    "half time": lambda model: exact.half_time(model, 0.1),
    "balanced flow": lambda model: exact.balanced_flow(model, START, [1.0]),
    "second phase": lambda model: exact.second_phase(model, START, [1.0]),
    "spectrum on S": lambda model: landscape.spectrum(model),
    "critical point": lambda model: landscape.critical_point(model, key=KEY),
    "stability": lambda model: landscape.stability_threshold(model),
    "divergence": lambda model: landscape.divergence_threshold(model),
    "settled": lambda model: landscape.settled_eigenvalue(model, 0.1),
    "plateau": lambda model: limits.plateau(model, START),
    "imbalanced limit": lambda model: limits.imbalanced_limit(model),
    "decay limit": lambda model: limits.decay_limit(model),
    "plateau time": lambda model: limits.plateau_time(model, START),
    "plateau steps": lambda model: limits.plateau_steps(model, START, 0.1),
    "kappa": lambda model: limits.kappa(model),
    "powers": lambda model: limits.powers(model),
    "rms": lambda model: limits.rms(model, 0.1),
    "risk in parts": lambda model: subspace.risk_parts(model, ON_S),
    "the default solver": lambda model: fc.simulate(model, START, fc.Flow()),
}


@pytest.mark.parametrize("separates", [False, True])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_are_refused(model, monkeypatch, name, separates):
    """Also for a multiple of the squared error, which separates columns and yet has other curves."""
    squared = LOSSES["squared"]
    twice = Loss(lambda Z, T: 2 * squared.value(Z, T), lambda Z, T: 2 * squared.gradient(Z, T), separates_columns=True)
    if separates:
        monkeypatch.setitem(LOSSES, "trial", twice)
    with pytest.raises(fc.UsageError, match="'trial'"):
        CLOSED_FORMS[name](model)

"""A loss that does not separate columns: class means are refused where samples differ, and closed forms too.

Softmax cross-entropy is registered by hand. Of a state and its class means it gives two different numbers, of which
one is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from trial_losses import Scaled, Trial

import flowcollapse as fc
from flowcollapse.curvature import hessian, spectrum
from flowcollapse.losses import AbstractLoss, Squared
from flowcollapse.metrics.registry import available
from flowcollapse.model.columns import ClassMeanColumns
from flowcollapse.model.coordinates import enter
from flowcollapse.model.problem import problem_of
from flowcollapse.theory import exact, landscape, subspace
from flowcollapse.theory.small_starts import curves, limits, prediction

EPS = float(np.finfo(np.float64).eps)
KEY = jax.random.key(0)
SQUARED = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
START = fc.initial.sphere(SQUARED, 0.1, key=KEY)
ON_S = fc.initial.on_subspace(SQUARED, 0.1, key=KEY)
MEANS = fc.to_class_means(SQUARED, START)


def ufm(loss: AbstractLoss) -> fc.UFM:
    return fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss=loss)


@pytest.fixture
def model() -> fc.UFM:
    return ufm(Trial())


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
    monkeypatch.setattr(ClassMeanColumns, "admits", lambda *_: True)
    assert not abs(float(fc.risk(model, MEANS)) / sum_over_samples(START) - 1) < 0.1  # nor is it a number
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
}


@pytest.mark.parametrize("loss", [Trial(), Scaled()], ids=["trial", "scaled"])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_are_refused(name, loss):
    """Also for a multiple of the squared error, which is quadratic and yet has other curves."""
    with pytest.raises(fc.UsageError, match=f"'{loss.name}"):
        CLOSED_FORMS[name](ufm(loss))


def test_class_means_alone_hold_a_collapsed_state_for_any_loss():
    """Columns `sqrt n mu` and u = sqrt n: the risk, the field and the path are those of the samples."""
    counts = (5, 1, 2)
    model = fc.UFM(num_classes=3, samples_per_class=counts, num_features=4, weight_decay=(0.1, 0.2, 0.3), loss=Trial())
    random = np.random.default_rng(0)
    roots, means, W, b = np.sqrt(counts), random.normal(size=(4, 3)), random.normal(size=(3, 4)), random.normal(size=3)
    samples = fc.State(H=np.repeat(means, counts, axis=1), W=W, b=b)
    reduced = fc.State(X=means * roots, W=W, b=b, columns=ClassMeanColumns(counts))
    np.testing.assert_allclose(reduced.H, samples.H, rtol=8 * EPS)
    np.testing.assert_allclose(fc.risk(model, reduced), fc.risk(model, samples), rtol=64 * EPS)
    fields = fc.velocity(model, samples), fc.velocity(model, reduced)
    for one, other in zip(*map(systems.arrays, fields), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=256 * EPS * np.max(np.abs(one)))
    flows = (fc.Flow(t1=2.0, rtol=1e-9, coordinates=coordinates) for coordinates in ("sample", "auto"))
    runs = zip((samples, reduced), flows, strict=True)
    ends = [fc.simulate(model, start, flow, [2.0], metrics=["nc3", "risk", "cdnv"]) for start, flow in runs]
    assert ends[0].coordinates == "sample"
    assert ends[1].coordinates == "class-mean"
    for one, other in zip(*(systems.arrays(end.final) for end in ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7 * np.max(np.abs(one)))
    np.testing.assert_allclose(ends[0].metrics["nc3"], ends[1].metrics["nc3"], rtol=1e-6)
    np.testing.assert_allclose(ends[1].metrics["cdnv"], 0, atol=EPS)


def test_a_run_of_a_loss_without_minimum_ends_at_rest_only_under_decay(model):
    """Without decay the default run is long, and the verdict says that it is no end. With decay the flow comes to rest.

    The loss declares no convexity, so nothing is said of the minimum. Implicit steps would need its fastest rate.
    """
    with pytest.raises(fc.UsageError, match=r"approach=\"implicit\".*'trial'.*leave it out"):
        fc.simulate(model, START, fc.Flow("tsit5", approach="implicit", t1=1.0))
    path = fc.simulate(model, START, fc.Flow("tsit5", rtol=1e-3), metrics="risk")
    assert path.result == fc.Verdict.separated
    assert path.t_end > np.exp(50)
    assert fc.simulate(model, START, fc.Flow("tsit5", t1=0.01), metrics="risk").result == fc.Verdict.time_limit
    for steps, verdict in ((500, fc.Verdict.separated), (5, fc.Verdict.step_limit)):
        descent = fc.Descent("sgd", steps, learning_rate=0.1)
        assert fc.simulate(model, START, descent, 2, metrics="risk").result == verdict
    decayed = model.with_numbers({"weight_decay": 0.2})
    assert fc.simulate(decayed, START, fc.Flow("tsit5", until="rest"), metrics="risk").result == fc.Verdict.critical


@pytest.mark.parametrize("name", ["snc1", "snc2", "snc3", "distance", "relative_distance"])
def test_metrics_against_the_squared_errors_target_are_refused(model, name):
    assert name not in available(model)
    with pytest.raises(fc.UsageError, match=f"'{name}'.*squared error.*'trial'"):
        fc.metrics.evaluate(model, START, [name])


@pytest.mark.parametrize("start", [fc.initial.on_subspace, fc.initial.collapsed])
def test_starts_that_belong_to_the_squared_error_are_refused(model, start):
    options = {} if start is fc.initial.collapsed else {"eps": 0.1}
    with pytest.raises(fc.UsageError, match="loss is 'trial'"):
        start(model, **options, key=KEY)


def test_the_pull_of_the_squared_error_is_read_off_its_gradient():
    """The default of the protocol against the closed form, and cross-entropy's against `C / (e^rho + C - 1)`."""
    rho = jnp.linspace(-1.0, 3.0, 9)
    np.testing.assert_allclose(AbstractLoss.pull(Squared(), rho, 4), 1 - rho, atol=16 * EPS)
    np.testing.assert_allclose(Trial().pull(rho, 4), 4 / (np.exp(rho) + 3), atol=16 * EPS)
    assert fc.losses.Squared().text == "squared"
    assert Scaled(0.5).text == "scaled:factor=0.5"

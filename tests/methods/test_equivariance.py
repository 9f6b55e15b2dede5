"""Which optimizers run in class means and compressed rows: both routes end alike; unproved ones run on the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
import systems

import flowcollapse as fc

EPS = float(jnp.finfo(jnp.float64).eps)
ROUNDED = 1e5 * EPS
"""Rounding of a few dozen steps, amplified by the escape from the origin."""

SMALL = fc.UFM(num_classes=3, samples_per_class=10, num_features=4)
"""A model whose 30 columns become 7 in class means."""

STEPS = 30
SIZES = (1e-3, 0.5, 8.0)
CLIPPED = optax.clip_by_global_norm(1.0)

PROVED = {
    "momentum and a global clip": optax.chain(CLIPPED, optax.sgd(0.02, momentum=0.8, nesterov=True)),
    "warm-up from zero": optax.sgd(optax.linear_schedule(0.0, 0.02, 10)),
    "a schedule that switches on late": optax.sgd(
        optax.join_schedules([optax.constant_schedule(0.01), optax.constant_schedule(0.03)], [20])
    ),
    "decay, average and every third step": optax.chain(
        optax.add_decayed_weights(0.1), optax.ema(0.5), optax.apply_every(3), optax.scale(-0.01)
    ),
    "the step normalised": optax.chain(optax.contrib.normalize(), optax.sgd(0.02)),
    "by the loss": optax.polyak_sgd(0.02),
    "Adam on b alone": optax.multi_transform(
        {"sgd": optax.sgd(0.02), "adam": optax.adam(0.02)}, {"W": "sgd", "H": "sgd", "b": "adam"}
    ),
    "schedule-free": optax.contrib.schedule_free(optax.sgd(0.02), 0.02),
}

NOT_PROVED = {
    "entries clipped": optax.chain(optax.clip(5.0), optax.sgd(0.02)),
    "columns clipped": optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.02)),
    "the mean of the entries": optax.chain(optax.clip_by_block_rms(0.5), optax.sgd(0.02)),
    "orthogonalised": optax.contrib.muon(0.01),
    "momentum alone for five steps": optax.radam(0.02),
    "noise": optax.noisy_sgd(0.02, key=0),
    "rounded to fewer digits": optax.sgd(0.02, momentum=0.9, accumulator_dtype=jnp.bfloat16),
    "the sign": optax.sign_sgd(0.02),
    "factored": optax.adafactor(0.02),
    "calls of the loss": optax.lbfgs(),
    "Adam on W alone": optax.multi_transform(
        {"sgd": optax.sgd(0.02), "adam": optax.adam(0.02)}, {"W": "adam", "H": "sgd", "b": "sgd"}
    ),
}


SCHEDULED = {"warm-up from zero", "a schedule that switches on late", "schedule-free"}
"""Optimizers that compute with the number of the step."""


def ends(model, method, options=None):
    """The ends of runs from starts of all sizes."""

    @jax.vmap
    def run(size):
        start = fc.initial.sphere(model, size, key=jax.random.key(0))
        return fc.simulate(model, start, method, 2, metrics=()).final

    program = jax.jit(run, compiler_options=options)
    return systems.arrays(program(jnp.array(SIZES)))


def differences(model, optimizer, options=None) -> list[float]:
    """The difference between the run chosen by "auto" and the run on the samples, for each size of the start."""
    auto, sample = (
        ends(model, fc.Descent(optimizer, STEPS, coordinates=c, clock=0.02), options) for c in ("auto", "sample")
    )
    return [systems.relative_error([x[i] for x in auto], [x[i] for x in sample]) for i in range(len(SIZES))]


@pytest.mark.parametrize("name", PROVED)
def test_proved_optimizers_take_the_same_path_in_all_coordinates(name):
    assert fc.Descent(PROVED[name], STEPS, coordinates="class-mean").coordinates == "class-mean"
    assert fc.Descent(PROVED[name], STEPS).coordinates == "auto"
    # With other fusions, the rounding of schedules depends on the program.
    options = systems.USUAL_FUSIONS if name in SCHEDULED else None
    assert max(differences(SMALL, PROVED[name], options)) < ROUNDED


def test_rows_are_compressed_for_proved_optimizers_alone():
    model = fc.UFM(num_classes=2, samples_per_class=3, num_features=24)
    for optimizer, expected in ((PROVED["momentum and a global clip"], "rows"), (optax.adam(0.01), "sample")):
        start = fc.initial.sphere(model, 0.5, key=jax.random.key(0))
        path = fc.simulate(model, start, fc.Descent(optimizer, 3), 2, metrics=())
        assert expected in path.coordinates
        assert max(differences(model, optimizer)) < ROUNDED


@pytest.mark.parametrize("name", NOT_PROVED)
def test_others_run_on_samples_and_refuse_class_means(name):
    assert fc.Descent(NOT_PROVED[name], STEPS).coordinates == "sample"
    with pytest.raises(fc.UsageError, match=r'does not commute.*\(.*\): use coordinates="sample"'):
        fc.Descent(NOT_PROVED[name], STEPS, coordinates="class-mean")


def risk(model, optimizer, eps, **options) -> float:
    start = fc.initial.sphere(model, eps, key=jax.random.key(0))
    path = fc.simulate(model, start, fc.Descent(optimizer, STEPS, **options), 2, metrics=["risk"])
    return float(path.metrics["risk"][-1])


def test_muon_runs_on_the_samples(monkeypatch):
    """Its risk equals that of a plain loop on the samples. If everything is assumed to commute, it does not."""
    optimizer = optax.contrib.muon(0.01)
    start = fc.initial.sphere(SMALL, 0.5, key=jax.random.key(0))
    point = {"W": start.W, "H": start.H, "b": start.b}
    state = optimizer.init(point)

    @jax.jit
    def step(point, state):
        velocity = fc.velocity(SMALL, fc.State(point["H"], point["W"], point["b"]))
        gradient = {"W": -velocity.W, "H": -velocity.H, "b": -velocity.b}
        updates, state = optimizer.update(gradient, state, point)
        return optax.apply_updates(point, updates), state

    for _ in range(STEPS):
        point, state = step(point, state)
    expected = float(fc.risk(SMALL, fc.State(point["H"], point["W"], point["b"])))
    np.testing.assert_allclose(risk(SMALL, optimizer, 0.5), expected, rtol=1e-6)  # muon uses low precision
    monkeypatch.setattr("flowcollapse.methods.descent.obstacle", lambda *_: None)
    assert abs(risk(SMALL, optimizer, 0.5) / expected - 1) > 0.1


def test_elementwise_clips_show_only_in_large_gradients(monkeypatch):
    """If assumed to commute, clipping is right for small starts and wrong for large ones, whose entries are clipped."""
    optimizer = NOT_PROVED["entries clipped"]
    assert risk(SMALL, optimizer, 8.0) == risk(SMALL, optimizer, 8.0, coordinates="sample")
    monkeypatch.setattr("flowcollapse.methods.descent.obstacle", lambda *_: None)
    found = differences(SMALL, optimizer)
    assert found[0] < ROUNDED
    assert found[-1] > 1e-3


def test_the_proof_is_made_on_the_shapes_of_the_run():
    """An optimizer that uses signs only for some shapes is not accepted just because it commutes for others."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.02 * (jnp.sign(g) if g.shape[-1] == SMALL.num_samples else g), updates), state

    optimizer = optax.GradientTransformation(lambda params: (), update)
    assert fc.Descent(optimizer, STEPS).coordinates == "auto"
    assert max(differences(SMALL, optimizer)) < ROUNDED
    start = fc.initial.sphere(SMALL, 0.5, key=jax.random.key(0))
    with pytest.raises(fc.UsageError, match=r"does not commute.*\(its"):
        fc.simulate(SMALL, start, fc.Descent(optimizer, STEPS, coordinates="class-mean"), 2)


def test_comparisons_and_sweeps_share_the_proof():
    """Both give the risk of muon's run on the samples."""
    muon, options = optax.contrib.muon(0.01), {"eps": [0.5], "seeds": 1, "metrics": ["risk"], "keep_final": True}
    expected = risk(SMALL, muon, 0.5, coordinates="sample")
    swept = fc.sweep(SMALL, fc.Descent(muon, STEPS), ts=2, progress=False, **options)
    np.testing.assert_allclose(swept.risk.values.ravel()[-1], expected, rtol=1e-6)
    end = float(fc.Descent(muon, STEPS).duration())
    compared = fc.compare(SMALL, "sphere", {"muon": fc.Descent(muon, STEPS)}, [end], **options)
    np.testing.assert_allclose(compared.risk.sel({"method": "muon"}).values.ravel()[-1], expected, rtol=1e-6)

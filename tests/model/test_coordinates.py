"""A run does not depend on its coordinates: class means, compressed rows and the mean residual are exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from systems import sizes
from trial_losses import Trial

import flowcollapse as fc
from flowcollapse.methods.stiff_part import from_mean_residual, mean_residual_field, to_mean_residual
from flowcollapse.model.coordinates import enter
from flowcollapse.model.problem import Point, problem_of

EPS = float(np.finfo(np.float64).eps)
DECAY = (0.3, 0.2, 0.1)

# Collapse needs p = C - 1 features. "auto" also compresses rows if there are at least twice as many as move.
MODELS = {
    "p above C-1": fc.UFM(num_classes=3, samples_per_class=3, num_features=24, weight_decay=DECAY),
    "p at C-1, imbalanced": fc.UFM(num_classes=3, samples_per_class=(5, 1, 3), num_features=2, weight_decay=DECAY),
    "p below C-1, one sample a class, no bias": fc.UFM(
        num_classes=4, samples_per_class=1, num_features=2, weight_decay=0.1, use_bias=False
    ),
    "one sample a class": fc.UFM(num_classes=3, samples_per_class=1, num_features=4),
    "no bias": fc.UFM(num_classes=3, samples_per_class=4, num_features=2, use_bias=False),
}
COORDINATES = dict.fromkeys(MODELS, "class-mean") | {"p above C-1": "auto"}
USED = dict.fromkeys(MODELS, "class-mean") | {"p above C-1": "class-mean, 24 rows as 12"}

# These runs are short, and this saves a third of the compilation, which takes most of their time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def start_of(model):
    """A start far from S, of size one, with a bias if the model has one."""
    state = fc.initial.sphere(model, 1.0, key=jax.random.key(7))
    b = jax.random.normal(jax.random.key(8), (model.num_classes,)) if model.use_bias else state.b
    return fc.State(H=state.H, W=state.W, b=b)


def relative_difference(a: fc.State | None, b: fc.State | None) -> float:
    """The largest `||a - b|| / ||b||` over H, W and b and over all times."""
    assert a is not None
    assert b is not None
    differences = []
    for name in ("H", "W", "b"):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        axes = tuple(range(1, x.ndim))
        scale = np.sqrt(np.sum(y**2, axis=axes))
        differences.append(np.max(np.sqrt(np.sum((x - y) ** 2, axis=axes)) / np.where(scale > 0, scale, 1.0)))
    return float(max(differences))


# ---- runs


@functools.partial(compiled, static_argnames="coordinates")
def flow(model, start, rtol, coordinates):
    method = fc.Flow(rtol=rtol, coordinates=coordinates)
    return fc.simulate(model, start, method, jnp.linspace(0.0, 2.0, 5), save_states=True, metrics=("risk",))


@functools.partial(compiled, static_argnames=("coordinates", "nesterov"))
def descent(model, start, momentum, coordinates, nesterov):
    method = fc.Descent("sgd", 60, coordinates=coordinates, learning_rate=0.03, momentum=momentum, nesterov=nesterov)
    return fc.simulate(model, start, method, save_states=True, metrics=("risk",))


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("p ")])
def test_the_flow_is_the_same_in_all_coordinates(name):
    model = MODELS[name]
    start, kind = start_of(model), COORDINATES[name]
    full, reduced = (flow(model, start, 1e-11, coordinates=c) for c in ("sample", kind))
    assert (full.coordinates, reduced.coordinates) == ("sample", USED[name])
    assert relative_difference(reduced.states, full.states) < 1e-9
    np.testing.assert_allclose(reduced.metrics["risk"], full.metrics["risk"], rtol=1e-9)

    # At a loose tolerance the steps are equal, so the numbers agree up to rounding.
    full, reduced = (flow(model, start, 1e-7, coordinates=c) for c in ("sample", kind))
    for steps in ("accepted", "rejected"):
        assert reduced.stats[steps] == full.stats[steps]
    assert relative_difference(reduced.states, full.states) < 1e-11


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [*((name, False) for name in MODELS), ("p above C-1", True), ("p at C-1, imbalanced", True)],
)
def test_descent_is_the_same_in_all_coordinates(name, nesterov):
    model = MODELS[name]
    start, kind = start_of(model), COORDINATES[name]
    for momentum in (0.0, 0.9):
        full, reduced = (descent(model, start, momentum, coordinates=c, nesterov=nesterov) for c in ("sample", kind))
        assert (full.coordinates, reduced.coordinates) == ("sample", USED[name])
        assert full.ts.shape == (61,)
        assert relative_difference(reduced.states, full.states) < 1e-12
        np.testing.assert_allclose(reduced.metrics["risk"], full.metrics["risk"], rtol=1e-12)


def test_a_start_drawn_reduced_goes_the_same_way_with_its_samples_made():
    model = fc.UFM(num_classes=3, samples_per_class=(5, 1, 3), num_features=2)
    start = fc.initial.sphere(model, 1.0, key=jax.random.key(0), reduced=True)
    full, reduced = (descent(model, start, 0.9, coordinates=c, nesterov=False) for c in ("sample", "class-mean"))
    assert (full.coordinates, reduced.coordinates) == ("sample", "class-mean")
    assert relative_difference(reduced.states, full.states) < 1e-12


def test_rows_reduce_for_any_loss_of_the_logits():
    # With softmax cross-entropy, rows reduce and columns do not.
    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=24, loss=Trial(), weight_decay=0.1)
    start = start_of(model)
    full, reduced = (
        fc.simulate(model, start, fc.Descent(optax.sgd(0.1), 40, coordinates=c), save_states=True, metrics=("risk",))
        for c in ("sample", "auto")
    )
    assert reduced.coordinates == "sample, 24 rows as 12"
    assert relative_difference(reduced.states, full.states) < 1e-12
    with pytest.raises(fc.UsageError, match=r"quadratic losses only.*coordinates=\"sample\""):
        fc.simulate(model, start, fc.Descent(optax.sgd(0.1), 40, coordinates="class-mean"))


# ---- the maps


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_residual_is_what_it_says_and_leads_back_to_the_bias(name):
    model = MODELS[name]
    start = start_of(model)
    H, W, b = (np.asarray(x) for x in (start.H, start.W, start.b))
    mean = (W @ H + b[:, None] - np.repeat(np.eye(model.num_classes), model.counts, axis=1)).mean(axis=1)
    for state in (start, fc.to_class_means(model, start)):
        problem, point = problem_of(model, state)
        e = to_mean_residual(problem, point)
        np.testing.assert_allclose(e, mean, atol=32 * EPS)
        back = from_mean_residual(problem, point.W, point.X, e)
        np.testing.assert_allclose(back.b, b, atol=32 * EPS)


@pytest.mark.parametrize("name", MODELS)
def test_the_field_in_the_mean_residual_is_the_chain_rule(name):
    # e' by forward differentiation of e along the field of (W, X, b); its relaxation has the rate n_tot + lam_b.
    model = MODELS[name]
    problem, point = problem_of(model, fc.to_class_means(model, start_of(model)))

    @jax.jit
    def both(point):
        velocity = problem.field(point)
        e, e_velocity = jax.jvp(lambda z: to_mean_residual(problem, z), (point,), (velocity,))
        return velocity, e_velocity, e, mean_residual_field(problem, point.W, point.X, e)

    velocity, e_velocity, e, (W_velocity, X_velocity, g) = both(point)
    np.testing.assert_allclose(W_velocity, velocity.W, atol=256 * EPS)
    np.testing.assert_allclose(X_velocity, velocity.X, atol=256 * EPS)
    if model.use_bias:
        rate = model.num_samples + float(model.decays[2])
        np.testing.assert_allclose(g - rate * e, e_velocity, atol=256 * EPS)


def test_rows_that_move_span_the_start_and_lead_back_to_it():
    model = MODELS["p above C-1"]
    start = start_of(model)
    frame, _, point = enter(model, start, "auto")
    assert frame.rows is not None
    rows = np.asarray(frame.rows)
    assert point.W.shape == (3, 12)
    np.testing.assert_allclose(rows.T @ rows, np.eye(12), atol=16 * EPS)
    back = frame.leave(point)
    np.testing.assert_allclose(back.H, start.H, atol=32 * EPS)
    np.testing.assert_allclose(back.W, start.W, atol=32 * EPS)
    # With leading axes, as in saved states.
    several = frame.leave(Point(*(jnp.stack([x, 2 * x]) for x in point)))
    np.testing.assert_allclose(several.H[1], 2 * start.H, atol=64 * EPS)


# ---- no array as large as the samples


@pytest.mark.parametrize(
    "method", [fc.Flow(rtol=1e-6), fc.Descent("sgd", 10, learning_rate=1e-7)], ids=["flow", "descent"]
)
def test_a_million_samples_a_class_make_no_array_of_their_size(method):
    model = fc.UFM(num_classes=3, samples_per_class=10**6, num_features=4)
    start = fc.initial.sphere(model, eps=1e-3, key=jax.random.key(0))
    run = functools.partial(fc.simulate, ts=jnp.linspace(0.0, 1e-6, 7), metrics=("snc2", "nc1", "risk"))
    program = jax.make_jaxpr(lambda start: run(model, start, method).metrics)(start)
    assert max(sizes(program.jaxpr)) < 10_000


# ---- which optimizers, and bad input

COMMUTING = [
    optax.sgd(0.1),
    optax.sgd(0.1, momentum=0.9),
    optax.sgd(0.1, momentum=0.9, nesterov=True),
    optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    optax.chain(optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.1), optax.sgd(0.1)),
]
ELEMENTWISE = [
    optax.adam(0.1),
    optax.adamw(0.1),
    optax.rmsprop(0.1),
    optax.adagrad(0.1),
    optax.lion(0.1),
    optax.sign_sgd(0.1),
]


@pytest.mark.parametrize("optimizer", COMMUTING)
def test_optimizers_that_commute_with_rotations_use_class_means(optimizer):
    assert fc.Descent(optimizer, 10).coordinates == "auto"
    assert fc.Descent(optimizer, 10, coordinates="class-mean").coordinates == "class-mean"


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_elementwise_optimizers_use_samples_and_refuse_class_means(optimizer):
    assert fc.Descent(optimizer, 10).coordinates == "sample"
    with pytest.raises(fc.UsageError, match=r"does not commute with rotations.*coordinates=\"sample\""):
        fc.Descent(optimizer, 10, coordinates="class-mean")


def test_adam_takes_its_own_way_in_every_rotation_of_the_samples():
    # This is why Adam is refused: from the same state, its step in class means differs from its step on the samples.
    model = MODELS["p at C-1, imbalanced"]
    start = start_of(model)
    steps = []
    for state in (start, fc.to_class_means(model, start)):
        problem, point = problem_of(model, state)
        gradient = jax.tree.map(jnp.negative, problem.field(point))
        updates, _ = optax.adam(0.1).update(gradient, optax.adam(0.1).init(point), point)
        W, X, b = jax.tree.map(jnp.add, point, updates)
        steps.append(fc.State(X=X, W=W, b=b, columns=state.columns))
    assert float(jnp.linalg.norm(steps[0].H - steps[1].H)) > 0.1


def test_traced_learning_rates_keep_the_class_means():
    seen = []

    @jax.vmap
    def lanes(rate):
        seen.append(fc.Descent("sgd", 5, learning_rate=rate).coordinates)
        seen.append(fc.Descent("adam", 5, learning_rate=rate).coordinates)
        return rate

    jax.jit(lanes)(jnp.array([0.1, 0.2]))
    assert seen == ["auto", "sample"]


@pytest.mark.parametrize(
    "make", [lambda c: fc.Flow(coordinates=c), lambda c: fc.Descent("sgd", 5, learning_rate=0.1, coordinates=c)]
)
def test_unknown_coordinates_are_refused_with_the_known_ones(make):
    with pytest.raises(fc.UsageError, match=r"'classes'.*'auto'.*'sample'.*'class-mean'"):
        make("classes")

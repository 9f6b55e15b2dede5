"""Descent: plain NumPy loops, optax on the full state, the closed form on S, and the flow as its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import systems

import flowcollapse as fc

EPS = float(jnp.finfo(jnp.float64).eps)
STEPS = 200
# Rounding of some hundred steps, grown with the escape from the origin.
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
    """The loop runs on the full state, sample by sample; ours on class means, where these steps are the same."""
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
    """Kingma and Ba 2015, written out; it looks at single entries, so only the samples' own coordinates will do."""
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

    One compilation for three step sizes, the last of them where the bias alternates in sign.
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

    All step sizes are lanes of one compilation with the steps of the smallest; the save at time T is the one compared.
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
    # The next term of the expansion is one factor of eta more, so that each halving halves the defect of the slope.
    np.testing.assert_allclose(slopes[-1], 1, atol=0.02)
    assert np.all(np.diff(np.abs(slopes - 1)) < 0)


def clock(method: fc.Descent, model=IMBALANCED) -> np.ndarray:
    return np.asarray(fc.simulate(model, systems.random_state(model, size=0.1), method, metrics=()).ts)


def test_time_is_the_sum_of_the_step_sizes():
    """For a schedule its cumulated learning rates, for momentum `eta (1 + beta + ...)` summed over the steps."""
    schedule = optax.linear_schedule(0.02, 0.0, 50)
    expected = np.cumsum([0.0, *(0.02 * (1 - k / 50) for k in range(50))])
    single = float(jnp.finfo(jnp.float32).eps)  # in which optax evaluates its schedules
    np.testing.assert_allclose(clock(fc.Descent(optax.sgd(schedule), 50)), expected, rtol=single)

    eta, beta = 0.01, 0.5
    speeds = eta * (1 - beta ** np.arange(1, 51)) / (1 - beta)
    momentum = clock(fc.Descent("sgd", 50, learning_rate=eta, momentum=beta))
    np.testing.assert_allclose(momentum, np.cumsum([0.0, *speeds]), rtol=1e-12)


def test_saves_are_at_the_nearest_steps(paper_model):
    """Step sizes cannot land on every time asked for; what comes back says at which times the saves were."""
    method = fc.Descent("sgd", 100, learning_rate=0.02)
    path = fc.simulate(
        paper_model, systems.random_state(paper_model), method, [0.0, 0.029, 0.031, 1.0, 9.0], metrics=()
    )
    np.testing.assert_allclose(path.ts, [0.0, 0.02, 0.04, 1.0, 2.0], rtol=1e-12)
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

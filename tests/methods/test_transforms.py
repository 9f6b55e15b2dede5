"""`simulate` under JAX: jit, vmap and grad agree with the plain call, one trace serves all values, float32 runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import systems

import flowcollapse as fc
from flowcollapse.methods.solvers.exponential import ExponentialDOP853

EPS = float(jnp.finfo(jnp.float64).eps)
SINGLE = float(jnp.finfo(jnp.float32).eps)
MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
RTOL = 1e-9
NAMES = ("risk", "snc1")
# Starts so different that their lanes take different numbers of steps.
SIZES = [3.0, 0.3, 1e-3, 1e-6]


def start_of(size: float) -> fc.State:
    return systems.random_state(MODEL, size=size / np.sqrt(MODEL.num_features * MODEL.num_samples))


@pytest.fixture(scope="module")
def plain() -> list[fc.Trajectory]:
    return [fc.simulate(MODEL, start_of(size), fc.Flow(rtol=RTOL), metrics=NAMES) for size in SIZES]


def assert_equal_runs(found: fc.Trajectory, expected: fc.Trajectory):
    """The same verdict, end and curves to the tolerance of the runs, with the same steps except at the plateau.

    There the steps are at the limit of stability, where rounding (which differs between programs) grows to rtol.
    """
    assert int(found.code) == int(expected.code)
    assert abs(int(found.stats["accepted"]) - int(expected.stats["accepted"])) <= 2
    assert systems.relative_error(systems.arrays(found.final), systems.arrays(expected.final)) < RTOL
    np.testing.assert_allclose(found.ts, expected.ts, rtol=100 * EPS)
    for name in NAMES:
        values, exact = found.metrics[name], expected.metrics[name]
        np.testing.assert_allclose(values, exact, rtol=RTOL, atol=RTOL * float(exact[0]))


def test_jit_agrees_with_the_plain_call(plain):
    """With everything traced, including the numbers of the model and the method."""

    @jax.jit
    def jitted(start, rtol, decay):
        model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15, weight_decay=decay)
        return fc.simulate(model, start, fc.Flow(rtol=rtol), metrics=NAMES)

    assert_equal_runs(jitted(start_of(SIZES[1]), RTOL, 0.0), plain[1])


def test_vmap_agrees_with_the_plain_call_lane_by_lane(plain, run_lanes):
    starts = jax.tree.map(lambda *xs: jnp.stack(xs), *map(start_of, SIZES))
    lanes = run_lanes(starts, RTOL)
    steps = [int(n) for n in lanes.stats["accepted"]]
    assert len(set(steps)) >= 3, "the lanes should differ in their steps"
    assert lanes.final.H.shape == (len(SIZES), 15, 9)
    for i, expected in enumerate(plain):
        assert_equal_runs(jax.tree.map(lambda x, i=i: x[i], lanes), expected)


def test_gradients_of_the_flow_under_vmap():
    """Against central differences, lane by lane, with respect to the size of the start, the decay and the final time.

    The error of a difference quotient is h^2 plus the solver's noise (near rtol) divided by h, both about 1e-5 here.
    """
    generic = start_of(1.0)

    def quantity(parameters, size):
        """The risk at the end, plus a sum without symmetry."""
        log_scale, decay, t1 = parameters
        start = jax.tree.map(lambda x: size * jnp.exp(log_scale) * x, generic)
        model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15, weight_decay=decay)
        path = fc.simulate(model, start, fc.Flow(rtol=RTOL, t1=t1, approach="explicit"), metrics=())
        weights = jnp.cos(jnp.arange(path.end.W.size)).reshape(path.end.W.shape)
        return fc.risk(MODEL, path.final) + jnp.sum(weights * path.final.W), path.stats["accepted"]

    lanes = systems.compiled(jax.vmap(jax.value_and_grad(quantity, has_aux=True), (None, 0)))
    at, sizes, h = jnp.array([0.0, 0.01, 2.0]), jnp.array([5.0, 0.3, 1e-3]), 1e-4
    (_, steps), gradients = lanes(at, sizes)
    assert len(set(map(int, steps))) == len(sizes), "the lanes should differ in their steps"
    for i, shift in enumerate(h * jnp.eye(3)):
        difference = (lanes(at + shift, sizes)[0][0] - lanes(at - shift, sizes)[0][0]) / (2 * h)
        assert np.all(np.abs(difference) > 1e-4)
        np.testing.assert_allclose(gradients[:, i], difference, rtol=1e-4, atol=1e-5)


def test_gradient_of_descent_by_the_learning_rate():
    """Against central differences, also under vmap: with a fixed number of steps, the end is smooth in the rate."""
    start = start_of(0.3)

    def end_risk(rate):
        path = fc.simulate(MODEL, start, fc.Descent("sgd", 50, learning_rate=rate), metrics=())
        return fc.risk(MODEL, path.final)

    rates, h = jnp.array([0.005, 0.02, 0.05]), 1e-5
    lanes = systems.compiled(jax.vmap(jax.value_and_grad(end_risk)))
    gradients = lanes(rates)[1]
    differences = (lanes(rates + h)[0] - lanes(rates - h)[0]) / (2 * h)
    assert np.all(np.abs(gradients) > 1e-3)
    # h^2 times third derivatives, which are (number of steps)^2 times first ones.
    np.testing.assert_allclose(gradients, differences, rtol=1e-4)


class CountingSolver(ExponentialDOP853):
    """The default solver, which counts how often its step is traced."""

    def step(self, *args, **kwargs):
        TRACED.append("step")
        return super().step(*args, **kwargs)


TRACED: list[str] = []


def counting_sgd(learning_rate, momentum):
    """Gradient descent, which counts how often its update is traced."""
    optimizer = optax.sgd(learning_rate, momentum)

    def update(updates, state, params=None):
        TRACED.append("update")
        return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def test_one_trace_for_all_values_of_the_flow():
    """eps, rtol, atol, t1, decay and ts are data: a new value of any of them compiles nothing."""

    def simulate(eps, rtol, atol, t1, decay, t):
        model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2, weight_decay=decay)
        start = fc.initial.sphere(model, eps=eps, key=jax.random.key(0))
        return fc.simulate(model, start, fc.Flow(CountingSolver(), rtol=rtol, atol=atol, t1=t1), [0.0, t], metrics=())

    TRACED.clear()
    simulate(1.0, 1e-3, 1e-6, 1.0, 0.0, 1.0)
    once = len(TRACED)
    assert once > 0
    simulate(0.1, 1e-5, 1e-7, 2.0, 0.1, 1.5)
    simulate(1, 1e-5, 1e-7, 3, 0, 2)  # integers
    simulate(np.float32(0.5), np.float64(1e-4), np.array(1e-7), jnp.array(2.0), np.float32(0.5), np.float64(1))
    assert len(TRACED) == once


def test_one_trace_for_all_values_of_descent():
    def simulate(eps, rate, momentum):
        model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
        start = fc.initial.sphere(model, eps=eps, key=jax.random.key(0))
        method = fc.Descent(counting_sgd, 10, coordinates="sample", learning_rate=rate, momentum=momentum)
        TRACED.clear()  # the constructor traces the optimizer too
        fc.simulate(model, start, method, metrics=())
        return len(TRACED)

    assert simulate(1.0, 0.1, 0.5) > 0
    assert simulate(0.1, 0.2, 0.9) == 0
    assert simulate(1, np.float32(0.1), jnp.array(0.3)) == 0


@pytest.mark.parametrize("shape", [(3, 3), (3, 15)])
def test_lanes_beyond_sixteen_thousand_are_right(shape):
    """From lane 16,384 on, jax 0.10.2 silently computed these norms of a square matrix wrongly (jax issue 39103)."""
    rng = np.random.default_rng(0)
    matrix, vectors = rng.standard_normal(shape), rng.standard_normal((16_385, shape[1]))
    norms = jax.jit(jax.vmap(lambda v: jnp.linalg.norm(jnp.asarray(matrix) @ v)))(vectors)
    np.testing.assert_allclose(norms, np.linalg.norm(vectors @ matrix.T, axis=1), rtol=100 * EPS)


def test_single_precision_runs_and_says_what_it_reaches(paper_model, key):
    """A float32 start stays float32 throughout; its end equals the float64 end only up to float32 rounding."""
    double = fc.initial.sphere(paper_model, eps=1e-4, key=key)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), double)
    path, exact = (fc.simulate(paper_model, start, fc.Flow(rtol=1e-8), metrics=NAMES) for start in (single, double))
    floats = [x.dtype for x in jax.tree.leaves(path) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype(jnp.float32)}
    assert path.result == fc.Verdict.plateau
    assert systems.relative_error(systems.arrays(path.final), systems.arrays(exact.final)) < 1e4 * SINGLE
    assert "float32 resolves" in repr(path)
    assert "float32" not in repr(exact)
    # As the table says, about 1e-6 to 1e-5, although the limit of this start is a thousand times smaller. On an older
    # processor it is 2.6e-5; one rounding of `W W^T` for every evaluation would be 1e-4.
    assert float(exact.metrics["snc1"][-1]) < 1e-8
    rounding = int(path.stats["evaluations"]) * SINGLE * float(jnp.sum(path.final.W**2))
    assert 1e-8 < float(path.metrics["snc1"][-1]) < rounding
    assert float(fc.metrics.snc(paper_model, path.final)[2]) < 2e-5


@pytest.mark.usefixtures("thirty_two_bits")
def test_without_float64_everything_runs_in_single_precision():
    model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
    start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
    for method in (fc.Flow(), fc.Descent("sgd", 400, learning_rate=0.05)):
        path = fc.simulate(model, start, method, metrics=("risk",))
        assert path.final.W.dtype == path.ts.dtype == jnp.float32
        assert path.result == fc.Verdict.plateau
        assert float(path.metrics["risk"][-1]) < 1e-4

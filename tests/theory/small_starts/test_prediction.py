"""The prediction of small starts against the flow itself: paths, plateaus and learning curves, at every p.

The theory holds to leading order in the size eps of the start, with a relative error of O(eps^2 ln 1/eps) at all times
up to the plateau. The laws below are bounds `K eps^2` with K of order one, at three sizes a factor of ten apart.
"""

import functools
from typing import NamedTuple

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.theory.small_starts import curves, limits, prediction

SYSTEMS = {
    "p > C - 1": fc.UFM(num_classes=3, samples_per_class=3, num_features=15),
    "p = C - 1": fc.UFM(num_classes=4, samples_per_class=2, num_features=3),
    "no bias": fc.UFM(num_classes=3, samples_per_class=3, num_features=5, use_bias=False),
    "p < C - 1": fc.UFM(num_classes=5, samples_per_class=2, num_features=3),
    "one sample": fc.UFM(num_classes=3, samples_per_class=1, num_features=5),
}
PAPER = SYSTEMS["p > C - 1"]
FIVE = fc.UFM(num_classes=3, samples_per_class=4, num_features=5)
SIZES = np.array([1e-2, 3e-3, 1e-3])
NUM_TIMES = 41
EPS = float(np.finfo(np.float64).eps)
RTOL = 1e-12
STATE_ERROR = 10 * RTOL
SQUARES = ("risk", "nc1", "nc1_trace", "cdnv")

METRICS = ("snc1", "snc2", "snc3", "distance", "relative_distance", "nc1", "nc1_trace", "nc2_norm_h", "nc2_norm_w")
METRICS += ("nc2_angle_h", "nc2_angle_w", "nc2_etf_h", "nc2_etf_w", "nc3", "cdnv", "risk", "grad_norm")


class Runs(NamedTuple):
    """One direction at each of the `SIZES`: metrics along the path, with axes (size, time), and the end."""

    found: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    predicted: dict[str, np.ndarray]
    plateau: limits.Plateau
    curves: dict[bool, curves.LearningCurve]


def starts_of(model: fc.UFM) -> fc.State:
    starts = [fc.initial.sphere(model, size, key=jax.random.key(1), reduced=False) for size in SIZES]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


@functools.cache
def programs(name: str):
    """Functions from `(starts, ts)` to the paths of the flow and of the theory, one lane per start, compiled once."""
    model = SYSTEMS[name]

    def simulate(start, ts):
        return fc.simulate(model, start, fc.Flow(rtol=RTOL), ts, metrics=METRICS)

    def predict(start, ts):
        both = {corrected: curves.learning_curve(model, start, ts, corrected=corrected) for corrected in (True, False)}
        return prediction.trajectory(model, start, ts, metrics=METRICS), limits.plateau(model, start), both

    return systems.compiled(jax.vmap(simulate)), systems.compiled(jax.vmap(predict))


@functools.cache
def runs(name: str) -> Runs:
    """From the start to the plateau: at the paper's sizes by `fc.simulate`, elsewhere by SciPy and plain formulas."""
    model, starts = SYSTEMS[name], starts_of(SYSTEMS[name])
    # NC1 is of order eps^6 and needs more time than the default.
    t_end = systems.compiled(jax.vmap(lambda start: limits.plateau_time(model, start, 30.0)))(starts)
    ts = t_end[:, None] * jnp.linspace(0, 1, NUM_TIMES)
    simulate, predict = programs(name)
    if model is PAPER:
        path = simulate(starts, ts)
        found, final = jax.device_get(path.metrics), path.final
    else:
        lanes = [systems.arrays(lane(starts, i)) for i in range(len(SIZES))]
        paths = [systems.flow(z, model.counts, t, use_bias=model.use_bias) for z, t in zip(lanes, ts, strict=True)]
        values = [
            [measured(model, systems.Arrays(*z), start) for z in zip(*path, strict=True)]
            for start, path in zip(lanes, paths, strict=True)
        ]
        found = {metric: np.array([[one[metric] for one in path] for path in values]) for metric in METRICS}
        final = fc.State(*(jnp.asarray(np.stack([path[i][-1] for path in paths])) for i in range(3)))
    path, plateau, both = predict(starts, ts)
    assert np.all(path.result == fc.Verdict.plateau)
    return Runs(found, parts_of(model, final), jax.device_get(path.metrics), plateau, both)


def lane(batch, i: int):
    return jax.tree.map(lambda x: x[i], batch)


def measured(model: fc.UFM, point: systems.Arrays, start: systems.Arrays) -> dict[str, float]:
    """All metrics by the formulas of their papers; without a bias, P is the identity and 1/C is replaced by 0."""
    values = formulas.of_point(point, model.counts, start)
    if model.use_bias:
        return values
    (H, W, b), s = point, np.sqrt(model.counts[0])
    means = H.reshape(len(H), model.num_classes, -1).mean(axis=-1)
    gap, within = W - s * means.T, np.sum((H - np.repeat(means, model.counts[0], axis=-1)) ** 2)
    distance = np.sqrt(within + np.sum(gap**2) / 2)
    gradient = systems.velocity(point, model.counts, use_bias=False)
    return values | {
        "snc1": np.linalg.norm(W @ W.T - s * np.eye(model.num_classes)),
        "snc3": np.linalg.norm(b),
        "distance": distance,
        "relative_distance": distance / np.sqrt(np.sum(H**2) + np.sum(W**2)),
        "grad_norm": np.sqrt(sum(np.sum(part**2) for part in gradient)),
    }


def parts_of(model: fc.UFM, states: fc.State) -> dict[str, np.ndarray]:
    """W, B, `L L^T` and b of a batch of states."""
    H, W, b = systems.arrays(states)
    means = H.reshape(*H.shape[:-1], model.num_classes, -1).mean(axis=-1)
    L = H - np.repeat(means, model.counts[0], axis=-1)
    return {"W": W, "B": means * np.sqrt(model.counts[0]), "LLt": L @ np.swapaxes(L, -1, -2), "b": b}


# ---- whole paths and plateaus


def accuracy(metric: str, name: str, found, sizes):
    """The error of the flow itself, whose state is of order one and accurate to ten times its rtol, on any CPU.

    Most metrics are norms of differences of parts of the state and have this error. A metric that is a square has this
    error in its root. The root of NC1 is a product of `W - B^T`, which has this error, and L, which is of order eps.
    SciPy does not bound the error of each block by the block's norm, as the package does, so with SciPy squares have
    the error of the state.
    """
    if SYSTEMS[name] is not PAPER:
        return STATE_ERROR
    of_root = STATE_ERROR * (sizes if metric == "nc1" else 1)
    return 2 * np.sqrt(np.abs(found)) * of_root + of_root**2 if metric in SQUARES else STATE_ERROR


def errors(metric: str, name: str, found, predicted):
    """`|predicted - found|` divided by `K eps^2`; K is larger for metrics of order eps^3 and eps^6."""
    K, sizes = 60 if metric in ("nc1", "grad_norm") else 10, SIZES[:, None]
    return np.maximum(np.abs(predicted - found) - accuracy(metric, name, found, sizes), 0.0) / (K * sizes**2)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_metric_at_every_time(name):
    run = runs(name)
    for metric in METRICS:
        found, predicted = run.found[metric], run.predicted[metric]
        if np.all(np.isnan(found)) or np.all(found == 0):
            np.testing.assert_array_equal(predicted, found, err_msg=metric)
            continue
        error = errors(metric, name, found, predicted)
        assert np.all(error < np.max(found, axis=1, keepdims=True)), metric
        # Metrics that decay to zero are not predicted to their last digit.
        assert metric not in limits.powers(SYSTEMS[name]) or np.all(error < found), metric


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_powers_of_eps(name):
    """Fitted to the ends of the flow. NC1 by the pseudo-inverse is 1e-20 at the smallest size, with fewer digits."""
    ends = {metric: values[:, -1] for metric, values in runs(name).found.items()}
    for metric, power in limits.powers(SYSTEMS[name]).items():
        fitted = np.polyfit(np.log(SIZES), np.log(ends[metric]), 1)[0]
        assert abs(fitted - power) < (0.05 if metric == "nc1" else 0.01), metric


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_plateau(name):
    """Each part to its order, and the closed forms of the metrics, which are off by the drift before the plateau."""
    run = runs(name)
    parts = parts_of(SYSTEMS[name], run.plateau.state)
    for part, order in (("W", 2), ("B", 2), ("LLt", 4), ("b", 3)):
        errors = np.linalg.norm((parts[part] - run.end[part]).reshape(len(SIZES), -1), axis=1)
        np.testing.assert_array_less(errors, 20 * SIZES**order, err_msg=part)
    assert set(run.plateau.metrics) >= {"snc1", "snc2", "snc3", "distance", "relative_distance", "nc1_trace", "risk"}
    for metric, value in run.plateau.metrics.items():
        if metric in limits.powers(SYSTEMS[name]):
            found = run.found[metric][:, -1]
            allowed = 60 * SIZES**2 * found + accuracy(metric, name, found, SIZES)
            np.testing.assert_array_less(np.abs(value - found), allowed, err_msg=metric)
        else:
            assert np.all(value < 1e-25), metric


def test_the_slow_phase_to_first_order():
    """At the time f/eps^2 the drift of u and L has the error f^2; without drift the error would be f."""
    fractions, start = np.array([0.03, 0.1, 0.3]), lane(starts_of(PAPER), 0)
    starts = jax.tree.map(lambda x: jnp.stack([x] * 3), start)
    ts = jnp.asarray(fractions)[:, None] / SIZES[0] ** 2 * jnp.linspace(0, 1, NUM_TIMES)
    simulate, predict = programs("p > C - 1")
    found, predicted = simulate(starts, ts).metrics, predict(starts, ts)[0].metrics
    for metric in ("risk", "nc1_trace", "nc3", "snc1", "distance"):
        errors = np.abs(predicted[metric][:, -1] / found[metric][:, -1] - 1)
        np.testing.assert_array_less(errors, 0.3 * fractions**2, err_msg=metric)


@pytest.mark.parametrize("name", SYSTEMS)
def test_learning_curves(name):
    """Once the bias has relaxed, the error is 0.01 eps^2 of the risk at the start; without K2 it has a logarithm."""
    run = runs(name)
    scale = SIZES**2 * run.found["risk"][:, 0]
    corrected, plain = (
        np.max(np.abs(np.asarray(run.curves[c].risk) - run.found["risk"])[:, 4:], axis=1) / scale for c in (True, False)
    )
    assert np.all(corrected < 0.03)
    assert plain[2] > 2 * corrected[2]
    assert plain[2] > 1.2 * plain[0]


@pytest.mark.parametrize("large", ["L", "u", "v"])
def test_each_part_of_the_correction(large):
    """For one mode at the same phases of its escape, the error divided by eps^2 is constant, but only with K2."""
    model, rng = fc.UFM(num_classes=2, samples_per_class=3, num_features=4), np.random.default_rng(3)
    W, Hbar, L = rng.normal(size=(2, 4)), rng.normal(size=(4, 2)), rng.normal(size=(4, 6))
    L -= np.repeat(L.reshape(4, 2, 3).mean(axis=2), 3, axis=1)
    u, v = np.outer(np.ones(2), W.mean(axis=0)), np.outer(Hbar.mean(axis=1), np.ones(2))
    W, Hbar, L = (W + 3 * u, Hbar, L) if large == "u" else (W, Hbar + 3 * v, L) if large == "v" else (W, Hbar, 3 * L)
    growing = (W - W.mean(axis=0) + np.sqrt(3) * (Hbar.T - Hbar.mean(axis=1))) / 2
    curve = systems.compiled(
        lambda start, ts: [curves.learning_curve(model, start, ts, corrected=c).risk for c in (True, False)]
    )
    found = []
    for size in (1e-3, 1e-4):
        start = systems.Arrays(size * (np.repeat(Hbar, 3, axis=1) + L), size * W, np.zeros(2))
        mu = size**2 * np.sum(growing**2)
        ts = np.concatenate([[0.0], np.log(np.sqrt(3) / mu) / (2 * np.sqrt(3)) + np.array([-0.3, 0.0, 0.3])])
        path = systems.flow(start, model.counts, ts)
        risks = np.array([systems.risk(systems.Arrays(*z), model.counts) for z in zip(*path, strict=True)])
        predicted = curve(fc.State(*map(jnp.asarray, start)), jnp.asarray(ts))
        found.append([(np.asarray(one) - risks)[1:] / size**2 for one in predicted])
    corrected, plain = (np.abs(found[0][i] - found[1][i]) for i in (0, 1))
    np.testing.assert_array_less(corrected, 0.02 * plain)


# ---- laws without a run


@functools.cache
def predicted_five():
    """The program `(start, four times) -> states, curve, verdict and risk` for the model of five features."""

    def run(start, ts):
        path = prediction.trajectory(FIVE, start, ts, metrics=("risk", "snc2"))
        curve = curves.learning_curve(FIVE, start, ts)
        return prediction.states(FIVE, start, ts), curve, path.metrics, path.code

    return systems.compiled(run)


def predict_five(start: systems.Arrays, ts):
    return predicted_five()(fc.State(*map(jnp.asarray, start)), jnp.asarray(ts))


def test_the_prediction_starts_at_the_start():
    random = systems.arrays(systems.random_state(FIVE, size=1e-2))
    start = random._replace(b=np.full(3, 0.7))
    states = predict_five(start, [0.0, 1.0, 2.0, 3.0])[0]
    for found, given in zip(systems.arrays(states), start, strict=True):
        np.testing.assert_allclose(found[0], given, rtol=0, atol=100 * EPS)


def on_subspace(size: float) -> systems.Arrays:
    rng = np.random.default_rng(5)
    return systems.on_subspace(size * systems.centring(3) @ rng.standard_normal((3, 5)), np.array(0.9), 4)


def test_on_the_subspace_the_prediction_is_exact_at_any_size():
    start, ts = on_subspace(0.6), [0.0, 0.3, 1.0, 5.0]
    exact = systems.flow_on_subspace(start.W, 0.9, 4, ts)
    states, curve, _, _ = predict_five(start, ts)
    assert systems.relative_error(systems.arrays(states), exact) < 100 * EPS
    risks = [systems.risk(systems.Arrays(*parts), FIVE.counts) for parts in zip(*exact, strict=True)]
    np.testing.assert_allclose(curve.risk, risks, rtol=1e3 * EPS, atol=1e3 * EPS)
    np.testing.assert_allclose(curve.beta, exact.b[:, 0], rtol=100 * EPS)


def test_a_start_that_lacks_a_mode_stays_at_the_saddle():
    W = 1e-2 * np.outer([1.0, -2.0, 1.0], [1.0, 0.0, 2.0, 0.0, 1.0])
    states, _, values, code = predict_five(systems.on_subspace(W, np.array(0.0), 4), [0.0, 5.0, 50.0, 1000.0])
    assert code == fc.Verdict.saddle
    np.testing.assert_allclose(values["risk"][2:], 4 / 2, rtol=100 * EPS)
    assert all(np.all(np.isfinite(part)) for part in (*systems.arrays(states), values["snc2"]))


def test_descent_on_the_subspace_is_exact_at_any_size():
    start, eta, steps = on_subspace(0.6), 0.1, 30
    exact = systems.descent_on_subspace(start.W, 0.9, 4, eta, steps)
    curve = curves.descent_curve(FIVE, fc.State(*map(jnp.asarray, start)), eta, steps)
    risks = [systems.risk(systems.Arrays(*parts), FIVE.counts) for parts in zip(*exact, strict=True)]
    np.testing.assert_allclose(curve.risk, risks, rtol=1e4 * EPS, atol=1e4 * EPS)
    np.testing.assert_allclose(curve.beta, exact.b[:, 0], rtol=1e3 * EPS)
    np.testing.assert_allclose(curve.ts, eta * np.arange(steps + 1), rtol=EPS)


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_descent_from_a_small_start_and_its_number_of_steps(rate):
    """The risk follows the recursion on S, and L falls to e^-20 at the predicted step, to within one step."""
    start = lane(starts_of(SYSTEMS["p = C - 1"]), 2)
    model = SYSTEMS["p = C - 1"]
    steps = int(limits.plateau_steps(model, start, rate))
    curve = curves.descent_curve(model, start, rate, steps)
    H, W, b = systems.arrays(start)
    risks, left = [], []
    for _ in range(steps + 1):
        means = np.repeat(H.reshape(3, 4, 2).mean(axis=2), 2, axis=1)
        risks.append(systems.risk(systems.Arrays(H, W, b), model.counts))
        left.append(np.linalg.norm(H - means))
        dH, dW, db = systems.velocity(systems.Arrays(H, W, b), model.counts)
        H, W, b = H + rate * dH, W + rate * dW, b + rate * db
    np.testing.assert_allclose(curve.risk, risks, atol=2 * SIZES[2] ** 2 * risks[0])
    share = left[-1] / left[0]
    one_step = 1 - rate * np.sqrt(2)
    assert share < 3 * np.exp(-20) / one_step
    assert share > 0.03 * np.exp(-20) * one_step


# ---- the Dataset, and JAX


def test_the_dataset_is_laid_out_like_that_of_a_run():
    start, ts = lane(starts_of(PAPER), 2), np.linspace(0.0, 10.0, NUM_TIMES)
    lanes = programs("p > C - 1")[0](starts_of(PAPER), jnp.stack([jnp.asarray(ts)] * 3))
    found = lane(lanes, 2).to_xarray()
    predicted = fc.predict(PAPER, start, ts, metrics=("risk", "balancedness"))
    assert set(predicted.variables) == {"time", "risk", "balancedness", "verdict", "t_end"}
    assert set(predicted.variables) - {"balancedness"} <= set(found.variables)
    assert set(predicted.attrs) == set(found.attrs)
    for name in ("time", "risk", "verdict", "t_end"):
        assert predicted[name].dims == found[name].dims
        assert predicted[name].attrs.keys() == found[name].attrs.keys()
        np.testing.assert_allclose(predicted[name], found[name], rtol=10 * SIZES[2] ** 2)
    assert predicted.attrs["title"] == "flowcollapse prediction"
    assert not np.any(predicted["balancedness"])


def test_by_default_a_prediction_has_what_a_run_has():
    """The metrics that the start allows (for example, none of single samples), at 101 times up to the plateau."""
    start = fc.initial.sphere(PAPER, 1e-2, key=jax.random.key(0), reduced=True)
    path = jax.eval_shape(lambda: prediction.trajectory(PAPER, start))
    metrics = fc.metrics.METRICS.items()
    affordable = {name for name, metric in metrics if metric.usual and not metric.shift_invariant}
    assert set(path.metrics) == affordable - {"nc4", "cdnv"}
    assert path.ts.shape == (101,)


def test_inside_vmap_and_grad():
    """The distance at the plateau is linear in the start up to O(eps^2): its logarithm has the slope 1 in ln eps."""

    def end(scale, start):
        scaled = fc.State(H=scale * start.H, W=scale * start.W, b=start.b)
        return jnp.log(limits.plateau(PAPER, scaled).metrics["distance"])

    slopes = systems.compiled(jax.vmap(jax.grad(end), (None, 0)))(1.0, starts_of(PAPER))
    np.testing.assert_array_less(np.abs(slopes - 1), SIZES**2)


@pytest.mark.usefixtures("thirty_two_bits")
def test_in_single_precision():
    start = fc.initial.sphere(PAPER, 1e-2, key=jax.random.key(0))
    path = systems.compiled(lambda: prediction.trajectory(PAPER, start, metrics=("risk", "distance")).metrics)()
    assert path["risk"].dtype == np.float32
    np.testing.assert_allclose(path["risk"][0], 4.5, rtol=1e-5)
    # The root mean square over starts is 1.004 eps, and a single start is close to it.
    assert 0.5e-2 < path["distance"][-1] < 1.5e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": 0.1}, "decay_limit"),
        ({"samples_per_class": (2, 3, 4)}, "imbalanced_limit"),
    ],
)
def test_models_that_are_not_covered_are_refused(change, message):
    sizes: dict = {"num_classes": 3, "samples_per_class": 3, "num_features": 4} | change
    model = fc.UFM(**sizes)
    start = fc.initial.sphere(model, 1e-3, key=jax.random.key(0))
    with pytest.raises(fc.UsageError, match=message):
        fc.predict(model, start)


def test_starts_that_are_not_covered_are_refused():
    with pytest.raises(fc.UsageError, match="leading axes"):
        fc.predict(PAPER, starts_of(PAPER))
    start = lane(starts_of(PAPER), 0)
    for ts in (1.0, [], [-1.0, 0.0], [0.0, np.inf]):
        with pytest.raises(fc.UsageError, match="ts must be"):
            fc.predict(PAPER, start, ts)
    with pytest.raises(fc.UsageError, match="differs between the classes"):
        fc.predict(PAPER, fc.State(H=start.H, W=start.W, b=jnp.array([0.0, 0.5, 0.0])))

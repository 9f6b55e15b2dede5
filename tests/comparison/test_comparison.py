"""Flow against descent: against plain NumPy loops and SciPy, the orders, the closed forms on S, optimizers by name."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import systems
import xarray as xr
from formulas import of_point

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.methods.optimizers import ALSO_NEEDED, named

MODEL = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
EPS = float(jnp.finfo(jnp.float64).eps)
RTOL = 1e-10
ROUNDED = 1e5 * EPS  # rounding of a few hundred steps, amplified by the escape from the origin


# ---- one optimizer, a batch of learning rates

UNIT = 0.5
RATES = (*(UNIT / k for k in (50, 70, 100, 140, 200)), 0.5)
"""Five small step sizes that divide the times below, and an unstable one."""

TIMES = np.array([0.0, UNIT, 2 * UNIT, 20.0])
METRICS = ("snc1", "risk", "balancedness")


@pytest.fixture(scope="module")
def rates() -> xr.Dataset:
    """Gradient descent and the flow from two random starts."""
    return fc.compare(
        MODEL,
        "sphere",
        ["sgd"],
        TIMES,
        eps=[0.5],
        seeds=2,
        metrics=METRICS,
        flow="flow:rtol=1e-10",
        learning_rate=RATES,
    ).isel(eps=0)


def numpy_descent(start: systems.Arrays, eta: float) -> Iterator[systems.Arrays]:
    """The iterates of gradient descent, the start first."""
    z = start
    while True:
        yield z
        z = systems.Arrays(*(x + eta * v for x, v in zip(z, systems.velocity(z, MODEL.counts), strict=True)))


def at_steps(start: systems.Arrays, eta: float, steps) -> list[systems.Arrays]:
    return [z for k, z in zip(range(max(steps) + 1), numpy_descent(start, eta), strict=False) if k in steps]


def start_of(seed: int) -> systems.Arrays:
    return systems.arrays(fc.initial.sphere(MODEL, 0.5, key=jax.random.key(seed)))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_number_against_numpy_and_scipy(rates, seed):
    """Metrics, times and distances of one lane: a plain loop for descent, DOP853 at 1e-13 for the flow."""
    eta, start = RATES[1], start_of(seed)
    steps = np.round(TIMES / eta).astype(int)
    descent = at_steps(start, eta, steps.tolist())
    flow = systems.flow(start, MODEL.counts, TIMES)
    lane = rates.sel(seed=seed, learning_rate=eta)
    np.testing.assert_allclose(lane.t, np.stack([TIMES, TIMES]), rtol=1e-12)
    for k, found in enumerate(descent):
        expected = systems.Arrays(*(part[k] for part in flow))
        for method, point in (("flow", expected), ("sgd", found)):
            metrics = of_point(point, MODEL.counts, start)
            for name in METRICS:
                np.testing.assert_allclose(
                    lane[name].sel({"method": method})[k], metrics[name], rtol=1e-7, atol=100 * RTOL, err_msg=name
                )
        distance = systems.relative_error(found, expected)
        np.testing.assert_allclose(
            lane.distance_to_flow.sel({"method": "sgd"})[k], distance, rtol=1e-5, atol=100 * RTOL
        )
    assert float(lane.max_distance_to_flow[1]) == float(lane.distance_to_flow[1].max())
    assert lane.steps[1] == steps[-1]
    assert np.all(lane.distance_to_flow[0] == 0)


def test_distance_and_drift_are_of_first_order(rates):
    """Both are O(eta) at a fixed time. The slopes are fitted over five step sizes; O(eta^2) changes them a little."""
    small = rates.sel({"method": "sgd"}).isel(learning_rate=slice(0, 5), time=2)
    for name in ("distance_to_flow", "balancedness"):
        for values in small[name].transpose("seed", ...).values:
            np.testing.assert_allclose(np.polyfit(np.log(small.learning_rate), np.log(values), 1)[0], 1, atol=0.05)
    assert float(rates.balancedness.sel({"method": "flow"}).max()) < 100 * RTOL


def test_a_lane_that_diverges_is_told_and_harms_no_other(rates):
    verdicts = rates.verdict.sel({"method": "sgd"}).transpose("learning_rate", "seed").values
    assert np.all(verdicts[-1] == fc.Verdict.non_finite)
    assert np.all(verdicts[:-1] == fc.Verdict.plateau)
    assert np.all(rates.verdict.sel({"method": "flow"}) == fc.Verdict.plateau)
    wild = rates.sel({"method": "sgd"}).isel(learning_rate=-1)
    assert not np.any(np.isfinite(wild.max_distance_to_flow))
    others = rates.isel(learning_rate=slice(0, 5))
    assert all(np.all(np.isfinite(others[name])) for name in (*METRICS, "distance_to_flow"))


def test_the_command_says_and_writes_the_same(rates, tmp_path, capsys):
    words = "compare --optimizer sgd --samples-per-class 2 --num-features 4 --eps 0.5 --seeds 2 --flow flow:rtol=1e-10"
    numbers = ["--axis", f"learning_rate={','.join(map(repr, RATES))}", "--ts", *map(repr, TIMES.tolist())]
    files = ["--out", str(tmp_path / "new" / "c.nc"), "--plot", str(tmp_path / "c.png")]
    assert cli.main([*words.split(), *numbers, "--metrics", *METRICS, *files]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.5", "0.5", "sgd", "nan", "nan", "nan", "nan", f"{20 / 0.5:g}", "2", "non_finite"] in rows
    with xr.open_dataset(tmp_path / "new" / "c.nc", engine="h5netcdf") as written:
        xr.testing.assert_equal(written.isel(eps=0).load(), rates)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["c.nc", "c.png", "new"]


# ---- many optimizers, from a random start and from one on S

MOMENTUM = {"learning_rate": 0.02, "momentum": 0.8}
OPTIMIZERS = {
    "gd": optax.sgd(0.05),
    "reduced": fc.Descent("sgd", 400, coordinates="class-mean", **MOMENTUM),
    "full": fc.Descent("sgd", 400, coordinates="sample", **MOMENTUM),
    "nesterov": "sgd:learning_rate=0.02,momentum=0.8,nesterov=true",
    "adam": "adam:learning_rate=0.02",
    "adamw": "adamw:learning_rate=0.02",
    "lion": "lion:learning_rate=0.02",
    "sign": optax.sign_sgd(0.02),
    "rmsprop": "rmsprop:learning_rate=0.02",
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.05, 400, alpha=0.1)),
    "labelled": optax.multi_transform(
        {"fast": optax.sgd(0.05), "slow": optax.sgd(0.01)}, {"W": "fast", "H": "fast", "b": "slow"}
    ),
    "lbfgs": fc.Descent(optax.lbfgs(), 400, clock=0.05),
}


@pytest.fixture(scope="module")
def starts() -> fc.State:
    random = fc.initial.sphere(MODEL, 0.3, key=jax.random.key(0))
    return jax.tree.map(lambda *xs: jnp.stack(xs), random, fc.initial.on_subspace(MODEL, 0.3, key=jax.random.key(1)))


@pytest.fixture(scope="module")
def many(starts) -> xr.Dataset:
    return fc.compare(MODEL, starts, OPTIMIZERS, 9, metrics=("distance", "balancedness"), keep_final=True)


def test_all_run_to_the_latest_plateau_on_one_clock(many, starts):
    """The last time is at least `(ln(sqrt s / sigma_min) + 20)/s` for both starts; saves are within half a step."""
    assert many.method.values.tolist() == ["flow", *OPTIMIZERS]
    s, latest = 2**0.5, 0.0
    for H, W in zip(np.asarray(starts.H), np.asarray(starts.W), strict=True):
        B = s * H.reshape(4, 3, 2).mean(axis=2)
        sigma = np.linalg.svd(systems.centring(3) @ (W + B.T) / 2, compute_uv=False)[1]
        latest = max(latest, (math.log(math.sqrt(s) / sigma) + 20) / s)
    assert latest <= float(many.time[-1]) < latest + 0.1
    distances = many.distance_to_flow.transpose("method", ...).values
    assert np.all(np.isfinite(distances))
    assert np.all(distances[:, :, 0] < ROUNDED)
    for name in ("flow", "gd", "reduced", "full", "nesterov", "schedule", "labelled", "lbfgs"):
        assert np.all(many.verdict.sel({"method": name}) == fc.Verdict.plateau), name
    # Momentum takes the fewest steps, so the times are its steps; the others are at most half a step away.
    np.testing.assert_allclose(many.t.sel({"method": "full"}), np.stack([many.time] * 2), rtol=1e-12)
    assert float(abs(many.t.sel({"method": "adam"}) - many.time).max()) <= 0.01 * (1 + 1e-6)
    np.testing.assert_allclose(many.steps.sel({"method": "gd"}) * 0.05, many.t_end.sel({"method": "gd"}), rtol=1e-12)


def test_descent_on_the_subspace_is_its_recursion_and_the_flow_its_closed_form(many, starts):
    """`mu <- mu (1 + eta (s - mu))^2` to rounding, the distance to the flow's closed form, and no drift off balance."""
    lane = many.isel(lane=1).sel({"method": "gd"})
    steps = np.round(lane.t.values / 0.05).astype(int)
    iterates = systems.descent_on_subspace(np.asarray(starts.W[1]), 0.0, 2, 0.05, steps[-1])
    for name in ("H", "W", "b"):
        np.testing.assert_allclose(lane[name], getattr(iterates, name)[-1], atol=ROUNDED)
    flow = systems.flow_on_subspace(np.asarray(starts.W[1]), 0.0, 2, lane.t.values)
    for k, step in enumerate(steps):
        distance = systems.relative_error([part[step] for part in iterates], [part[k] for part in flow])
        np.testing.assert_allclose(lane.distance_to_flow[k], distance, rtol=1e-5, atol=1e-6)  # the flow's rtol is 1e-8
    assert float(lane.balancedness.max()) < ROUNDED
    assert float(lane.distance.max()) < ROUNDED
    assert float(many.balancedness.isel(lane=0).sel({"method": "gd"}).max()) > 1e-3
    assert float(many.distance.isel(lane=1).sel({"method": "adam"}).max()) > 1e-2


def test_momentum_in_reduced_coordinates_is_momentum(many):
    """Saves, ends and distances agree; one distance is measured on class means, the other sample by sample."""
    reduced, full = many.sel({"method": "reduced"}), many.sel({"method": "full"})
    for name in ("distance", "balancedness", "distance_to_flow", "H", "W", "b"):
        np.testing.assert_allclose(reduced[name], full[name], atol=ROUNDED, err_msg=name)
    assert float(full.max_distance_to_flow.min()) > 1e-3


def test_steps_to_the_plateau():
    """Decaying parts fall to e^-20 after `ln(sqrt s / sigma_min) / ln(1 + eta s) + 20 / (-ln |1 - eta s|)` steps, to
    within one step (derived here). At p = C - 1 the decaying part is L along the slowest mode."""
    model, s, rates = fc.UFM(num_classes=3, samples_per_class=3, num_features=2), 3**0.5, jnp.array([0.03, 0.06, 0.12])
    start = fc.to_class_means(model, fc.initial.sphere(model, 1e-3, key=jax.random.key(3)))
    _, sigma, Vt = np.linalg.svd(systems.centring(3) @ np.asarray(start.W + start.B.T) / 2, full_matrices=False)

    @systems.compiled
    @jax.vmap
    def along_slowest(eta):
        path = fc.simulate(model, start, fc.Descent("sgd", 900, learning_rate=eta), 901, save_states=True, metrics=())
        assert path.states is not None
        return jnp.linalg.norm(jnp.asarray(Vt[1]) @ path.states.L, axis=-1)

    for eta, size in zip(np.asarray(rates), np.asarray(along_slowest(rates)), strict=True):
        predicted = math.log(math.sqrt(s) / sigma[1]) / math.log1p(eta * s) - 20 / math.log(1 - eta * s)
        assert abs(np.argmax(size < math.exp(-20) * size[0]) - predicted) <= 1


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
def test_every_optimizer_by_name_takes_steps():
    """All optimizers of optax, except those that need more than gradients. Under a constant force, none goes back."""
    assert {"sgd", "adam", "adamw", "lion", "sign_sgd", "rmsprop", "radam", "sm3"} <= set(named())
    for name in named():
        more = {ALSO_NEEDED[name]: 0} if name in ALSO_NEEDED else {}
        rate = "max_learning_rate" if name == "polyak_sgd" else "learning_rate"
        method = fc.Descent(name, 3, **{rate: 0.01}, coordinates="sample", **more)
        clock = np.asarray(method.step_times(jnp.float64))
        assert np.all(np.diff(clock) >= 0), name
        assert clock[-1] > 0, name
    assert fc.Descent("radam", 3, learning_rate=0.1).coordinates == "sample"
    assert {"lbfgs", "polyak_sgd", "noisy_sgd"} <= set(named())


# ---- bad input


def compare(optimizers, start: Any = "sphere", ts: Any = 9, **options):
    if isinstance(start, str):
        options = {"eps": [0.1], "seeds": 2} | options
    return lambda: fc.compare(MODEL, start, optimizers, ts, **options)


STATE = fc.State(H=jnp.ones((4, 6)), W=jnp.ones((3, 4)), b=jnp.zeros(3))
SGD = "sgd:learning_rate=0.05"
SLOW_AND_FAST: dict[Any, Any] = {"slow": optax.sgd(0.01), "fast": optax.sgd(0.05)}

CASES = {
    "no optimizer": (compare([]), ["optimizers is empty", "sgd:learning_rate"]),
    "not an optimizer": (compare({"gd": 0.1}), ["'gd'", "0.1", "fc.Descent"]),
    "an unknown name": (compare(["adm:learning_rate=0.1"]), ["'adm'", "did you mean 'adam'", "'sgd'", "'yogi'"]),
    "an unknown number": (compare(["sgd:learning_rat=0.1"]), ["'learning_rat'", "momentum", "mean 'learning_rate'"]),
    "a number that another has": (compare(["adam:learning_rate=0.1,momentum=0.9"]), ["adam", "'momentum'", "b1"]),
    "no learning rate": (compare(["sgd"]), ["sgd needs learning_rate"]),
    "a word for a number": (compare(["sgd:learning_rate=fast"]), ["learning_rate must be a number", "'fast'"]),
    "a number without a value": (compare(["sgd:learning_rate"]), ["'learning_rate'", "name=value"]),
    "a number given twice": (compare(["sgd:momentum=0,momentum=1"]), ["'momentum=1' is given twice"]),
    "a step size of zero": (compare(["sgd:learning_rate=0"]), ["learning_rate must be positive", "0"]),
    "a negative step size on the axis": (compare(["sgd"], learning_rate=[0.1, -0.1]), ["learning_rate", "-0.1"]),
    "a ready optimizer uphill": (compare({"gd": optax.sgd(-0.1)}, ts=[1.0]), ["'gd'", "positive"]),
    "noise without a key": (compare(["noisy_sgd:learning_rate=0.1"]), ["noisy_sgd", "key=0"]),
    "rates of W and H that differ": (
        compare({"x": optax.multi_transform(SLOW_AND_FAST, {"W": "slow", "H": "fast", "b": "fast"})}),
        ["'x'", "clock="],
    ),
    "labels of another tree": (
        compare({"x": optax.multi_transform(SLOW_AND_FAST, ["slow", "fast"])}),
        ["optax.partition", "'W', 'H', 'b'"],
    ),
    "a schedule on the axis": (
        compare(["sgd"], learning_rate=[optax.constant_schedule(0.1)]),
        ["learning_rate", "run"],
    ),
    "a method with an open number": (compare({"a": fc.Descent("adam", 9)}), ["adam needs learning_rate", "axis"]),
    "class means with Adam": (
        lambda: compare({"a": fc.Descent("adam", 9, learning_rate=0.1, coordinates="class-mean")})(),
        ["adam", "does not commute with rotations", 'coordinates="sample"'],
    ),
    "two of one name": (compare([SGD, SGD]), [SGD, "two methods", "dictionary"]),
    "the flow's name": (compare({"flow": SGD}), ["'flow'", "two methods"]),
    "no steps": (compare([SGD], num_steps=0), ["num_steps must be a positive integer", "0"]),
    "too few steps": (compare([SGD], ts=[0.0, 5.0], num_steps=99), ["100 steps", "num_steps is 99", "raise"]),
    "too few steps of a method": (
        compare({"gd": fc.Descent("sgd", 99, learning_rate=0.05)}, ts=[0.0, 5.0]),
        ["'gd'", "100 steps", "num_steps is 99"],
    ),
    "too many steps": (compare(["sgd:learning_rate=1e-9"], ts=[5.0]), ["more than 10000000", "raise its step size"]),
    "an axis that all have set": (compare([SGD], learning_rate=[0.1, 0.2]), ["axis 'learning_rate'", "leaves open"]),
    "an unknown axis": (
        compare({"gd": "sgd:learning_rate=0.1"}, momentun=[0.1]),
        ["axis 'momentun'", "mean 'momentum'"],
    ),
    "an axis of shapes": (compare([SGD], num_classes=[3, 4]), ["axis 'num_classes'"]),
    "a negative decay": (compare([SGD], weight_decay=[0.0, -1.0]), ["weight_decay", "-1.0"]),
    "an axis with a value twice": (compare(["sgd"], learning_rate=[0.1, 0.1]), ["learning_rate", "twice"]),
    "no eps": (lambda: fc.compare(MODEL, "sphere", [SGD]), ["eps is missing"]),
    "eps of a state": (compare([SGD], STATE, eps=[0.1]), ["eps and seeds", "leave them out"]),
    "an unknown start": (compare([SGD], "cube"), ["'cube'", "sphere"]),
    "a state of another model": (compare([SGD], fc.State(H=STATE.H, W=STATE.W.T, b=STATE.b)), ["state.W", "(4, 3)"]),
    "two axes of states": (compare([SGD], jax.tree.map(lambda x: x[None, None], STATE)), ["(1, 1)", "flatten"]),
    "times that decrease": (compare([SGD], ts=[2.0, 1.0]), ["ts", "increase"]),
    "time zero alone": (compare([SGD], ts=[0.0]), ["ts holds only 0"]),
    "no times": (compare([SGD], ts=0), ["ts", "positive integer"]),
    "an unknown metric": (compare([SGD], metrics=["snc4"]), ["'snc4'", "snc1"]),
    "descent for the flow": (compare([SGD], flow=SGD), ["flow must be a flow", "fc.ModifiedFlow"]),
    "a flow without its numbers": (compare(["modified-flow"]), ["modified-flow", "learning_rate"]),
    "a flow with unknown numbers": (compare([SGD], flow="flow:speed=3"), ["flow:speed=3", "speed"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_told_before_any_run(name, monkeypatch):
    call, words = CASES[name]
    monkeypatch.setattr("flowcollapse.comparison.compare._outcome", lambda *_: pytest.fail("the runs began"))
    with pytest.raises(fc.UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message

"""Invalid input: each case raises a `UsageError` of one line that names the argument, the value and the cure."""

import json
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowcollapse as fc

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 4}
MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
START = fc.State(H=jnp.ones((4, 9)), W=jnp.ones((3, 4)), b=jnp.zeros(3))
FLOW = fc.Flow()
KEY = jax.random.key(0)


def ufm(**options):
    return lambda: fc.UFM(**(SIZES | options))


def simulate(start: fc.State = START, method=FLOW, ts=None, model=MODEL, **options):
    return lambda: fc.simulate(model, start, method, **({} if ts is None else {"ts": ts}), **options)


CASES = {
    # The model: the name and the value of the wrong argument, and the cure.
    "no classes": (ufm(num_classes=0), ["num_classes", "0", "at least 2"]),
    "one class": (ufm(num_classes=1), ["num_classes", "1", "at least 2"]),
    "no features": (ufm(num_features=0), ["num_features", "0", "positive integer"]),
    "negative features": (ufm(num_features=-3), ["num_features", "-3", "positive integer"]),
    "a truth value as a size": (ufm(num_features=True), ["num_features", "True", "integer"]),
    "no samples": (ufm(samples_per_class=0), ["samples_per_class", "0", "positive"]),
    "an empty class": (ufm(samples_per_class=(2, 0, 1)), ["samples_per_class", "(2, 0, 1)", "positive"]),
    "too few counts": (ufm(samples_per_class=(2, 1)), ["samples_per_class", "2 counts", "3", "one count a class"]),
    "negative decay": (ufm(weight_decay=-0.1), ["weight_decay", "-0.1", "not be negative"]),
    "one negative decay": (ufm(weight_decay=(0.1, -0.1, 0.0)), ["weight_decay", "-0.1", "not be negative"]),
    "NaN decay": (ufm(weight_decay=float("nan")), ["weight_decay", "nan"]),
    "two decays": (ufm(weight_decay=(0.1, 0.2)), ["weight_decay", "(0.1, 0.2)", "three, for W, H and b"]),
    "unknown loss": (ufm(loss="hinge"), ["loss", "'hinge'", "'squared'"]),
    # Starts.
    "eps of zero": (lambda: fc.initial.sphere(MODEL, eps=0.0, key=KEY), ["eps", "0.0", "positive"]),
    "negative eps": (lambda: fc.initial.on_subspace(MODEL, eps=-1.0, key=KEY), ["eps", "-1.0", "positive"]),
    "NaN eps": (lambda: fc.initial.balanced(MODEL, eps=float("nan"), key=KEY), ["eps", "nan", "positive"]),
    "infinite eps": (lambda: fc.initial.sphere(MODEL, eps=float("inf"), key=KEY), ["eps", "inf", "positive"]),
    "several eps": (lambda: fc.initial.sphere(MODEL, eps=jnp.ones(2), key=KEY), ["eps", "positive number"]),
    "S of unequal counts": (
        lambda: fc.initial.on_subspace(ufm(samples_per_class=(1, 2, 3))(), eps=1.0, key=KEY),
        ["samples_per_class", "(1, 2, 3)", "equal counts", "use"],
    ),
    "collapse without room": (
        lambda: fc.initial.collapsed(ufm(num_features=1)(), key=KEY),
        ["num_features", "1", "at least 2", "raise"],
    ),
    # States that do not fit: the array, its shape, and the shape it needs.
    "H of another width": (
        simulate(fc.State(H=jnp.ones((4, 8)), W=START.W, b=START.b)),
        ["state.H", "(4, 8)", "(4, 9)", "reshape"],
    ),
    "W transposed": (
        simulate(fc.State(H=START.H, W=START.W.T, b=START.b)),
        ["state.W", "(4, 3)", "(3, 4)", "reshape"],
    ),
    "b too short": (
        lambda: fc.risk(MODEL, fc.State(H=START.H, W=START.W, b=jnp.zeros(2))),
        ["state.b", "(2,)", "(3,)", "reshape"],
    ),
    "features of another model": (
        lambda: fc.metrics.evaluate(ufm(num_features=5)(), START),
        ["state.W", "(3, 4)", "(3, 5)", "num_features=5"],
    ),
    "a batch without vmap": (
        simulate(jax.tree.map(lambda x: jnp.stack([x, x]), START)),
        ["start", "(2,)", "jax.vmap"],
    ),
    "a bias that the model has not": (
        simulate(fc.State(H=START.H, W=START.W, b=jnp.ones(3)), model=ufm(use_bias=False)()),
        ["start.b", "not zero", "use_bias=True"],
    ),
    "class means of a state of samples": (lambda: START.B, ["state.B", "fc.to_class_means"]),
    "a state reduced for other counts": (
        lambda: fc.risk(MODEL, fc.to_class_means(ufm(samples_per_class=(2, 3, 4))(), START)),
        ["samples_per_class", "(2, 3, 4)", "(3, 3, 3)", "use the model"],
    ),
    # The flow.
    "rtol of zero": (lambda: fc.Flow(rtol=0.0), ["rtol", "0.0", "positive"]),
    "negative rtol": (lambda: fc.Flow(rtol=-1e-6), ["rtol", "-1e-06", "positive"]),
    "NaN atol": (lambda: fc.Flow(atol=float("nan")), ["atol", "nan", "positive"]),
    "t1 of zero": (lambda: fc.Flow(t1=0), ["t1", "0", "positive"]),
    "infinite t1": (lambda: fc.Flow(t1=float("inf")), ["t1", "inf", "finite"]),
    "no steps": (lambda: fc.Flow(max_steps=0), ["max_steps", "0", "positive integer"]),
    "unknown solver": (
        lambda: fc.Flow("rk4"),
        ["solver", "'rk4'", "'exponential'", "'tsit5'", "'dopri5'", "'dopri8'", "'kvaerno5'", "'kencarp5'"],
    ),
    "unknown coordinates": (lambda: fc.Flow(coordinates="polar"), ["coordinates", "'polar'", "'class-mean'"]),
    # Times of the saves.
    "decreasing ts": (simulate(ts=[0.0, 2.0, 1.0]), ["ts", "[0. 2. 1.]", "increase"]),
    "repeated ts": (simulate(ts=[0.0, 1.0, 1.0]), ["ts", "[0. 1. 1.]", "increase"]),
    "ts before 0": (simulate(ts=[-1.0, 1.0]), ["ts", "-1.0", "before 0"]),
    "NaN in ts": (simulate(ts=[0.0, float("nan")]), ["ts", "nan", "finite"]),
    "no ts": (simulate(ts=[]), ["ts", "(0,)", "increasing"]),
    "ts after t1": (simulate(method=fc.Flow(t1=1.0), ts=[0.0, 2.0]), ["ts", "2.0", "t1=1.0", "raise t1"]),
    # Descent.
    "no descent steps": (lambda: fc.Descent("sgd", 0, learning_rate=0.1), ["num_steps", "0", "positive integer"]),
    "learning rate of zero": (lambda: fc.Descent("sgd", 5, learning_rate=0), ["learning_rate", "0", "positive"]),
    "no learning rate": (lambda: fc.simulate(MODEL, START, fc.Descent("sgd", 5)), ["sgd", "learning_rate", "axis"]),
    "a number it does not take": (lambda: fc.Descent("sgd", 5, learning_rate=0.1, speed=3.0), ["sgd", "speed"]),
    "unknown optimizer": (lambda: fc.Descent("newton", 5, learning_rate=0.1), ["optimizer", "'newton'", "'sgd'"]),
    "numbers for a ready optimizer": (
        lambda: fc.Descent(optax.sgd(0.1), 5, learning_rate=0.2),
        ["learning_rate", "ready optimizer", "name"],
    ),
    "class means with Adam": (
        lambda: fc.Descent("adam", 5, learning_rate=0.1, coordinates="class-mean"),
        ["adam", "rotations", 'coordinates="class-mean"', 'coordinates="sample"'],
    ),
    # Metrics.
    "unknown metric": (simulate(metrics=("snc4",)), ["metric", "'snc4'", "snc1"]),
    "a metric of equal counts": (
        lambda: fc.metrics.evaluate(ufm(samples_per_class=(2, 3, 4))(), START, ["snc1"]),
        ["metric", "'snc1'", "equal counts", "(2, 3, 4)"],
    ),
    "a metric of single samples": (
        lambda: fc.metrics.evaluate(MODEL, fc.initial.sphere(MODEL, eps=1.0, key=KEY, reduced=True), ["nc4"]),
        ["metric", "'nc4'", "single samples", "reduced=False"],
    ),
}


def check(error: BaseException, words: list[str]) -> None:
    message = str(error)
    assert "\n" not in message, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", CASES)
def test_bad_value(name):
    call, words = CASES[name]
    with pytest.raises(fc.UsageError) as caught:
        call()
    check(caught.value, words)


@pytest.mark.usefixtures("thirty_two_bits")
def test_float64_while_jax_runs_in_32_bits():
    """Such arrays come from NumPy; JAX alone would round them silently."""
    for name, shape in (("H", (4, 9)), ("W", (3, 4)), ("b", (3,))):
        arrays: dict[str, Any] = {"H": jnp.ones((4, 9)), "W": jnp.ones((3, 4)), "b": jnp.zeros(3)}
        arrays[name] = np.ones(shape)
        with pytest.raises(fc.UsageError) as caught:
            fc.simulate(MODEL, fc.State(**arrays), FLOW)
        check(caught.value, [f"start.{name}", "float64", "32 bits", "fc.enable_x64()", "float32"])


def test_bad_values_are_found_before_anything_runs_and_after_jit_is_left_alone():
    """Inside jit, values are unknown and not checked, but shapes are known and checked."""
    with pytest.raises(fc.UsageError, match=r"state\.H"):
        jax.jit(lambda H: fc.risk(MODEL, fc.State(H=H, W=START.W, b=START.b)))(jnp.ones((4, 8)))
    state = jax.jit(lambda eps: fc.initial.sphere(MODEL, eps=eps, key=KEY))(-1.0)
    assert float(jnp.linalg.norm(state.W)) == pytest.approx(1.0)


# The shape checks of these tests would refuse wrong types before the package sees them, so a process without them runs.
TYPES = {
    "num_classes=3.0": (
        "fc.UFM(num_classes=3.0, samples_per_class=3, num_features=4)",
        ["num_classes", "3.0", "integer"],
    ),
    "num_classes='3'": (
        "fc.UFM(num_classes='3', samples_per_class=3, num_features=4)",
        ["num_classes", "'3'", "integer"],
    ),
    "num_features=None": (
        "fc.UFM(num_classes=3, samples_per_class=3, num_features=None)",
        ["num_features", "None", "integer"],
    ),
    "samples_per_class=2.5": (
        "fc.UFM(num_classes=3, samples_per_class=2.5, num_features=4)",
        ["samples_per_class", "2.5", "positive integer"],
    ),
    "samples_per_class=(3, 3.0, 3)": (
        "fc.UFM(num_classes=3, samples_per_class=(3, 3.0, 3), num_features=4)",
        ["samples_per_class", "(3, 3.0, 3)", "positive integers"],
    ),
    "weight_decay='none'": (
        "fc.UFM(num_classes=3, samples_per_class=3, num_features=4, weight_decay='none')",
        ["weight_decay", "'none'", "number"],
    ),
    "eps='small'": ("fc.initial.sphere(model, eps='small', key=key)", ["eps", "'small'", "positive number"]),
    "rtol='small'": ("fc.Flow(rtol='small')", ["rtol", "'small'", "positive"]),
    "max_steps=0.5": ("fc.Flow(max_steps=0.5)", ["max_steps", "0.5", "positive integer"]),
    "solver=5": ("fc.Flow(5)", ["solver", "5", "name"]),
    "max_steps='many'": ("fc.Flow(max_steps='many')", ["max_steps", "'many'", "positive integer"]),
    "num_steps=2.0": ("fc.Descent('sgd', 2.0, learning_rate=0.1)", ["num_steps", "2.0", "positive integer"]),
    "optimizer=None": ("fc.Descent(None, 2)", ["optimizer", "None", "'sgd'"]),
    "learning_rate='fast'": ("fc.Descent('sgd', 2, learning_rate='fast')", ["learning_rate", "'fast'", "positive"]),
    "start of arrays": ("fc.simulate(model, (start.H, start.W, start.b), fc.Flow())", ["start", "tuple", "fc.State"]),
    "method='flow'": ("fc.simulate(model, start, 'flow')", ["method", "'flow'", "fc.Flow"]),
    "model of sizes": ("fc.simulate((3, 3, 4), start, fc.Flow())", ["model", "tuple", "fc.UFM"]),
    "H of words": ("fc.risk(model, fc.State(H='H', W=start.W, b=start.b))", ["state.H", "array"]),
    "lists": (
        "fc.simulate(model, fc.State(H=[[1.0]], W=start.W, b=start.b), fc.Flow())",
        ["state.H", "(1, 1)", "(4, 9)"],
    ),
    "a sweep over a word": ("fc.sweep(model, fc.Flow(), eps='small')", ["eps", "'small'", "list of numbers"]),
    "nested values of an axis": (
        "fc.sweep(model, fc.Flow(), eps=[[1.0, 2.0]])",
        ["eps", "[1.0, 2.0]", "list of numbers"],
    ),
    "no values of an axis": (
        "fc.sweep(model, fc.Flow(), eps=None)",
        ["eps", "None", "list of numbers"],
    ),
    "truth values on an axis": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], rtol=[True])",
        ["rtol", "True", "list of numbers"],
    ),
    "schedules on an axis": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], rtol=[lambda step: 0.1])",
        ["rtol", "once for each schedule"],
    ),
    "a schedule as an axis": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], rtol=lambda step: 0.1)",
        ["rtol", "once for each schedule"],
    ),
    "seeds as text": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], seeds='256')",
        ["seeds", "'256'", "integers", "how many"],
    ),
    "half a seed": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], seeds=2.5)",
        ["seeds", "2.5", "integers"],
    ),
    "seeds that are floats": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], seeds=[0.0, 1.0])",
        ["seeds", "0.0", "integers"],
    ),
    "a truth value as seeds": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], seeds=True)",
        ["seeds", "True", "integers"],
    ),
    "a state as the start of a sweep": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], start=start)",
        ["start", "State", "'sphere'", "fc.compare"],
    ),
    "no start of a sweep": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], start=None)",
        ["start", "NoneType", "'sphere'"],
    ),
    "a function as the start of a sweep": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], start=fc.initial.sphere)",
        ["start", "function", "'sphere'"],
    ),
    "times of a sweep as text": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], ts='all')",
        ["ts", "'all'", "increasing"],
    ),
    "times of a sweep that are no numbers": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], ts=[{}, []])",
        ["ts", "[{}, []]", "increasing"],
    ),
    "half a time of a sweep": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], ts=2.5)",
        ["ts", "2.5", "increasing"],
    ),
    "devices as text": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], devices='cpu')",
        ["devices", "'cpu'", "positive integer"],
    ),
    "half a device": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], devices=1.5)",
        ["devices", "1.5", "positive integer"],
    ),
    "a number as store": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], store=3)",
        ["store", "3", "path"],
    ),
    "half a lane": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], width=1.5)",
        ["width", "1.5", "positive integer"],
    ),
    "lanes per task as text": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], lanes_per_task='8')",
        ["lanes_per_task", "'8'", "positive integer"],
    ),
    "a word for a flag": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], keep_final='yes')",
        ["keep_final", "'yes'", "True or False"],
    ),
    "a number as scheduler": (
        "fc.sweep(model, fc.Flow(), eps=[0.1], scheduler=8786)",
        ["scheduler", "8786", "address"],
    ),
    "a sweep of no model": ("fc.sweep(None, fc.Flow(), eps=[0.1])", ["model", "None", "fc.UFM"]),
    "a sweep by a word": ("fc.sweep(model, 'flow', eps=[0.1])", ["method", "'flow'", "fc.Flow"]),
    "ts in two dimensions": ("fc.simulate(model, start, fc.Flow(), [[0.0, 1.0]])", ["ts", "(1, 2)", "increasing"]),
    "ts='all'": ("fc.simulate(model, start, fc.Flow(), 'all')", ["ts", "'all'", "increasing"]),
}


@pytest.fixture(scope="module")
def refused() -> dict[str, list[str]]:
    """The class and the message of the error that each of `TYPES` raises."""
    program = """
        import json, sys
        import jax
        import flowcollapse as fc
        fc.enable_x64()
        model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
        start = fc.initial.collapsed(model, key=jax.random.key(0))
        names = {"fc": fc, "model": model, "start": start, "key": jax.random.key(0)}
        results = {}
        for name, expression in json.load(sys.stdin).items():
            try:
                eval(expression, dict(names))
            except Exception as error:
                results[name] = [type(error).__name__, str(error)]
        json.dump(results, sys.stdout)
    """
    expressions = {name: expression for name, (expression, _) in TYPES.items()}
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=json.dumps(expressions),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", TYPES)
def test_bad_type(refused, name):
    kind, message = refused[name]
    assert kind == "UsageError", message
    check(fc.UsageError(message), TYPES[name][1])

"""Programs for accelerators, which can be written without one: they stay on the device and keep their precision.

The laws that need a device are in `test_accelerator.py`.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import flowcollapse as fc
from flowcollapse._linalg import algebra
from flowcollapse.initial import STARTS
from flowcollapse.metrics.registry import available
from flowcollapse.programs import lanes_last

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 15}
MODEL = fc.UFM(**SIZES)
CROSS_ENTROPY = fc.UFM(**SIZES, loss="cross-entropy", weight_decay=0.01)

RUNS = {
    "flow": (MODEL, fc.Flow()),
    "slow approach": (fc.UFM(**SIZES, weight_decay=0.01), fc.Flow()),
    "Tsit5": (MODEL, fc.Flow("tsit5")),
    "Kvaerno5": (MODEL, fc.Flow("kvaerno5")),
    "logarithmic clock": (fc.UFM(**SIZES, loss="cross-entropy"), fc.Flow(clock="log", t1=10.0)),
    "descent": (MODEL, fc.Descent("sgd", 5, learning_rate=0.1)),
    "Adam": (MODEL, fc.Descent("adam", 5, learning_rate=0.1)),
    "modified flow": (MODEL, fc.ModifiedFlow(learning_rate=0.01)),
}

ON_HOST = r"callback|lapack|xla_ffi_python"
"""Calls that leave the device, or that only a CPU has."""

PLATFORMS = ("cuda", "tpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore::flowcollapse.PrecisionWarning"),
    pytest.mark.usefixtures("programs_apart"),
]


@pytest.fixture(autouse=True)
def traced_for_an_accelerator(monkeypatch):
    """Programs are traced as on a machine with a GPU, where the lanes of a batch come first."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lowered(function, *args, platform="cuda") -> str:
    """The program of a function for a platform, in StableHLO."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def run_of(name, dtype=None):
    """A run with all its default metrics, as a function of a key."""
    model, method = RUNS[name]

    def run(key):
        path = fc.simulate(model, fc.initial.sphere(model, 0.1, key=key, dtype=dtype), method, 3)
        return path.metrics, path.final, path.stats

    return run


def of_lanes(function):
    """The function of four lanes, as a function of a key."""
    return lambda key: jax.vmap(function)(jax.random.split(key, 4))


def coarse_products(text: str) -> list[str]:
    """The matrix products that an accelerator may round to fewer digits than the precision of their operands."""
    full = "precision = [HIGHEST, HIGHEST]"
    return [line for line in text.splitlines() if "dot_general" in line and full not in line]


# ---- runs


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_lowers_for_accelerators_and_stays_there(name, platform, key):
    text = lowered(run_of(name), key, platform=platform)
    assert "stablehlo.while" in text
    assert not re.findall(ON_HOST, text)


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["flow", "descent"])
def test_lanes_lower_too(name, platform, key):
    assert not re.findall(ON_HOST, lowered(of_lanes(run_of(name)), key, platform=platform))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_float32_has_no_arrays_in_float64(name, key):
    """Only scalars that are known before the run may be in float64: on a GPU more would be slow, and a TPU has none."""
    text = lowered(run_of(name, "float32"), key)
    assert "15xf32" in text
    assert re.findall(r"tensor<\d+x\d+[x\d]*xf64>", text) == []


# ---- precision: by default a GPU multiplies float32 with 10 bits of it, and a TPU with 7


@pytest.mark.parametrize("name", RUNS)
def test_lanes_multiply_in_full_precision(name, key):
    """A run in lanes is traced anew when `vmap` gets there, outside of the function that asked for the precision."""
    text = lowered(of_lanes(run_of(name, "float32")), key)
    assert "dot_general" in text
    assert coarse_products(text) == []


@pytest.mark.parametrize("name", ["flow", "descent"])
def test_derivatives_multiply_in_full_precision(name, key):
    model, method = RUNS[name]

    def risk(eps, key):
        start = fc.initial.sphere(model, eps, key=key, dtype="float32")
        return fc.risk(model, fc.simulate(model, start, method, 2, metrics=()).final)

    eps = jnp.float32(0.1)
    text = lowered(of_lanes(lambda key: jax.grad(risk)(eps, key)), key)
    assert coarse_products(text) == []


def start(draw):
    return lambda key: draw(MODEL, 0.1, key=key, dtype="float32")


def state(key, model=MODEL):
    return fc.initial.sphere(model, 1.0, key=key, dtype="float32")


def metrics(model):
    return lambda key: fc.metrics.evaluate(model, state(key), available(model), start=state(jax.random.fold_in(key, 1)))


FUNCTIONS = {
    **{f"start {name}": start(draw) for name, draw in STARTS.items()},
    "collapsed start": lambda key: fc.initial.collapsed(MODEL, key=key, dtype="float32"),
    "features of a reduced start": lambda key: fc.initial.sphere(MODEL, 0.1, key=key, reduced=True, dtype="float32").H,
    "features from class means": lambda key: fc.to_class_means(MODEL, state(key)).H,
    "metrics": metrics(MODEL),
    "metrics of cross-entropy": metrics(CROSS_ENTROPY),
    "risk and velocity": lambda key: (fc.risk(MODEL, state(key)), fc.velocity(MODEL, state(key))),
    "sharpness": lambda key: fc.sharpness(CROSS_ENTROPY, state(key)),
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_stays_on_the_device_in_full_precision(name, platform, key):
    text = lowered(of_lanes(FUNCTIONS[name]), key, platform=platform)
    assert not re.findall(ON_HOST, text)
    assert coarse_products(text) == []


def test_a_lane_function_keeps_its_precision_in_every_transformation():
    """The function asks for nothing; the law is that of `lanes_last`, under `vmap`, `grad` and both."""
    A, x = jnp.ones((4, 3, 5), jnp.float32), jnp.ones((4, 5, 2), jnp.float32)
    function = lanes_last(lambda A, x: jnp.sum(A @ x))
    for transformed in (jax.vmap(function), jax.grad(lambda A, x: jax.vmap(function)(A, x).sum())):
        text = lowered(transformed, A, x)
        assert "dot_general" in text
        assert coarse_products(text) == []


# ---- factorisations

FACTORISATIONS = {
    "qr": lambda A: algebra.qr(A),
    "svd": lambda A: algebra.svd(A),
    "eigh": lambda A: algebra.eigh(A.T @ A),
    "lu": lambda A: algebra.lu_factor(A.T @ A),
}


@pytest.mark.parametrize("name", FACTORISATIONS)
def test_a_gpu_factorises_all_lanes_in_one_call(name):
    """On a CPU they go one by one (`tests/sweeps/test_engine.py`), which would leave a GPU idle."""
    matrices = jnp.ones((12, 7, 5))
    text = lowered(jax.vmap(FACTORISATIONS[name]), matrices)
    calls = [line for line in text.splitlines() if re.search(r"custom_call @cu(solver|blas)", line)]
    assert calls
    assert all("tensor<12x" in line.partition(" : ")[2] for line in calls)
    assert not re.findall(ON_HOST + "|stablehlo.while", text)

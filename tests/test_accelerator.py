"""An accelerator gives the numbers of the CPU beside it: flows, descents and lanes, in float64 and float32.

These tests need a card: `pytest -m gpu`. They are skipped on machines without one; `benchmarks/gpu.py --only
correctness` compares every start, metric and method there.
"""

from typing import Any

import jax
import numpy as np
import pytest

import flowcollapse as fc

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 15}
MODEL = fc.UFM(**SIZES)
PRECISIONS = ("float64", "float32")
STEPS = 200

FLOW = 8.0
"""By how many tolerances flows may differ: one device may reject a step that the other just accepts."""

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::flowcollapse.PrecisionWarning")]


@pytest.fixture(scope="module")
def card():
    """The accelerator, which must be JAX's first device."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        pytest.skip("JAX sees no accelerator")
    return device


@pytest.fixture(scope="module")
def cpu(card):
    return jax.devices("cpu")[0]


def eps_of(precision: str) -> float:
    return float(np.finfo(precision).eps)


def start_on(device, precision, key):
    """The same start for every device, drawn on none of them."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    shapes = {"H": (15, 9), "W": (3, 15), "b": (3,)}
    arrays = {name: (0.1 / np.prod(shape) ** 0.5 * rng.normal(size=shape)) for name, shape in shapes.items()}
    return fc.State(**{name: jax.device_put(x.astype(precision), device) for name, x in arrays.items()})


def assert_same(found: Any, expected: Any, rtol: float):
    """Equal up to a tolerance relative to the largest entry of each array."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.max(np.abs(other)))


def run(method, device, precision, key):
    """The end, the curves and the place of a run on a device."""
    with jax.default_device(device):
        path = fc.simulate(MODEL, start_on(device, precision, key), method, 9, metrics=("risk", "snc1", "nc3"))
    assert path.end.W.devices() == {device}
    return path.end, path.metrics


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("solver", ["exponential", "tsit5"])
def test_a_flow_on_the_card_is_the_flow_on_the_cpu(card, cpu, precision, solver, key):
    """Rounding may change the steps, so the runs agree to a few tolerances of the solver."""
    rtol = eps_of(precision) ** (2 / 3)
    method = fc.Flow(solver, rtol=rtol)
    found, expected = (run(method, device, precision, key) for device in (card, cpu))
    assert_same(found, expected, FLOW * rtol)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("adam", 0.01)])
def test_a_descent_on_the_card_is_the_descent_on_the_cpu(card, cpu, precision, optimizer, rate, key):
    """The steps are the same, so only their roundings differ, which add up and grow while the risk falls."""
    method = fc.Descent(optimizer, STEPS, learning_rate=rate)
    found, expected = (run(method, device, precision, key) for device in (card, cpu))
    assert_same(found, expected, 40 * STEPS * eps_of(precision))


def sweeps(method, card, cpu) -> tuple[Any, Any]:
    """The same sweep on both devices."""
    kept: dict[str, Any] = {"ts": 5, "metrics": ("risk", "nc3"), "keep_final": True, "progress": False}

    def on(device):
        with jax.default_device(device):
            return fc.sweep(MODEL, method, eps=[1.0, 0.1], seeds=8, devices=[device], **kept)

    return on(card), on(cpu)


def assert_same_sweeps(found, expected, *, rtol):
    assert found["verdict"].equals(expected["verdict"])
    for name in ("H", "W", "b", "risk", "nc3"):
        assert_same(found[name].values, expected[name].values, rtol)


def test_a_sweep_on_the_card_is_the_sweep_on_the_cpu(card, cpu):
    rtol, descent = 1e-8, fc.Descent("sgd", STEPS, learning_rate=0.05)
    assert_same_sweeps(*sweeps(fc.Flow(rtol=rtol), card, cpu), rtol=FLOW * rtol)
    assert_same_sweeps(*sweeps(descent, card, cpu), rtol=40 * STEPS * eps_of("float64"))


def test_a_sweep_in_float32_on_the_card_is_that_on_the_cpu(card, cpu, thirty_two_bits):
    rtol = eps_of("float32") ** (2 / 3)
    assert_same_sweeps(*sweeps(fc.Flow(rtol=rtol), card, cpu), rtol=FLOW * rtol)


def test_a_block_of_large_problems_fits_into_the_memory(card):
    """A lane takes a sixth of a gigabyte, so that 4,096 of them would fit into no card."""
    model = fc.UFM(num_classes=10, samples_per_class=500, num_features=512)
    grid = fc.sweep(model, fc.Flow(rtol=1e-3), eps=[0.1], seeds=64, ts=1, metrics=(), devices=[card], progress=False)
    assert set(grid["verdict"].values.ravel().tolist()) == {int(fc.Verdict.plateau)}

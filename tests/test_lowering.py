"""Programs for accelerators, which can be written without one: every method and metric lowers for GPUs and TPUs.

The laws that need a device are those of the other tests, run there.
"""

import re
from typing import Any

import jax
import pytest

import flowcollapse as fc

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 3, "num_features": 15}

RUNS = {
    "flow": (fc.UFM(**SIZES), fc.Flow()),
    "slow approach": (fc.UFM(**SIZES, weight_decay=0.01), fc.Flow()),
    "Tsit5": (fc.UFM(**SIZES), fc.Flow("tsit5")),
    "logarithmic clock": (fc.UFM(**SIZES, loss="cross-entropy"), fc.Flow(clock="log", t1=10.0)),
    "descent": (fc.UFM(**SIZES), fc.Descent("sgd", 5, learning_rate=0.1)),
    "Adam": (fc.UFM(**SIZES), fc.Descent("adam", 5, learning_rate=0.1)),
    "modified flow": (fc.UFM(**SIZES), fc.ModifiedFlow(learning_rate=0.01)),
}

ON_HOST = r"callback|lapack|xla_ffi_python"
"""Calls that leave the device, or that only a CPU has."""


def lowered(name, platform, dtype=None, lanes=False):
    """The program of a run with all its default metrics, in StableHLO."""
    model, method = RUNS[name]

    def run(key):
        path = fc.simulate(model, fc.initial.sphere(model, 0.1, key=key, dtype=dtype), method, 3)
        return path.metrics, path.final, path.stats

    key = jax.random.key(0)
    program = jax.jit(jax.vmap(run)).trace(jax.random.split(key, 4)) if lanes else jax.jit(run).trace(key)
    return program.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_lowers_for_accelerators_and_stays_there(name, platform):
    text = lowered(name, platform)
    assert "stablehlo.while" in text
    assert not re.findall(ON_HOST, text)


@pytest.mark.parametrize("name", ["flow", "descent"])
def test_lanes_lower_too(name):
    assert not re.findall(ON_HOST, lowered(name, "cuda", lanes=True))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore::flowcollapse.PrecisionWarning")
def test_a_run_in_float32_has_no_arrays_in_float64(name):
    """Only scalars that are known before the run may be in float64: on a GPU more would be slow, and a TPU has none."""
    text = lowered(name, "cuda", "float32")
    assert "15xf32" in text
    assert re.findall(r"tensor<\d+x\d+[x\d]*xf64>", text) == []

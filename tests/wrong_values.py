"""Values of every kind by name, which every argument must handle, and the model and states they are made from."""

import functools
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from hypothesis import strategies as st

import flowcollapse as fc

fc.enable_x64()
KEY = jax.random.key(0)
SIZES = {"num_classes": 3, "samples_per_class": 3, "num_features": 4}
MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
START = fc.initial.sphere(MODEL, 0.1, key=KEY)
ON_S = fc.initial.on_subspace(MODEL, 0.1, key=KEY)
NO_BIAS = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, use_bias=False)
LOGITS = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, weight_decay=0.1, loss="cross-entropy")
SEPARABLE = fc.UFM(num_classes=3, samples_per_class=3, num_features=4, loss="cross-entropy")
NARROW = fc.UFM(num_classes=3, samples_per_class=3, num_features=2, loss="cross-entropy", use_bias=False)
STEPPED = fc.UFM(num_classes=2, samples_per_class=(4, 1), num_features=2, use_bias=False)


def aligned() -> fc.State:
    """A state of `STEPPED` with `B = W^T`."""
    W = np.array([[0.1, 0.0], [0.05, 0.1]])
    return fc.State(H=np.repeat(W.T / np.array([2.0, 1.0]), [4, 1], axis=1), W=W)


def second_phase() -> dict[str, Any]:
    W = 2**-0.25 * np.array([[1.0, 0.3], [-1.0, 0.3]])
    H = 2**-0.75 * np.array([[1.0, 1.0, -1.0, -1.0], [0.1, -0.1, 0.1, -0.1]])
    model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
    return {"model": model, "start": fc.State(H=H, W=W, b=np.full(2, 0.5)), "ts": [0.0, 1.0], "rtol": 1e-6}


class Stranger:
    """An object that no library knows."""

    def __repr__(self) -> str:
        return "a stranger"


KINDS: dict[str, Callable[[], Any]] = {
    **{repr(value): (lambda value=value: value) for value in (
        None, True, False, 0, 1, -1, 3, 10**30, -(10**30), 0.0, -1.0, 0.5, 2.5, 1e300, float("nan"), float("inf"),
        1 + 2j, "", "abc", "a\0b", "snc1\n", b"x", (), (1,), (1, 2, 3), (0.5, "a"), [], [1], [1.0, "a"], [[1, 2], [3]],
        [[0.1], [0.2]], [None], [True], [float("nan")], [-1.0], [[]], ["risk", 3], {}, {"a": 1}, {1: 2}, {"sgd": None},
        range(3), slice(3), ..., NotImplemented, Decimal("0.1"), Path("x"), 1e-30, "1", "0.1",
    )},
    "set()": set,
    "{0.5}": lambda: {0.5},
    "object()": object,
    "stranger": Stranger,
    "a class": lambda: int,
    "a module": lambda: json,
    "a builtin": lambda: len,
    "a lambda": lambda: lambda *args, **options: None,
    "a generator": lambda: (x for x in (0.5, 1.0)),
    "an error": lambda: ValueError("x"),
    "np.zeros((2, 2))": lambda: np.zeros((2, 2)),
    "np.zeros(0)": lambda: np.zeros(0),
    "np.ones((3, 4), int)": lambda: np.ones((3, 4), int),
    "np text": lambda: np.array(["a", "b"]),
    "np objects": lambda: np.array([object(), None]),
    "np.int64(2)": lambda: np.int64(2),
    "np.int64(-2)": lambda: np.int64(-2),
    "np.float32(0.1)": lambda: np.float32(0.1),
    "np.bool_(True)": lambda: np.bool_(True),
    "np.array(1)": lambda: np.array(1),
    "np.array(0.1)": lambda: np.array(0.1),
    "np.array([0.1])": lambda: np.array([0.1]),
    "np complex": lambda: np.ones((3, 4), complex),
    "np date": lambda: np.datetime64("2026-01-01"),
    "jnp.ones(3)": lambda: jnp.ones(3),
    "jnp.array(0.1)": lambda: jnp.array(0.1),
    "jnp.array(2)": lambda: jnp.array(2),
    "jnp bool": lambda: jnp.ones(3, bool),
    "a key": lambda: KEY,
    "keys": functools.cache(lambda: jax.random.split(KEY, 2)),
    "a model": lambda: MODEL,
    "another model": functools.cache(
        lambda: fc.UFM(num_classes=2, samples_per_class=(1, 2), num_features=1, weight_decay=0.1)
    ),
    "the class of models": lambda: fc.UFM,
    "a state": lambda: START,
    "states": functools.cache(lambda: jax.tree.map(lambda x: jnp.stack([x, x]), START)),
    "class means": functools.cache(lambda: fc.to_class_means(MODEL, START)),
    "drawn class means": functools.cache(lambda: fc.initial.sphere(MODEL, 0.1, key=KEY, reduced=True)),
    "a large state": functools.cache(lambda: fc.initial.sphere(MODEL, 1e3, key=KEY)),
    "a state of NaN": functools.cache(lambda: jax.tree.map(lambda x: x * jnp.nan, START)),
    "a state of integers": functools.cache(lambda: fc.State(H=np.ones((4, 9), int), W=np.ones((3, 4), int))),
    "a state of numbers": lambda: fc.State(H=1, W=2, b=3),
    "a state of lists": lambda: fc.State(H=[1.0], W=[2.0], b=[3.0]),
    "a method": functools.cache(lambda: fc.Flow(max_steps=2)),
    "the class of flows": lambda: fc.Flow,
    "a dataset": lambda: xr.Dataset({"snc1": ("x", [1.0])}),
    "an empty dataset": xr.Dataset,
    "a DataArray": lambda: xr.DataArray([1.0, 2.0]),
}  # fmt: skip

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(max_size=3)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)

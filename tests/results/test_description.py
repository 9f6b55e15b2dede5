"""Descriptions: equal exactly if results are equal, readable as JSON, and refused for objects without a name."""

import dataclasses
import functools
import json
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

import flowcollapse as fc
from flowcollapse.results.description import described, options, refused


class Halving(eqx.Module):
    """A schedule that its fields describe completely."""

    first: float
    every: int

    def __call__(self, count):
        return self.first * 0.5 ** (count / self.every)


@dataclasses.dataclass(frozen=True)
class Plain:
    values: Any


def kvaerno(**root_finder: Any):
    numbers: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-6} | root_finder
    return dfx.Kvaerno3(root_finder=dfx.VeryChord(**numbers))


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "the solver in a solver": (dfx.HalfSolver(dfx.Euler()), dfx.HalfSolver(dfx.Tsit5())),
    "a solver and its twin of ours": (dfx.Tsit5(), fc.Flow("tsit5").solver),
    "a root finder's tolerance": (kvaerno(), kvaerno(rtol=1e-4)),
    "... in its last digit": (kvaerno(), kvaerno(rtol=float(np.nextafter(1e-3, 1)))),
    "... in its precision": (kvaerno(rtol=np.float32(0.5)), kvaerno(rtol=np.float64(0.5))),
    "a root finder's linear solver": (kvaerno(linear_solver=lx.LU()), kvaerno(linear_solver=lx.QR())),
    "steps of a root finder": (dfx.Kvaerno3(root_find_max_steps=5), dfx.Kvaerno3(root_find_max_steps=6)),
    "no root finder of one's own": (dfx.Kvaerno3(), kvaerno()),
    "numbers of a schedule": (Halving(0.1, 10), Halving(0.1, 11)),
    "arrays": (Plain(np.arange(3.0)), Plain(np.array([0.0, 1.0, 2.0 + 5e-16]))),
    "arrays of other shapes": (Plain(np.zeros((1, 2))), Plain(np.zeros(2))),
    "arrays of other precision": (Plain(jnp.zeros(2)), Plain(jnp.zeros(2, jnp.float32))),
    "arguments of a function": (functools.partial(optax.sgd, nesterov=True), functools.partial(optax.sgd)),
    "functions of one name": (optax.adam, optax.contrib.muon),
    "a text and a function": (optax.adam, "optax.adam"),
    "NaN and its name": (float("nan"), "nan"),
    "NaN and infinity": (Plain(float("nan")), Plain(float("inf"))),
    "a list and a mapping": (Plain({"a": [1, 2]}), Plain({"a": [2, 1]})),
    "random keys": (jax.random.key(0), jax.random.key(1)),
    "types": (jnp.float32, jnp.float64),
}


def assert_told_apart(describe, one, other) -> None:
    """The law: two objects that may give different results have different descriptions, also as text."""
    assert json.dumps(describe(one), allow_nan=False) != json.dumps(describe(other), allow_nan=False)


def exactly(value):
    return described(value, "value", refused)


@pytest.mark.parametrize("pair", DIFFERENT)
def test_what_differs_is_told_apart(pair):
    assert_told_apart(exactly, *DIFFERENT[pair])


@pytest.mark.parametrize("pair", ["the solver in a solver", "a root finder's tolerance", "numbers of a schedule"])
def test_names_of_classes_would_not_do(pair):
    """A former fault: a store of Euler's method was resumed with Tsitouras'."""
    with pytest.raises(AssertionError):
        assert_told_apart(lambda value: type(value).__name__, *DIFFERENT[pair])


EQUAL: dict[str, Any] = {
    "solvers": lambda: dfx.HalfSolver(kvaerno(linear_solver=lx.LU())),
    "schedules": lambda: Halving(0.1, 10),
    "arrays": lambda: Plain(jnp.arange(3.0)),
    "methods": lambda: functools.partial(optax.adam, b1=0.8),
    "sets": lambda: Plain({"b", "a"}),
}


@pytest.mark.parametrize("case", EQUAL)
def test_what_is_made_alike_is_described_alike(case):
    assert exactly(EQUAL[case]()) == exactly(EQUAL[case]())


@pytest.mark.parametrize("number", [0.1, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3, np.pi])
def test_numbers_come_back_from_text_to_the_last_bit(number):
    found = json.loads(json.dumps(options(fc.Flow(rtol=1e-6, t1=abs(number) or None))))["t1"]
    assert found == (abs(number) or None)
    array = json.loads(json.dumps(exactly(np.array([number, -number]))))
    assert array["dtype"] == "float64"
    np.testing.assert_array_equal(np.signbit(array["values"]), np.signbit([number, -number]))
    assert array["values"] == [number, -number]


def made_here(count):
    def schedule(step):
        return count * step

    return schedule


class Outer:
    @staticmethod
    def local():
        class Tsit5(dfx.Tsit5):
            pass

        return Tsit5()


NAMELESS: dict[str, tuple[Any, str]] = {
    "a lambda": (lambda x: x, "place is '<lambda>'"),
    "a closure": (made_here(3), r"place is 'made_here.<locals>.schedule'"),
    "a schedule of optax": (optax.cosine_decay_schedule(0.1, 3), "place is 'cosine_decay_schedule.<locals>.schedule'"),
    "a ready optimizer": (optax.sgd(0.1), r"place is a ready optimizer.* name it, as in fc.Descent\("),
    "a class made in a function": (Outer.local(), "place is a .*Tsit5, whose class no module holds"),
    "a random generator": (np.random.default_rng(0), "place is a Generator, whose state"),
    "a lambda in a solver": (kvaerno(norm=lambda x: x), r"place.root_finder.norm is '.*<lambda>'"),
    "a lambda in a list": (Plain([1, made_here(2)]), r"place.values\[1\] is"),
    "an array of objects": (np.array([object()]), "place is an array of objects"),
}


@pytest.mark.parametrize("case", NAMELESS)
def test_what_has_no_name_is_refused_by_its_place(case):
    value, message = NAMELESS[case]
    with pytest.raises(fc.UsageError, match=message):
        described(value, "place", refused)
    assert "undescribed" in json.dumps(described(value, "place"))  # files only report it


MODEL = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
SHORT: dict[str, Any] = {"eps": [1.0], "seeds": 1, "ts": 2, "metrics": ["risk"], "progress": False}


def test_a_store_of_one_solver_is_not_another_s(tmp_path):
    euler, tsit5 = (fc.Flow(dfx.HalfSolver(one), rtol=1e-2) for one in (dfx.Euler(), dfx.Tsit5()))
    path = tmp_path / "a.zarr"
    first = fc.sweep(MODEL, euler, store=path, **SHORT).load()
    with pytest.raises(fc.UsageError, match=r'method.solver.solver.class is "diffrax.Euler" there and "diffrax.Tsit5"'):
        fc.sweep(MODEL, tsit5, store=path, **SHORT)
    again = fc.sweep(MODEL, fc.Flow(dfx.HalfSolver(dfx.Euler()), rtol=1e-2), store=path, **SHORT)
    assert again.attrs["lanes_computed"] == 0
    np.testing.assert_array_equal(again["risk"], first["risk"])


def test_a_name_that_others_have_entered_is_described_too(tmp_path, monkeypatch):
    """A start with a known name but a new function is another sweep."""
    from flowcollapse import initial

    path, descent = tmp_path / "a.zarr", fc.Descent("sgd", 2, learning_rate=0.1)
    fc.sweep(MODEL, descent, store=path, **SHORT)
    monkeypatch.setitem(initial.STARTS, "sphere", lambda model, eps, *, key: initial.sphere(model, 2 * eps, key=key))
    with pytest.raises(fc.UsageError, match=r"start is .*lambda"):
        fc.sweep(MODEL, descent, store=path, **SHORT)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (fc.Descent(optax.sgd(0.05), num_steps=3), "optimizer is a ready optimizer"),
        (fc.Descent("sgd", 3, learning_rate=optax.cosine_decay_schedule(0.1, 3)), "learning_rate is 'cosine_decay_sch"),
        (fc.Flow(kvaerno(norm=lambda x: x)), "solver.root_finder.norm is"),
    ],
    ids=["a ready optimizer", "a schedule", "a norm"],
)
def test_a_store_is_refused_before_anything_is_made(tmp_path, method, message):
    with pytest.raises(fc.UsageError, match=message):
        fc.sweep(MODEL, method, store=tmp_path / "runs" / "a.zarr", **SHORT)
    assert not list(tmp_path.iterdir())

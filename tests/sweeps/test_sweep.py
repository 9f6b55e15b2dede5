"""Sweeps: every lane equals its run by `simulate`, with any other lanes and in any order, block or device."""

import json
import re
from typing import Any, cast

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
import xarray as xr
from jax.sharding import Mesh

import flowcollapse as fc
from flowcollapse.initial import STARTS
from flowcollapse.sweeps import engine
from flowcollapse.sweeps.grid import make_grid
from flowcollapse.sweeps.lane import Plan, common_metrics

KEPT = ("risk", "snc1")
FLOW = fc.Flow(rtol=1e-6)
DESCENT = fc.Descent("sgd", num_steps=60, learning_rate=0.05)
"""The method for laws of the engine; it compiles fast."""

OPTIONS: dict[str, Any] = {"ts": 5, "metrics": KEPT, "progress": False}


@pytest.fixture(scope="module")
def grid(paper_model):
    return fc.sweep(paper_model, FLOW, eps=[1.0, 0.1], seeds=5, width=4, **OPTIONS)


def compiled() -> int:
    """The number of programs that the engine has compiled."""
    return engine._program("cpu")._cache_size()


def alone(model, method, eps, seed, ts: Any = 5):
    start = fc.initial.sphere(model, eps, key=jax.random.key(seed))
    return fc.simulate(model, start, method, ts, metrics=KEPT)


def assert_lane(cell, path, rtol=1e-9):
    """The cell of a sweep holds this run, up to the different rounding in blocks of lanes."""
    for name in KEPT:
        np.testing.assert_allclose(cell[name], path.metrics[name], rtol=rtol, atol=1e-11)
    np.testing.assert_allclose(cell["t_end"], path.t_end, rtol=1e-12)
    assert int(cell["verdict"]) == int(path.code)


def test_each_lane_is_its_run_alone(grid, paper_model):
    assert grid["risk"].dims == ("eps", "seed", "time")
    for eps, seed in ((1.0, 0), (0.1, 4)):
        path, cell = alone(paper_model, FLOW, eps, seed), grid.sel(eps=eps, seed=seed)
        assert_lane(cell, path)
        np.testing.assert_allclose(cell["t"], path.ts, rtol=1e-12)
        assert int(cell["steps_accepted"]) == int(path.stats["accepted"])


@pytest.mark.parametrize("method", [FLOW, DESCENT], ids=["flow", "descent"])
def test_same_lane_same_numbers_in_any_company(method, paper_model, monkeypatch):
    some = {"eps": [0.1, 0.3, 1.0], "seeds": [4, 7, 1]}
    narrow = fc.sweep(paper_model, method, **some, width=1, lanes_per_task=2, **OPTIONS)
    run = jax.jit(engine._run, static_argnums=(0, 1), compiler_options=systems.USUAL_FUSIONS)
    monkeypatch.setattr(engine, "_program", lambda platform: run)
    whole = fc.sweep(paper_model, method, eps=[1.0, 0.1], seeds=5, width=4, **OPTIONS)
    same_width = fc.sweep(paper_model, method, **some, width=4, lanes_per_task=8, devices=1, **OPTIONS)
    common = {"eps": [1.0, 0.1], "seed": [1, 4]}
    expected = whole.sel(common)
    for name in expected.data_vars:
        np.testing.assert_array_equal(same_width.sel(common)[name], expected[name], err_msg=name)
        np.testing.assert_allclose(narrow.sel(common)[name], expected[name], rtol=1e-8, atol=1e-11, err_msg=name)


def test_a_lane_that_fails_changes_no_other(paper_model):
    options: dict[str, Any] = {"eps": [0.1], "seeds": 3, "width": 4, "devices": 1, **OPTIONS}
    good = fc.sweep(paper_model, DESCENT, learning_rate=[0.05], **options)
    mixed = fc.sweep(paper_model, DESCENT, learning_rate=[0.05, 9.0], **options)
    assert (mixed["verdict"].sel(learning_rate=9.0) == fc.Verdict.non_finite).all()
    for name in KEPT:
        np.testing.assert_array_equal(mixed[name].sel(learning_rate=0.05), good[name].sel(learning_rate=0.05))


def test_a_lane_at_its_step_limit_changes_no_other(paper_model):
    # 40 steps are enough for an rtol of 1e-3 but not for 1e-10; both kinds of lanes share one block.
    short = fc.Flow(rtol=1e-6, max_steps=40)
    options: dict[str, Any] = {"eps": [0.1], "seeds": 2, "width": 4, "devices": 1, **OPTIONS}
    mixed, good = (fc.sweep(paper_model, short, rtol=rtol, **options) for rtol in ([1e-10, 1e-3], [1e-3, 1e-4]))
    assert (mixed["verdict"].sel(rtol=1e-10) == fc.Verdict.step_limit).all()
    assert (good["verdict"].sel(rtol=1e-3) == fc.Verdict.plateau).all()
    np.testing.assert_array_equal(mixed["snc1"].sel(rtol=1e-3), good["snc1"].sel(rtol=1e-3))


SMALL = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)

AXES = {
    "num_classes": (DESCENT, [2, 3]),
    "samples_per_class": (DESCENT, [2, 4]),
    "num_features": (DESCENT, [2, 5]),
    "weight_decay": (DESCENT, [0.0, 0.1]),
    "learning_rate": (DESCENT, [0.02, 0.1]),
    "rtol": (FLOW, [1e-3, 1e-6]),
    "t1": (FLOW, [2.0, 9.0]),
}


def changed(model, **fields):
    names = ("num_classes", "samples_per_class", "num_features", "weight_decay")
    return fc.UFM(**({name: getattr(model, name) for name in names} | fields))


@pytest.mark.parametrize("name", AXES)
def test_every_axis_by_name(name):
    method, values = AXES[name]
    found = fc.sweep(SMALL, method, eps=[0.1], seeds=2, **cast(Any, OPTIONS | {name: values}))
    assert found["risk"].dims == (name, "eps", "seed", "time")
    for value in values:
        of_method = name in method.numbers
        one = method.with_numbers({name: value}) if of_method else method
        model = SMALL if of_method else changed(SMALL, **{name: value})
        assert_lane(found.sel({name: value, "eps": 0.1, "seed": 1}), alone(model, one, 0.1, 1))


def test_times_that_all_lanes_share():
    ts, rates = [0.0, 0.5, 1.0], [0.02, 0.05]
    found = fc.sweep(SMALL, DESCENT, eps=[0.1], seeds=2, learning_rate=rates, **cast(Any, OPTIONS | {"ts": ts}))
    assert found["time"].values.tolist() == ts
    for rate in rates:
        path = alone(SMALL, DESCENT.with_numbers({"learning_rate": rate}), 0.1, 1, ts)
        assert_lane(found.sel(learning_rate=rate, eps=0.1, seed=1), path)


def test_values_of_several_numbers_and_unequal_counts():
    decays, counts = [(0.1, 0.2, 0.0), (0.2, 0.1, 0.3)], [2, (1, 2, 3)]
    axes: dict[str, Any] = {"weight_decay": decays, "samples_per_class": counts}
    found = fc.sweep(SMALL, DESCENT, eps=[0.1], seeds=1, **cast(Any, OPTIONS | {"metrics": ["risk"]} | axes))
    assert found["risk"].dims[:2] == ("samples_per_class", "weight_decay")
    np.testing.assert_array_equal(found["weight_decay_values"], decays)
    np.testing.assert_array_equal(found["samples_per_class_values"], [[2, np.nan, np.nan], [1, 2, 3]])
    model = changed(SMALL, samples_per_class=(1, 2, 3), weight_decay=decays[1])
    start = fc.initial.sphere(model, 0.1, key=jax.random.key(0))
    path = fc.simulate(model, start, DESCENT, 5, metrics=("risk",))
    np.testing.assert_allclose(found["risk"][1, 1, 0, 0], path.metrics["risk"], rtol=1e-9)


def test_one_program_a_shape_and_none_for_other_numbers():
    model, before = changed(SMALL, num_classes=2, samples_per_class=3), compiled()
    options: dict[str, Any] = {"seeds": 4, "num_features": [3, 5], "lanes_per_task": 3, **OPTIONS}
    fc.sweep(model, DESCENT, eps=[0.1, 0.2], **options)
    assert compiled() == before + 2
    fc.sweep(model, DESCENT.with_numbers({"learning_rate": 0.01}), eps=[0.3, 0.4], **options)
    assert compiled() == before + 2


def test_end_states_of_different_shapes_are_filled_up():
    found = fc.sweep(SMALL, DESCENT, eps=[0.1], seeds=1, num_features=[3, 5], keep_final=True, **OPTIONS)
    for p in (3, 5):
        path = alone(changed(SMALL, num_features=p), DESCENT, 0.1, 0)
        cell = found.sel(num_features=p).squeeze()
        np.testing.assert_allclose(cell["H"][:p], path.final.H, atol=1e-12)
        np.testing.assert_allclose(cell["W"][:, :p], path.final.W, atol=1e-12)
        np.testing.assert_allclose(cell["b"], path.final.b, atol=1e-12)
        assert np.isnan(cell["H"][p:]).all()


OPERANDS_OF_LAPACK = re.compile(r"custom_call @lapack_.* : \((.*)\) ->")


@pytest.mark.parametrize(
    ("start", "sizes", "method"),
    [(start, sizes, DESCENT) for start in STARTS for sizes in ((3, 3, 15), (3, 30, 15), (3, 3, 60))]
    + [("sphere", (3, 3, 15), method) for method in (FLOW, fc.Flow("kvaerno5"), fc.Flow(dfx.Kvaerno3()))],
    ids=str,
)
def test_no_program_hands_lapack_a_batch(start, sizes, method):
    """On several CPU devices, batches can deadlock (see `_linalg.algebra.one_by_one`)."""
    C, N, p = sizes
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    grid = make_grid(model, method, [0.1], [0], {}, start)
    lane, shared = Plan(grid, 3, common_metrics(grid, None), True).lane({})
    numbers = {"eps": np.full((2, 4), 0.1), "seed": np.zeros((2, 4), int)}
    mesh = Mesh(np.array(jax.local_devices()), ("lanes",))
    program = engine._program("cpu").lower(lane, mesh, shared, np.full(2, True), numbers).as_text()
    operands = OPERANDS_OF_LAPACK.findall(program)
    assert operands
    assert all(shape.count("x") <= 2 for of_call in operands for shape in of_call.split(", "))


def test_implicit_solvers_in_lanes():
    method = fc.Flow("kvaerno5", rtol=1e-3)
    lanes = fc.sweep(SMALL, method, eps=[0.1], seeds=3, **OPTIONS)
    assert_lane(lanes.sel(eps=0.1, seed=2), alone(SMALL, method, 0.1, 2), rtol=1e-7)


def test_starts_on_the_subspace_stay_there(paper_model):
    options: dict[str, Any] = {"ts": 3, "metrics": ["distance"], "progress": False}
    found = fc.sweep(paper_model, DESCENT, eps=[0.1], seeds=2, start="on-subspace", **options)
    assert float(found["distance"].max()) < 1e-13


def test_the_dataset_says_what_is_in_it(grid):
    for name, values in {**grid.data_vars, **grid.coords}.items():
        assert values.attrs["long_name"], name
    assert grid["snc1"].attrs["units"] == grid["eps"].attrs["units"] == "1"
    about = grid["verdict"].attrs
    meanings = dict(zip(about["flag_values"].tolist(), about["flag_meanings"].split(), strict=True))
    assert meanings[-1] == "missing"
    assert all(meanings[int(v)] == v.name for v in fc.Verdict)
    assert json.loads(grid.attrs["model"])["num_features"] == 15
    assert grid.attrs["precision"] == "float64"
    assert grid.attrs["lanes_computed"] == 10
    assert 0 < grid.attrs["lane_efficiency"] <= 1
    assert grid.attrs["lanes_per_second"] > 0


def test_all_metrics_that_the_lanes_have_in_common():
    model = changed(SMALL, num_classes=2)
    found = fc.sweep(model, DESCENT, eps=[0.1], seeds=1, ts=2, progress=False, samples_per_class=[2, (1, 3)])
    assert "nc1" in found
    assert "snc1" not in found  # S is defined for equal counts


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an empty axis": ({"eps": []}, "eps is empty"),
    "a value twice": ({"eps": [0.1, 0.1]}, "eps holds 0.1 twice"),
    "a norm of zero": ({"eps": [0.1, 0.0]}, "eps must be positive"),
    "a value that is not finite": ({"eps": [float("nan")]}, "eps must be finite, got nan"),
    "more seeds than can be": ({"seeds": 10**30}, "seeds must be at least 1, and at most 2"),
    "a device twice": ({"devices": 2 * jax.local_devices()[:1]}, "devices must be .* different jax devices"),
    "an address as store": ({"store": "s3://bucket/a.zarr"}, "store 's3://bucket/a.zarr' is an address"),
    "no seeds": ({"seeds": 0}, "seeds must be at least 1"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds holds 1 twice"),
    "a seed below zero": ({"seeds": [-1]}, "seeds must be integers from 0"),
    "an unknown axis": ({"learning_rat": [0.1]}, "axis 'learning_rat' is not one of"),
    "an axis of another method": ({"momentum": [0.1]}, "axis 'momentum' is not one of"),
    "a tolerance below zero": ({"rtol": [-1.0]}, "rtol must be positive"),
    "a shape that cannot be": ({"num_classes": [1, 2]}, "num_classes must be"),
    "decays of both kinds": ({"weight_decay": [0.1, (0.1, 0.1, 0.1)]}, "mixes single numbers and lists"),
    "an unknown metric": ({"metrics": ["snc4"]}, "did you mean 'nc4'"),
    "an unknown start": ({"start": "spere"}, "did you mean 'sphere'"),
    "no saves": ({"ts": 0}, "ts must be a positive integer"),
    "times that fall": ({"ts": [1.0, 0.5]}, "ts must be finite and increase"),
    "times beyond the end": ({"ts": [0.0, 5.0], "t1": [9.0, 4.0]}, "ts ends at 5.0, after t1"),
    "no devices": ({"devices": 0}, "devices must be a positive integer"),
    "no width": ({"width": 0}, "width must be a positive integer"),
    "processes without a store": ({"distributed": True}, "distributed=True needs a store"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_runs(case, paper_model, monkeypatch):
    monkeypatch.setattr(engine.Engine, "submit", None)
    options, message = BAD[case]
    with pytest.raises(fc.UsageError, match=message):
        fc.sweep(paper_model, FLOW, **({"eps": [0.1], "seeds": 2, "progress": False} | options))


GIVEN: dict[str, Any] = {
    "a number": lambda values: values[0],
    "a tuple": tuple,
    "a generator": lambda values: (value for value in values),
    "an array": np.array,
    "an array of jax": jnp.array,
    "a DataArray": xr.DataArray,
}


@pytest.mark.parametrize("form", GIVEN)
def test_values_of_axes_in_any_form(form):
    """Values in any container give the lanes of a list; a generator is read once."""
    values = [0.5] if form == "a number" else [0.5, 0.25]
    seeds = [3, 0] if form != "a number" else [3]
    rates = [0.03125, 0.0625][: len(values)]  # exact in any precision
    plain = fc.sweep(SMALL, DESCENT, eps=values, seeds=seeds, learning_rate=rates, **OPTIONS)
    make = GIVEN[form]
    axes = {"eps": make(values), "seeds": seeds if form == "a number" else make(seeds), "learning_rate": make(rates)}
    xr.testing.assert_identical(fc.sweep(SMALL, DESCENT, **axes, **OPTIONS).drop_attrs(), plain.drop_attrs())


@pytest.mark.usefixtures("thirty_two_bits")
def test_float32_is_said_aloud():
    """One warning names the loss and the cure; the attributes of results say it too, also in a store opened later."""
    with pytest.warns(fc.PrecisionWarning, match=r"b - 1/C, B - W\^T and SNC1 .*fc.enable_x64") as told:
        found = fc.sweep(SMALL, DESCENT, eps=0.1, seeds=1, **OPTIONS)
    assert len(told) == 1
    assert found["risk"].dtype == np.float32
    assert found.attrs["precision_note"] == str(told[0].message)
    assert found.attrs["precision"] == "float32"
    with pytest.warns(fc.PrecisionWarning) as told:
        both = fc.compare(SMALL, "sphere", "sgd:learning_rate=0.05", [1.0], eps=[0.1], seeds=1, metrics=["risk"])
    assert len(told) == 1
    assert both.attrs["precision_note"] == str(told[0].message)


def test_float64_has_nothing_to_say(grid):
    assert "precision_note" not in grid.attrs


def test_times_beyond_the_end_of_a_descent_are_refused(paper_model):
    descent = fc.Descent("sgd", num_steps=10, learning_rate=0.1)
    with pytest.raises(fc.UsageError, match=r"ts ends at 0.9, but .*'learning_rate': 0.05.* ends at 0.5"):
        fc.sweep(paper_model, descent, eps=[0.1], ts=[0.0, 0.9], learning_rate=[0.1, 0.05])

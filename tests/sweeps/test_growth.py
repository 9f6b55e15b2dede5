"""Growing stores: existing lanes stay, only new ones are computed, and stopping at any moment does no harm."""

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse.sweeps import engine, store

MODEL = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
METHOD = fc.Descent("sgd", num_steps=60, learning_rate=0.05)
OPTIONS: dict[str, Any] = {
    "ts": 3,
    "metrics": ["risk", "snc1"],
    "width": 2,
    "lanes_per_task": 2,  # one program for all
    "progress": False,
}


def run(path, eps, seeds, method=METHOD, **more):
    return fc.sweep(MODEL, method, eps=eps, seeds=seeds, store=path, **(OPTIONS | more)).load()


def in_memory(eps, seeds, method=METHOD, **more):
    return fc.sweep(MODEL, method, eps=eps, seeds=seeds, **(OPTIONS | more))


def assert_same(found, expected):
    xr.testing.assert_identical(found.drop_attrs(), expected.drop_attrs())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zarr"


@pytest.fixture(scope="module")
def undisturbed():
    """All lanes of the tests below, computed in memory."""
    return in_memory([1.0, 0.1, 0.3], [0, 1, 2, 3, 4, 5, 6, 90])


@pytest.mark.parametrize("lanes_per_task", [None, 2], ids=["one chunk", "many chunks"])
def test_more_seeds_and_more_scales_are_added(path, undisturbed, lanes_per_task):
    options = {"lanes_per_task": lanes_per_task}
    assert run(path, [1.0, 0.1], 3, **options).attrs["lanes_computed"] == 6
    more = run(path, [1.0, 0.1], 7, **options)
    assert more.attrs["lanes_computed"] == 2 * 4
    assert_same(more, undisturbed.sel(eps=[1.0, 0.1], seed=range(7)))
    # Another order, a value between the others, and only the requested lanes.
    other = run(path, [0.3, 0.1], [90, 5], **options)
    assert other.attrs["lanes_computed"] == 3
    assert_same(other, undisturbed.sel(eps=[0.3, 0.1], seed=[90, 5]))
    whole = fc.open_sweep(path).load()
    assert whole["seed"].values.tolist() == [0, 1, 2, 3, 4, 5, 6, 90]
    assert whole["eps"].values.tolist() == [1.0, 0.1, 0.3]
    assert int((whole["verdict"] == -1).sum()) == 24 - 6 - 8 - 3
    assert_same(whole, undisturbed.where(whole["verdict"] != -1, -1).astype(undisturbed.dtypes).assign(
        {name: undisturbed[name].where(whole["verdict"] != -1) for name in ("risk", "snc1", "t", "t_end")}
    ).transpose(*whole["risk"].dims))  # fmt: skip


def test_fewer_lanes_are_read_and_nothing_runs(path, undisturbed, monkeypatch):
    run(path, [1.0, 0.1, 0.3], 7)
    monkeypatch.setattr(engine.Engine, "submit", None)
    for eps, seeds in (([1.0, 0.1, 0.3], 4), ([0.3, 1.0], [6, 2]), (0.1, range(7))):
        found = run(path, eps, seeds)
        assert found.attrs["lanes_computed"] == 0
        seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        assert_same(found, undisturbed.sel(eps=np.atleast_1d(eps), seed=seeds))


def test_what_is_there_stays_byte_for_byte(path):
    run(path, [1.0, 0.1], 4)
    before = {file: file.read_bytes() for file in path.rglob("*") if "c" in file.parts and file.is_file()}
    whole = {file: content for file, content in before.items() if file.parent.parent.name == "c"}
    run(path, [1.0, 0.1], 8)
    assert whole
    assert all(file.read_bytes() == content for file, content in whole.items())


AXES: dict[str, tuple[list[Any], list[Any], dict[str, Any]]] = {
    "learning_rate": ([0.02, 0.1], [0.05, 0.02], {}),
    "weight_decay": ([0.1], [0.0, 0.1], {}),
    "weight_decay of three": ([(0.1, 0.2, 0.0)], [(0.2, 0.1, 0.3), (0.1, 0.2, 0.0)], {}),
    "samples_per_class": ([2], [3, 2], {}),
    "counts of the classes": ([(1, 2, 3)], [(2, 2, 3), 2, (1, 2, 3)], {"metrics": ["risk"]}),
    "num_features": ([4], [2, 4, 9], {"keep_final": True}),
    "t1": ([2.0], [1.5, 2.0], {}),
}


@pytest.mark.parametrize("name", AXES)
def test_every_axis_grows(path, name):
    first, then, more = AXES[name]
    axis = {"counts of the classes": "samples_per_class", "weight_decay of three": "weight_decay"}.get(name) or name
    before: dict[str, Any] = more | {axis: first}
    after: dict[str, Any] = more | {axis: then}
    run(path, [0.1], 3, **before)
    found = run(path, [0.1], 3, **after)
    assert found.attrs["lanes_computed"] == 3 * sum(value not in first for value in then)
    assert_same(found, in_memory([0.1], 3, **after))


SPELLINGS: dict[str, dict[str, Any]] = {
    "seeds as a range": {"seeds": range(4)},
    "seeds as an array": {"seeds": np.arange(4)},
    "whole numbers": {"eps": [1, 2]},
    "another order": {"eps": [2.0, 1.0], "seeds": [3, 1, 0, 2]},
    "metrics in another order": {"metrics": ["snc1", "risk"]},
    "a metric twice": {"metrics": ["risk", "snc1", "risk"]},
    "fewer metrics": {"metrics": ["snc1"]},
    "times as an array": {"ts": np.array([0, 1, 2])},
    "times as a tuple": {"ts": (0.0, 1.0, 2.0)},
    "a learning rate as an array": {"method": METHOD.with_numbers({"learning_rate": np.float64(0.05)})},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_sweep_in_other_words(path, spelling):
    options = {"eps": [1.0, 2.0], "seeds": 4, "ts": [0.0, 1.0, 2.0], "lanes_per_task": 3}
    run(path, **options)
    again = run(path, **(options | SPELLINGS[spelling]))
    assert again.attrs["lanes_computed"] == 0
    metrics = SPELLINGS[spelling].get("metrics", OPTIONS["metrics"])
    assert [name for name in ("risk", "snc1") if name in again] == sorted(set(metrics))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an axis that the store has not": ({"learning_rate": [0.05, 0.1]}, "learning_rate is an axis here and not there"),
    "more metrics": ({"metrics": ["risk", "nc1"]}, "metrics are .* there, without 'nc1'.* a new store"),
    "other times": ({"ts": 4}, "ts is 3 there and 4 here"),
    "another start": ({"start": "balanced"}, 'start is "sphere" there and "balanced" here'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_sweep_is_refused_and_the_store_stays(path, case):
    changes, message = REFUSED[case]
    run(path, [1.0], 2)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(fc.UsageError, match=message):
        run(path, [1.0], 3, **changes)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_an_axis_must_be_given_again(path):
    run(path, [1.0], 2, learning_rate=[0.05, 0.1])
    with pytest.raises(fc.UsageError, match="learning_rate is an axis there"):
        run(path, [1.0], 2)
    # The value that the axis replaces does not matter.
    other = METHOD.with_numbers({"learning_rate": 0.9})
    assert run(path, [1.0], 2, other, learning_rate=[0.1]).attrs["lanes_computed"] == 0


class Killed(BaseException):
    """An exception that nothing catches, like SIGKILL."""


def killed_at(monkeypatch, owner, name, number):
    """Stop right after the given call of a function, counted from 0."""
    original, calls = getattr(owner, name), itertools.count()

    def counted(*arguments, **options):
        if next(calls) == number:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("moment", range(12))
def test_growth_that_is_killed_has_happened_or_not(path, undisturbed, monkeypatch, moment):
    """Any of the files that hold lengths may be the last one written."""
    first = run(path, [1.0, 0.1], 3)
    with monkeypatch.context() as patch:
        killed_at(patch, store, "_replace", moment)
        try:
            run(path, [1.0, 0.1, 0.3], 7)
        except Killed:
            assert_same(fc.open_sweep(path).load(), first)
    # First a different growth than the interrupted one, then the interrupted one.
    assert_same(run(path, [1.0, 0.1], [0, 90]), undisturbed.sel(eps=[1.0, 0.1], seed=[0, 90]))
    assert_same(run(path, [1.0, 0.1, 0.3], 7), undisturbed.sel(eps=[1.0, 0.1, 0.3], seed=range(7)))


@pytest.mark.parametrize("moment", [0, 1, 5, 6, 7, 13, 20])
def test_lanes_that_are_killed_while_they_are_written(path, undisturbed, monkeypatch, moment):
    """With half of a task's chunks written next to existing lanes, those are kept and the new lanes run again."""
    run(path, [1.0, 0.1], 3, lanes_per_task=4)
    with monkeypatch.context() as patch:
        killed_at(patch, store, "put", moment)
        with pytest.raises(Killed):
            run(path, [1.0, 0.1], 7, lanes_per_task=4)
    found = fc.open_sweep(path).load()
    done = found["verdict"] != -1
    assert done.sel(seed=range(3)).all()
    for name in ("risk", "snc1", "t_end"):
        expected = undisturbed[name].sel(eps=[1.0, 0.1], seed=range(7)).where(done)
        xr.testing.assert_equal(found[name].drop_vars("time", errors="ignore"), expected)
    again = run(path, [1.0, 0.1], 7, lanes_per_task=4)
    assert again.attrs["lanes_computed"] == int((~done).sum())
    assert_same(again, undisturbed.sel(eps=[1.0, 0.1], seed=range(7)))


def test_a_small_sweep_grows_in_large_steps(path, monkeypatch):
    """Chunks stay as small as the first sweep, but batches do not."""
    run(path, [1.0, 0.1], 2)
    calls, submit = [], engine.Engine.submit
    monkeypatch.setattr(engine.Engine, "submit", lambda self, lanes: calls.append(1) or submit(self, lanes))
    run(path, [1.0, 0.1], 34, lanes_per_task=32)
    assert len(calls) == 2


def test_a_store_of_an_older_form_is_read_and_not_added_to(path):
    run(path, [1.0], 2)
    file = path / "zarr.json"
    file.write_text(file.read_text().replace(store.FORMAT, "flowcollapse sweep 1"))
    assert (fc.open_sweep(path)["verdict"] >= 0).all()
    with pytest.raises(fc.UsageError, match=r"written by flowcollapse \S+, in a format that fc.open_sweep can read"):
        run(path, [1.0], 2)
    file.write_text(file.read_text().replace("flowcollapse sweep 1", "flowcollapse sweep 99"))
    with pytest.raises(fc.UsageError, match=r"written by flowcollapse \S+, which is newer"):
        fc.open_sweep(path)

"""Sweeps on disk: resumed where they stopped, believed where they are marked, refused where they are not the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse.sweeps import store

MODEL = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
METHOD = fc.Descent("sgd", num_steps=60, learning_rate=0.05)
OPTIONS: dict[str, Any] = {
    "eps": [1.0, 0.1],
    "seeds": 6,
    "ts": 3,
    "metrics": ["risk", "snc1"],
    "width": 2,
    "progress": False,
}
TASK = 4
"""Lanes a task: 2 x 2 tasks, of which the last of each row are partly filled chunks."""


def run(path, method=METHOD, **changes):
    return fc.sweep(MODEL, method, store=path, lanes_per_task=TASK, **(OPTIONS | changes))


@pytest.fixture(scope="module")
def undisturbed():
    return fc.sweep(MODEL, METHOD, **OPTIONS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "a.zarr"


def marks(path):
    return sorted(file for file in (path / store.MARK / "c").rglob("*") if file.is_file())


def test_a_store_holds_what_memory_would(path, undisturbed):
    found = run(path)
    assert found.chunks  # lazy
    xr.testing.assert_identical(found.load().drop_attrs(), undisturbed.drop_attrs())
    assert len(marks(path)) == 4


def test_a_store_opens_with_plain_xarray(path, undisturbed):
    run(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = xr.open_zarr(path).load()
    xr.testing.assert_equal(found, undisturbed)
    for name, values in undisturbed.variables.items():
        for about in ("long_name", "units", "flag_meanings"):
            assert found[name].attrs.get(about) == values.attrs.get(about)
    sweep = json.loads(found.attrs["sweep"])
    assert sweep["axes"]["eps"] == [1.0, 0.1]
    assert sweep["method"]["hyperparameters"] == {"learning_rate": 0.05}
    assert json.loads(found.attrs["versions"])["jax"] == jax.__version__
    assert {"device", "precision", "git_revision", "created"} <= found.attrs.keys()


def test_only_what_is_missing_is_computed(path, undisturbed):
    assert run(path).attrs["lanes_computed"] == 12
    assert run(path).attrs["lanes_computed"] == 0
    first, *_ = marks(path)
    first.unlink()
    again = run(path)
    assert again.attrs["lanes_computed"] == 3
    xr.testing.assert_identical(again.load().drop_attrs(), undisturbed.drop_attrs())


def test_without_its_mark_nothing_of_a_task_is_believed(path, undisturbed):
    run(path)
    marks(path)[-1].unlink()
    found = fc.open_sweep(path)
    missing = found["verdict"] == -1
    assert int(missing.sum()) == 3
    for name, values in found.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(missing.T, values.T.shape).T, err_msg=name)
        else:
            assert (values.values[missing.values] == -1).all()
    done = ~missing.values
    np.testing.assert_array_equal(found["risk"].values[done], undisturbed["risk"].values[done])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"metrics": ["risk", "nc3"]}, r"metrics are .* there, without 'nc3'"),
        ({"ts": 4}, "ts is 3 there and 4 here"),
        ({"keep_final": True}, "keep_final is false there and true here"),
        ({"method": METHOD.with_numbers({"learning_rate": 0.1})}, "learning_rate is 0.05 there and 0.1 here"),
    ],
)
def test_another_sweep_is_refused_with_the_difference(path, changes, difference):
    store.Store.create(path, _plan(), (1, 3))
    with pytest.raises(fc.UsageError, match=difference):
        run(path, **changes)


def _plan():
    from flowcollapse.sweeps.grid import make_grid
    from flowcollapse.sweeps.lane import Plan

    grid = make_grid(MODEL, METHOD, OPTIONS["eps"], OPTIONS["seeds"], {})
    return Plan(grid, OPTIONS["ts"], tuple(OPTIONS["metrics"]), False)


def test_a_new_store_is_all_missing(path):
    store.Store.create(path, _plan(), (1, 3))
    found = fc.open_sweep(path)
    assert (found["verdict"] == -1).all()
    assert np.isnan(found["risk"]).all()


def test_a_store_in_use_is_refused(path):
    store.Store.create(path, _plan(), (1, 3))
    with store.locked(path), pytest.raises(fc.UsageError, match="being written to by another process"):
        run(path)
    assert run(path).attrs["lanes_computed"] == 12  # and the lock is gone with its holder


def test_a_truncated_chunk_is_named_and_the_rest_kept(path, undisturbed):
    run(path)
    chunk = path / "risk" / "c" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(fc.UsageError, match=r"risk/c/0/1/0 is damaged: it has \d+ bytes, not \d+. Delete .*verdict"):
        run(path)
    with pytest.raises(Exception, match=r"."):  # its checksum does not fit either
        fc.open_sweep(path)["risk"].load()
    (path / "verdict" / "c" / "0" / "1").unlink()
    again = run(path)
    assert again.attrs["lanes_computed"] == 3
    xr.testing.assert_identical(again.load().drop_attrs(), undisturbed.drop_attrs())


def test_a_changed_byte_is_noticed(path):
    run(path)
    chunk = path / "risk" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)crc32c|checksum"):
        fc.open_sweep(path)["risk"].load()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    xr.Dataset({"x": ("y", [1.0])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    for folder in (tmp_path, tmp_path / "other.zarr"):
        with pytest.raises(fc.UsageError, match="is not the store of a flowcollapse sweep"):
            run(folder)
    with pytest.raises(fc.UsageError, match=r"nowhere.zarr does not exist: give the path of a sweep's store"):
        fc.open_sweep(tmp_path / "nowhere.zarr")
    with pytest.raises(fc.UsageError, match=r"notes.txt is a file, and the store of a sweep is a folder"):
        fc.open_sweep(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("form", ["version 3", "version 2", "not consolidated", "in memory", "cp"])
def test_copies_are_read(path, tmp_path, form, finished):
    run(path)
    if not finished:
        marks(path)[0].unlink()
    original, copy = fc.open_sweep(path), tmp_path / "copy.zarr"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        if form == "cp":
            shutil.copytree(path, copy)
        elif form == "in memory":
            original.load().to_zarr(copy, zarr_format=3)
        else:
            number, consolidated = (2 if form == "version 2" else 3), form != "not consolidated"
            original.to_zarr(copy, zarr_format=number, consolidated=consolidated)
    xr.testing.assert_identical(fc.open_sweep(copy).load(), original.load())
    if form == "cp":
        assert run(copy).attrs["lanes_computed"] == (0 if finished else 3)
    else:
        before = sorted(copy.rglob("*"))
        with pytest.raises(fc.UsageError, match=r"is a copy that another program has laid out anew .* cp -r does"):
            run(copy)
        assert sorted(copy.rglob("*")) == before


def test_a_part_of_a_sweep_is_written_anywhere(path, tmp_path):
    """What comes from a store carries none of its chunks and codecs along."""
    part = run(path).isel(seed=[4, 1])
    part.to_zarr(tmp_path / "part.zarr", zarr_format=2)
    part.to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
    for found in (xr.open_zarr(tmp_path / "part.zarr"), xr.open_dataset(tmp_path / "part.nc", engine="h5netcdf")):
        xr.testing.assert_equal(found.load(), part.load())
    with pytest.raises(fc.UsageError, match="laid out anew"):
        run(tmp_path / "part.zarr")


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    assert run(tmp_path / "a.zarr").attrs["lanes_computed"] == 12


def test_a_place_that_cannot_be_written_is_refused_before_any_compute(tmp_path, monkeypatch):
    from flowcollapse.sweeps.engine import Engine

    monkeypatch.setattr(Engine, "submit", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(fc.UsageError, match="cannot write"):
        run(tmp_path / "file" / "a.zarr")


def test_an_optimizer_without_a_name_has_no_place_in_a_store(path):
    import optax

    with pytest.raises(fc.UsageError, match="ready optimizer"):
        run(path, method=fc.Descent(optax.sgd(0.05), num_steps=60))


PROGRAM = f"""
import resource, signal, sys
import flowcollapse as fc
fc.enable_x64()
fc.use_cpu_cores(1)
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    create = fc.sweeps.store.Store.create
    def then_full(*arguments):
        create(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))  # the chunks of risk and snc1 are larger
    fc.sweeps.store.Store.create = staticmethod(then_full)
model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
method = fc.Descent("sgd", num_steps=60, learning_rate=0.05)
try:
    fc.sweep(model, method, store=sys.argv[1], lanes_per_task={TASK}, **{OPTIONS | {"progress": True}})
except fc.UsageError as error:
    sys.exit(f"refused: {{error}}")
except fc.Interrupted as error:
    sys.exit(str(error))
"""


def start(path, *words):
    return subprocess.Popen(
        [sys.executable, "-c", "import flowcollapse.sweeps.store\n" + PROGRAM, str(path), *words],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_is_told_and_the_sweep_goes_on_elsewhen(path, undisturbed):
    process = start(path, "full")
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "cannot write" in told
    assert "Whatever was finished is kept" in told
    assert not marks(path)
    xr.testing.assert_identical(run(path).load().drop_attrs(), undisturbed.drop_attrs())


def test_interrupt_finishes_what_is_under_way(tmp_path):
    path = tmp_path / "a.zarr"
    code = PROGRAM.replace('"seeds": 6', '"seeds": 4000').replace("'seeds': 6", "'seeds': 4000")
    process = subprocess.Popen(
        [sys.executable, "-c", "import flowcollapse.sweeps.store\n" + code, str(path), "go"],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (path / "verdict" / "c").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "Run the same again to resume" in told
    found = fc.open_sweep(path)
    done = int((found["verdict"] >= 0).sum())
    assert 0 < done < 8000
    assert done == TASK * len(marks(path))

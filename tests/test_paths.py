"""Paths that users give: expanded once, never an address, and nothing is left behind if writing fails."""

import os
from pathlib import Path
from typing import Any

import pytest

import flowcollapse as fc
from flowcollapse._files import local_path, replacing, write_netcdf
from flowcollapse.sweeps import store

MODEL = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
METHOD = fc.Descent("sgd", num_steps=2, learning_rate=0.1)
OPTIONS: dict[str, Any] = {"eps": [1.0], "seeds": 1, "ts": 2, "metrics": ["risk"], "progress": False}


class Place(os.PathLike):
    """A path of another library."""

    def __init__(self, text: str):
        self.text = text

    def __fspath__(self) -> str:
        return self.text


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("kind", [str, Path, Place])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("~/a.zarr", "home/a.zarr"),
        ("$SCRATCH/a.zarr", "scratch/a.zarr"),
        ("${SCRATCH}/b/~c", "scratch/b/~c"),
        ("a.zarr", None),
        ("a:b/c", None),
    ],
)
def test_places_are_expanded(home, kind, text, place):
    wanted = Path(text) if place is None else home.parent / place
    found = local_path(kind(text))
    assert found == wanted
    assert local_path(found) == wanted  # twice does no harm


ADDRESSES = ["s3://bucket/a.zarr", "gs://b/a", "http://host/a.nc", "memory://a", "file:///a", "simplecache::s3://b/a"]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_never_folders(home, kind, address):
    for call in (
        lambda: fc.sweep(MODEL, METHOD, store=kind(address), **OPTIONS),
        lambda: fc.open_sweep(kind(address)),
        lambda: local_path(kind(address), "out"),
    ):
        with pytest.raises(fc.UsageError, match="is an address, and only paths of this machine"):
            call()
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("text", ["", " ", "a\0b", "$NOWHERE/a", "${NOWHERE}/a", "~there-is-no-such-user/a"])
def test_places_that_cannot_be(home, text):
    with pytest.raises(fc.UsageError, match=r"^out (must be the path|'.*' holds '.*', which is not known here)"):
        local_path(text, "out")


def test_a_store_in_the_home_folder(home):
    fc.sweep(MODEL, METHOD, store="~/runs/a.zarr", **OPTIONS)
    assert [file.name for file in home.iterdir()] == ["runs"]
    assert [file.name for file in (home / "runs").iterdir()] == ["a.zarr"]
    assert not list(Path.cwd().iterdir())
    assert fc.sweep(MODEL, METHOD, store=str(home / "runs" / "a.zarr"), **OPTIONS).attrs["lanes_computed"] == 0
    assert (fc.open_sweep("~/runs/a.zarr")["verdict"] >= 0).all()


def test_a_store_that_cannot_be_made_leaves_nothing(home, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(fc.UsageError, match=r"cannot write .*No space left"):
        fc.sweep(MODEL, METHOD, store="~/new/runs/a.zarr", **OPTIONS)
    assert not list(home.iterdir())
    assert not list(Path.cwd().iterdir())


def test_an_empty_folder_stays_where_the_sweep_is_refused(home):
    (home / "a.zarr").mkdir()
    options: dict[str, Any] = OPTIONS | {"eps": [0.0]}
    with pytest.raises(fc.UsageError, match="eps must be positive"):
        fc.sweep(MODEL, METHOD, store="~/a.zarr", **options)
    assert [file.name for file in home.iterdir()] == ["a.zarr"]


def test_a_file_that_cannot_be_written_leaves_nothing(home):
    def half():
        with replacing(home / "new" / "deep" / "a.nc") as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert not list(home.iterdir())
    write_netcdf(fc.sweep(MODEL, METHOD, **OPTIONS), home / "new" / "a.nc")
    assert [file.name for file in (home / "new").iterdir()] == ["a.nc"]

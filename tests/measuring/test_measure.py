"""Features in files of every kind are measured as the same features in memory, block by block."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse.cli import main
from flowcollapse.measuring.files import open_arrays
from flowcollapse.metrics.registry import METRICS


def made(n=90, p=4, C=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % C
    return rng.normal(size=(n, p)) + 2 * np.eye(C, p)[labels], labels, rng.normal(size=(C, p)), rng.normal(size=C)


FEATURES, LABELS, W, B = made()
WHOLE = fc.metrics.from_features(FEATURES, LABELS)
JUDGED = fc.metrics.from_features(FEATURES, LABELS, W, B)


def save_npz(path, **arrays):
    np.savez_compressed(path, **arrays)


def save_fortran(path, **arrays):
    turned: dict[str, Any] = {name: np.asfortranarray(array) for name, array in arrays.items()}
    np.savez(path, **turned)


def save_csv(path, **arrays):
    frame(**arrays).to_csv(path, index=False)


def save_parquet(path, **arrays):
    pytest.importorskip("pyarrow")
    frame(**arrays).to_parquet(path)


def save_lists(path, features, labels):
    pytest.importorskip("pyarrow")
    pd.DataFrame({"features": list(features), "labels": labels}).to_parquet(path)


def frame(features, labels):
    return pd.DataFrame(features, columns=[f"f{i}" for i in range(features.shape[1])]).assign(label=labels)


def save_h5(path, **arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"train/{name}"] = array.tolist() if array.dtype.kind == "U" else array


def save_zarr(path, **arrays):
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, array in arrays.items():
        group[name] = array


def save_safetensors(path, **arrays):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


KINDS = {
    "npz": (save_npz, ".npz"),
    "npz, columns first": (save_fortran, ".npz"),
    "csv": (save_csv, ".csv"),
    "parquet": (save_parquet, ".parquet"),
    "parquet, lists": (save_lists, ".parquet"),
    "h5": (save_h5, ".h5"),
    "zarr": (save_zarr, ".zarr"),
    "safetensors": (save_safetensors, ".safetensors"),
}


def assert_same(dataset, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(dataset[name].item(), value, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("block", [10, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_hold_what_was_saved(kind, block, tmp_path, monkeypatch):
    monkeypatch.setattr("flowcollapse.measuring.files.BLOCK", block)
    save, suffix = KINDS[kind]
    save(tmp_path / f"a{suffix}", features=FEATURES, labels=LABELS)
    arrays = open_arrays(tmp_path / f"a{suffix}")
    name = arrays.find("features") or ""
    parts = list(arrays.blocks(name))
    assert len(parts) > 1 or block > 10
    np.testing.assert_array_equal(np.concatenate(parts), FEATURES)
    if block > 10:
        found = fc.measure(tmp_path / f"a{suffix}")
        assert set(WHOLE) == {str(one) for one in found.data_vars} - {"counts", "num_features", "nc1_class"}
        assert_same(found, WHOLE)
        np.testing.assert_array_equal(found["counts"].values, [[30, 30, 30]])
        assert found["class"].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["npz", "csv", "h5"])
def test_labels_may_be_text(kind, tmp_path):
    save, suffix = KINDS[kind]
    save(tmp_path / f"a{suffix}", features=FEATURES, labels=np.array(["ape", "bee", "cat"])[LABELS])
    found = fc.measure(tmp_path / f"a{suffix}")
    assert_same(found, WHOLE)
    assert found["class"].values.tolist() == ["ape", "bee", "cat"]


def test_a_table_without_titles(tmp_path):
    np.savetxt(tmp_path / "a.csv", FEATURES, delimiter=",")
    np.savetxt(tmp_path / "y.csv", LABELS, fmt="%d")
    assert_same(fc.measure(tmp_path / "a.csv", tmp_path / "y.csv"), {"cdnv": WHOLE["cdnv"]})


def test_labels_and_classifier_from_elsewhere(tmp_path):
    np.save(tmp_path / "h.npy", FEATURES.reshape(90, 2, 1, 2))
    np.save(tmp_path / "y.npy", LABELS)
    last: dict[str, Any] = {"fc.weight": W, "fc.bias": B}
    np.savez(tmp_path / "last.npz", **last)
    assert_same(fc.measure(tmp_path / "h.npy", tmp_path / "y.npy", classifier=tmp_path / "last.npz"), JUDGED)
    assert_same(fc.measure(tmp_path / "h.npy", LABELS, classifier=(W, B)), JUDGED)
    unbiased = fc.metrics.from_features(FEATURES, LABELS, W)
    assert_same(fc.measure(tmp_path / "h.npy", LABELS, classifier=W), unbiased)


def test_epochs_are_sorted_by_number_and_each_has_its_classifier(tmp_path):
    for epoch in (10, 2, 100):
        np.savez(tmp_path / f"run1_epoch{epoch}.npz", features=FEATURES * epoch, labels=LABELS, W=W + epoch, b=B)
    found = fc.measure(tmp_path.glob("*.npz"), metrics="nc1,nc3,class_distances,nc1_class")
    assert found["epoch"].values.tolist() == [2, 10, 100]
    for epoch in (2, 10, 100):
        expected = fc.metrics.from_features(FEATURES, LABELS, W + epoch, metrics="nc1,nc3,class_distances,nc1_class")
        one = found.sel(epoch=epoch)
        for name in ("nc1", "nc3", "nc1_class"):
            np.testing.assert_allclose(one[name], expected[name], rtol=1e-12)
        np.testing.assert_allclose(one["class_distances"], epoch * expected["class_distances"], rtol=1e-12)
    assert found["class_distances"].dims == ("epoch", "class", "other")
    assert found["nc1"].attrs["long_name"] == METRICS["nc1"].long_name


def test_an_array_epoch_says_when(tmp_path):
    for name, epoch in (("b", 5), ("a", 7)):
        np.savez(tmp_path / f"{name}.npz", features=FEATURES, labels=LABELS, epoch=epoch)
    assert fc.measure(sorted(tmp_path.glob("*.npz")))["epoch"].values.tolist() == [5, 7]


def test_files_without_numbers_are_counted(tmp_path):
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", features=FEATURES, labels=LABELS)
    assert fc.measure(sorted(tmp_path.glob("*.npz")))["epoch"].values.tolist() == [0, 1]


def test_layers_in_one_file_and_in_several(tmp_path):
    """Layers may differ in width, and the classifier reads the last one."""
    np.savez(tmp_path / "all.npz", conv=FEATURES[:, :3], last=FEATURES, labels=LABELS, W=W, b=B)
    np.savez(tmp_path / "conv.npz", features=FEATURES[:, :3], labels=LABELS)
    np.savez(tmp_path / "last.npz", features=FEATURES, labels=LABELS)
    one = fc.measure(tmp_path / "all.npz", by="layer")
    several = fc.measure([tmp_path / "conv.npz", tmp_path / "last.npz"], by="layer", classifier=(W, B))
    first = fc.metrics.from_features(FEATURES[:, :3], LABELS)
    for found in (one, several):
        assert found["layer"].values.tolist() == ["conv", "last"]
        assert found["num_features"].values.tolist() == [3, 4]
        assert_same(found.sel(layer="conv"), first)
        assert_same(found.sel(layer="last"), JUDGED)
        assert np.isnan(found["nc3"].sel(layer="conv"))
    asked = fc.measure(tmp_path / "all.npz", by="layer", metrics="nc1,nc3")
    assert np.isnan(asked["nc3"].values[0])


def test_classes_of_all_files_and_classes_that_a_file_lacks(tmp_path):
    kept = LABELS != 2
    np.savez(tmp_path / "e1.npz", features=FEATURES[kept], labels=LABELS[kept])
    np.savez(tmp_path / "e2.npz", features=FEATURES, labels=LABELS)
    found = fc.measure(sorted(tmp_path.glob("*.npz")))
    np.testing.assert_array_equal(found["counts"], [[30, 30, 0], [30, 30, 30]])
    assert np.isnan(found["nc1_class"].sel({"epoch": 1, "class": 2}))
    assert_same(found.sel(epoch=1), fc.metrics.from_features(FEATURES[kept], LABELS[kept]))


def test_one_pass_and_features_outside(tmp_path):
    np.savez(tmp_path / "a.npz", features=FEATURES, labels=LABELS, W=W, b=B)
    np.save(tmp_path / "ood.npy", FEATURES[:5] + 1)
    found = fc.measure(tmp_path / "a.npz", two_passes=False, ood=tmp_path / "ood.npy")
    assert not {"nc4", "ncc_error"} & set(found.data_vars)
    assert_same(found, fc.metrics.from_features(FEATURES, LABELS, ood=FEATURES[:5] + 1, metrics="nc5"))


# ---- refusals


def write(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


REFUSED = {
    "no file": (lambda d: (d / "none.npz",), ("none.npz", "does not exist")),
    "a pickle": (lambda d: (d / "a.pt",), ("a.pt", "torch.load", "numpy.savez")),
    "another kind": (lambda d: (d / "a.txt",), ("a.txt", ".npz")),
    "nothing": (lambda d: ([],), ("files is empty",)),
    "no path": (lambda d: (3,), ("files", "3")),
    "no labels": (lambda d: (write(d / "a.npz", features=FEATURES),), ("a.npz", "no labels", "features", "--arrays")),
    "no features": (lambda d: (write(d / "a.npz", u=FEATURES, v=FEATURES, labels=LABELS),), ("u, v", "features")),
    "no arrays": (lambda d: (write(d / "a.npz"),), ("no arrays",)),
    "no samples": (lambda d: (write(d / "a.npz", features=FEATURES[:0], labels=LABELS[:0]),), ("a.npz", "samples")),
    "lengths": (lambda d: (write(d / "a.npz", features=FEATURES, labels=LABELS[:-1]),), ("a.npz", "89", "90")),
    "more labels": (lambda d: (write(d / "a.npz", features=FEATURES[:-1], labels=LABELS),), ("a.npz", "90", "89")),
    "NaN": (lambda d: (write(d / "a.npz", features=FEATURES * np.nan, labels=LABELS),), ("a.npz", "NaN")),
    "complex": (lambda d: (write(d / "a.npz", features=FEATURES * 1j, labels=LABELS),), ("a.npz", "complex")),
    "W": (lambda d: (write(d / "a.npz", features=FEATURES, labels=LABELS, W=W.T),), ("a.npz", "W", "transpose")),
    "one class": (lambda d: (write(d / "a.npz", features=FEATURES, labels=LABELS * 0),), ("only [0]", "2 classes")),
    "objects": (
        lambda d: (write(d / "a.npz", features=FEATURES, labels=np.array([{}] * 90)),),
        ("a.npz", "Python objects"),
    ),
    "two names": (lambda d: (write(d / "a.npz", **{"u.x": FEATURES, "v.x": FEATURES, "y": LABELS}),), ("u.x, v.x",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_say_what_to_do(case, tmp_path):
    arguments, words = REFUSED[case]
    with pytest.raises(fc.UsageError) as error:
        fc.measure(*arguments(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_damaged_files_say_so(tmp_path):
    for kind in ("npz", "h5", "parquet", "safetensors"):
        save, suffix = KINDS[kind]
        path = tmp_path / f"a{suffix}"
        save(path, features=np.tile(FEATURES, (50, 1)), labels=np.tile(LABELS, 50))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(fc.UsageError, match="write it again") as error:
            fc.measure(path)
        assert path.name in str(error.value)
    text = tmp_path / "a.csv"
    text.write_text("f0,f1,label\n1,2,0\n1,x,1\n")
    with pytest.raises(fc.UsageError, match="'f1'"):
        fc.measure(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"by": "time"}, ("by", "'epoch'", "'layer'")),
        ({"arrays": {"features": "h"}}, ("'h'", "features, labels")),
        ({"arrays": {"image": "h"}}, ("arrays", "image")),
        ({"labels": LABELS[:5]}, ("labels", "5")),
        ({"classes": range(2)}, ("labels", "2", "classes")),
        ({"metrics": "nc3"}, ("nc3", "classifier")),
        ({"metrics": "nc4", "two_passes": False, "classifier": W}, ("nc4", "update_agreement")),
        ({"two_passes": 1}, ("two_passes", "True or False")),
    ],
)
def test_bad_options_say_what_to_do(options, words, tmp_path):
    path = write(tmp_path / "a.npz", features=FEATURES, labels=LABELS)
    with pytest.raises(fc.UsageError) as error:
        fc.measure(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


# ---- the command


def test_the_command_prints_and_writes(tmp_path, capsys):
    for epoch in (1, 2):
        write(tmp_path / f"e{epoch}.npz", features=FEATURES, labels=LABELS, W=W, b=B)
    files = [str(tmp_path / f"e{epoch}.npz") for epoch in (2, 1)]
    outputs = [str(tmp_path / name) for name in ("out.nc", "out.json", "out.png")]
    assert main(["measure", *files, "--out", outputs[0], "--json", outputs[1], "--plot", outputs[2]]) == 0
    printed = capsys.readouterr().out
    assert "90 samples, 3 classes, 4 features" in printed
    assert f"{WHOLE['nc1']:.4g}" in printed
    told = json.loads(Path(outputs[1]).read_text())
    assert told["epoch"] == [1, 2]
    np.testing.assert_allclose(told["nc3"], JUDGED["nc3"], rtol=1e-12)
    with xr.open_dataset(outputs[0], engine="h5netcdf") as found:
        np.testing.assert_allclose(found["nc1"], WHOLE["nc1"], rtol=1e-12)
    assert main(["plot", outputs[0], "--out", str(tmp_path / "again.svg")]) == 0
    assert (tmp_path / "again.svg").stat().st_size > 10_000
    assert main(["measure", files[0], "--labels", str(tmp_path / "none.npy")]) == 2
    assert main(["measure"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "none.npy does not exist" in errors[0]
    assert "files are missing" in errors[1]


def test_a_measurement_is_drawn_with_a_panel_for_each_property(tmp_path):
    write(tmp_path / "e1.npz", features=FEATURES, labels=LABELS, W=W, b=B)
    found = fc.measure(tmp_path / "e1.npz")
    axes = fc.plot.measurement(found)
    assert [ax.get_title()[:3] for ax in axes] == ["NC1", "NC2", "NC3", "NC4"]
    for ax in axes:
        for line in ax.lines:
            np.testing.assert_allclose(line.get_ydata(), found[line.get_label()])
        styles = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in ax.lines}
        assert len(styles) == len(ax.lines)
    (one,) = fc.plot.measurement(found, name="gnc2_riesz")
    np.testing.assert_allclose(one.lines[0].get_ydata(), found["gnc2_riesz"])
    with pytest.raises(fc.UsageError, match=r"fc\.plot\.measurement"):
        fc.plot.path(found)
    with pytest.raises(fc.UsageError, match="'nc9'"):
        fc.plot.measurement(found, name="nc9")


@pytest.mark.parametrize(("suffix", "package"), [(".parquet", "pyarrow"), (".safetensors", "safetensors")])
def test_a_missing_package_is_named_with_its_extra(suffix, package, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, package, None)  # imports fail
    monkeypatch.delitem(sys.modules, f"{package}.parquet", raising=False)
    with pytest.raises(fc.UsageError, match=rf"{package}.*flowcollapse\[files\]"):
        fc.measure(path)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_batches_of_torch_and_jax_are_read_as_they_are(dtype):
    """Tensors that record gradients, in any precision: the sums are those of the numbers that they hold."""
    rounded = np.round(4 * FEATURES) / 4  # numbers that bfloat16 holds exactly
    expected = fc.metrics.from_features(rounded, LABELS, metrics="nc1,cdnv,ncc_error")
    kinds = [lambda x: jnp.asarray(x, dtype)]
    if importlib.util.find_spec("torch"):
        torch = importlib.import_module("torch")
        kinds.append(lambda x: torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True))
    for wrap in kinds:
        accumulator = fc.metrics.Accumulator(3)
        for rows in np.array_split(np.arange(90), 7):
            accumulator.update(wrap(rounded[rows]), LABELS[rows])
        for rows in np.array_split(np.arange(90), 7):
            accumulator.update_agreement(wrap(rounded[rows]), LABELS[rows])
        found = accumulator.result(metrics=list(expected))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)

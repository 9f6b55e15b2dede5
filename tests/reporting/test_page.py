"""Pages: which numbers they hold, that text stays text, and which results are refused."""

import html
import json
import re
from typing import Any

import numpy as np
import pytest
import xarray as xr

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.endings.verdict import Verdict
from flowcollapse.reporting import data
from flowcollapse.reporting.data import page_data
from flowcollapse.reporting.page import page
from flowcollapse.results.labels import attributes
from flowcollapse.results.provenance import provenance

EPS = np.array([1e-1, 1e-2, 1e-3])
MODEL = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)


def made(seeds=5, times=4, eps=EPS, rates=(), metrics=("snc1", "risk"), **more):
    """A sweep with known numbers: a metric is eps^2 (1 + seed/10) e^(-time) times the rate, if there are rates."""
    shape = [len(rates)] * bool(rates) + [len(eps), seeds, times]
    axes = (*(["learning_rate"] * bool(rates)), "eps", "seed")
    base = eps[:, None, None] ** 2 * (1 + np.arange(seeds)[:, None] / 10) * np.exp(-np.arange(times))
    values = np.broadcast_to(base if not rates else base * np.array(rates)[:, None, None, None], shape).copy()
    lanes = shape[:-1]
    variables: dict[str, Any] = {name: ((*axes, "time"), values.copy(), attributes(name)) for name in metrics}
    variables["steps_evaluations"] = (axes, np.arange(np.prod(lanes)).reshape(lanes), {})
    variables["verdict"] = (axes, np.zeros(lanes, np.int8), attributes("verdict"))
    coords = {"eps": eps, "seed": np.arange(seeds), "time": np.arange(times, dtype=float)}
    coords |= {"learning_rate": list(rates)} if rates else {}
    method = fc.Descent("sgd", 10, learning_rate=0.1) if rates else fc.Flow()
    return xr.Dataset(variables, coords, provenance(MODEL, method, start="sphere", **more))


def text_of(source):
    """The visible text of a page."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", source, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def test_curves_are_quantiles_over_the_seeds():
    dataset = made()
    found = page_data(dataset)
    assert found["x"] == [[0.0, 1.0, 2.0, 3.0]]
    for i, eps in enumerate(EPS):
        rows = np.array(found["curves"]["snc1"][i])
        wanted = np.quantile(dataset["snc1"].sel(eps=eps).values, (0.05, 0.5, 0.95), axis=0)
        np.testing.assert_allclose(rows, wanted, rtol=0.6e-3)  # four digits
        np.testing.assert_allclose(found["points"]["snc1"][i], dataset["snc1"].values[i, :, -1], rtol=0.6e-3)


def test_fitted_and_predicted_powers_are_those_of_the_plots():
    found = page_data(made())
    fitted, predicted = found["laws"]["snc1"][0]
    assert fitted["text"] == "fitted power 2.000"
    assert predicted["text"] == "predicted power 2"
    assert len(found["laws"]["risk"][0]) == 2
    assert found["laws"]["risk"][0][1]["text"] == "predicted power 4"
    slope = np.diff(np.log(predicted["y"])) / np.diff(np.log(predicted["x"]))
    np.testing.assert_allclose(slope, 2.0, atol=2e-3)


def test_no_power_is_predicted_for_an_optimizer_that_leaves_the_flow():
    dataset = made(rates=(0.1, 0.2))
    assert len(page_data(dataset)["laws"]["snc1"][0]) == 2
    other = dataset.assign_attrs(provenance(MODEL, fc.Descent("adam", 10, learning_rate=0.1)))
    assert len(page_data(other)["laws"]["snc1"][0]) == 1


def test_runs_that_are_missing_or_failed_are_left_out_of_curves_and_listed():
    dataset = made()
    dataset["snc1"].values[1, 2] = np.nan
    dataset["verdict"].values[1, 2] = Verdict.non_finite
    dataset["snc1"].values[2, 4] = np.nan
    dataset["verdict"].values[2, 4] = -1
    found = page_data(dataset)
    wanted = np.quantile(np.delete(dataset["snc1"].values[1], 2, axis=0), 0.5, axis=0)
    np.testing.assert_allclose(found["curves"]["snc1"][1][1], wanted, rtol=0.6e-3)
    assert found["points"]["snc1"][1][2] is None
    shown = page(dataset)
    assert 'data-lane="1,2"' in shown.split("Failed runs")[1].split("Slowest runs")[0]
    words = text_of(shown)
    assert "missing: not run yet" in words
    assert "15 runs (3 eps × 5 seed): 1 missing, 13 plateau, 1 non finite." in words


def test_the_slowest_runs_come_first():
    rows = re.findall(r'data-lane="([\d,]+)"', page(made()).split("Slowest runs")[1])
    assert rows[:3] == ["2,4", "2,3", "2,2"]
    assert len(rows) == 15


def test_a_variable_that_lacks_an_axis_holds_for_all_its_values():
    dataset = made(rates=(0.1, 0.2))
    dataset["snc2"] = ("eps", "seed", "time"), dataset["snc1"].values[0]
    dataset["steps_evaluations"] = dataset["steps_evaluations"].isel(learning_rate=0, drop=True)
    found = page_data(dataset)
    assert found["points"]["snc2"][0] == found["points"]["snc2"][3] == found["points"]["snc1"][0]
    assert found["curves"]["snc2"][3:] == found["curves"]["snc1"][:3]
    assert re.findall(r'data-lane="([\d,]+)"', page(dataset).split("Slowest runs")[1])[:2] == ["0,2,4", "1,2,4"]


def test_runs_selected_from_a_sweep_keep_their_axes():
    dataset = made()
    shown = page(dataset.sel(eps=1e-2))
    assert "5 runs (1 eps × 5 seed)" in text_of(shown)
    block = re.search(r'id="data">(.*?)</script>', page(dataset.isel(eps=1, seed=3)), re.DOTALL)
    assert block is not None
    found = json.loads(block[1])
    assert (found["axes"][0]["values"], found["seeds"]) == (["0.01"], ["3"])
    assert found["rerun"]["axes"] == {"eps": ["--eps 0.01"], "seed": ["--seed 3"]}


def test_text_of_the_file_stays_text():
    attack = '<script>document.title = "taken"</script><img src=x onerror="document.title=1">'
    dataset = made(note=attack)
    dataset["snc1"].attrs["long_name"] = attack
    source = page(dataset)
    assert attack in text_of(source)
    assert source.count("<script") == 3  # the numbers, the library and the script of the page
    assert "<img" not in source.split("</style>")[1].split("<script")[0]


def test_the_numbers_of_the_page_are_json():
    dataset = made()
    dataset["snc1"].values[0, 0] = np.inf
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(dataset), re.DOTALL)
    assert block is not None
    assert json.loads(block[1])["axes"][0]["values"] == ["0.1", "0.01", "0.001"]


def test_large_sweeps_are_thinned_and_say_so(monkeypatch):
    monkeypatch.setattr(data, "MOST_CURVES", 600)
    monkeypatch.setattr(data, "MOST_POINTS", 60)
    dataset = made(seeds=9, times=101)
    found = page_data(dataset)
    notes = " ".join(found["notes"])
    assert "Curves show 33 of 101 times." in notes
    assert "Points show the first 6 of 9 seeds" in notes
    assert (found["x"][0][0], found["x"][0][-1]) == (0.0, 100.0)
    monkeypatch.setattr(data, "MOST_CURVES", 60)
    found = page_data(dataset)
    assert "without bands" in " ".join(found["notes"])
    assert list(found["curves"]) == ["snc1"]
    assert "Curves of risk are left out" in " ".join(found["notes"])


def test_runs_and_measurements_have_pages(tmp_path, capsys):
    dataset = made()
    run = dataset.isel(eps=0, seed=0).drop_vars(["eps", "seed"])
    fc.report(run, tmp_path / "run.html")
    words = text_of((tmp_path / "run.html").read_text(encoding="utf-8"))
    assert "snc1" in words.split("At the end")[1]
    measured = xr.Dataset({"nc1": ("epoch", [1.0, 0.1]), "nc3": ("epoch", [1.0, 0.5])}, {"epoch": [1, 2]})
    assert page_data(measured)["x"] == [[1.0, 2.0]]
    measured.to_netcdf(tmp_path / "measured.nc", engine="h5netcdf")
    assert cli.main(["report", str(tmp_path / "measured.nc"), "--out", str(tmp_path / "measured.html")]) == 0
    assert "Wrote" in capsys.readouterr().out
    assert "Over epochs" in text_of((tmp_path / "measured.html").read_text(encoding="utf-8"))


def test_a_picture_of_the_gallery_has_a_page_with_its_laws(tmp_path):
    data = fc.gallery.run("order-of-learning")
    fc.report(data, tmp_path / "picture.html")
    source = (tmp_path / "picture.html").read_text(encoding="utf-8")
    assert '<img alt="The order of learning' in source
    assert "<script" not in source
    laws = text_of(source).split("Laws")[1].split("Configuration")[0]
    assert laws.count("holds") == 4
    assert f"{float(data['predicted_time'][0]):.6g}" in laws


@pytest.mark.parametrize(
    ("results", "file", "part"),
    [
        (xr.Dataset({"x": 1.0}), "a.html", "hold no run, sweep"),
        (5, "a.html", "pass an xarray.Dataset"),
        ("missing.nc", "a.html", "does not exist"),
        (None, "a.png", "does not end in .html"),
    ],
    ids=["no metrics", "a number", "no file", "suffix"],
)
def test_bad_input_is_refused_and_nothing_is_written(results, file, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fc.UsageError, match=re.escape(part)):
        fc.report(made() if results is None else results, file)
    assert list(tmp_path.iterdir()) == []


def test_without_plotly_the_message_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    made().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert cli.main(["report", str(tmp_path / "a.nc"), "--out", str(tmp_path / "a.html")]) == 2
    assert "flowcollapse[report]" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()

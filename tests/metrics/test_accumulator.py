"""The accumulator: one pass in batches finds what all samples at once give, and merging is a union."""

import json
from typing import Any

import numpy as np
import pytest
from digits import digits

import flowcollapse as fc
from flowcollapse.metrics import Accumulator
from flowcollapse.metrics.registry import METRICS

EPS = float(np.finfo(float).eps)
ALL = [name for name, metric in METRICS.items() if metric.of_features is not None]


def data(C=5, p=8, n=300, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(C), rng.integers(0, C, n)])
    features = offset + rng.normal(size=(len(labels), p)) + 2 * rng.normal(size=(C, p))[labels]
    return features, labels, rng.normal(size=(C, p)), rng.normal(size=C), rng.normal(size=(11, p)) + 1


def streamed(features, labels, W, b, ood, size, C=5, **options) -> Accumulator:
    """Both passes in batches of this size."""
    accumulator = Accumulator(C, **options)
    starts = range(0, len(labels), size)
    for i in starts:
        accumulator.update(features[i : i + size], labels[i : i + size])
    accumulator.update_ood(ood[:4]).update_ood(ood[4:])
    for i in starts:
        accumulator.update_agreement(features[i : i + size], labels[i : i + size], W, b)
    return accumulator


def assert_same(found, expected, rtol=1e-12, atol=1e-14):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_batches_give_what_all_samples_give_in_any_order(size):
    features, labels, W, b, ood = data()
    expected = fc.metrics.from_features(features, labels, W, b, ood=ood, metrics=ALL)
    order = np.random.default_rng(size).permutation(len(labels))
    for rows in (slice(None), order, np.argsort(labels, kind="stable")):
        found = streamed(features[rows], labels[rows], W, b, ood, size)
        assert_same(found.result(W, b, metrics=ALL), expected)
        assert found.result().keys() == fc.metrics.from_features(features, labels, W, b, ood=ood).keys()


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_a_large_common_offset_costs_its_own_digits_alone(offset):
    """Features of size `offset` are rounded to `offset eps`, about means of size 1; sums of squares would lose them."""
    features, labels, W, b, ood = data(offset=offset)
    expected = fc.metrics.from_features(features - offset, labels, W, metrics="nc1,cdnv,nc1_trace,gnc2_log")
    found = streamed(features, labels, W, b, ood, 13).result(W, b, metrics=list(expected))
    assert_same(found, expected, rtol=100 * offset * EPS)


def test_an_outlier_first_costs_no_digits():
    """NC1 divides by the squares of the class means' singular values, and the outlier moves one mean by 1e4."""
    features, labels, W, b, ood = data()
    features[0] += 1e6
    for names, rtol in (("cdnv,nc1_trace", 1e-12), ("nc1", 1e8 * 100 * EPS)):
        expected = fc.metrics.from_features(features, labels, metrics=names)
        assert_same(streamed(features, labels, W, b, ood, 3).result(metrics=names), expected, rtol=rtol)


def test_merging_is_associative_and_the_union():
    features, labels, *_ = data()
    parts = [Accumulator(5).update(features[i::3], labels[i::3]) for i in range(3)]
    one, two, three = parts
    expected = fc.metrics.from_features(features, labels, metrics="nc1,cdnv,gnc2_riesz_cv,effective_rank_features")
    for merged in (one.merge(two).merge(three), one.merge(two.merge(three)), three.merge(one).merge(two)):
        assert_same(merged.result(metrics=list(expected)), expected)
        np.testing.assert_array_equal(merged.counts, np.bincount(labels))
    assert [part.num_samples for part in parts] == [len(labels[i::3]) for i in range(3)]  # the parts stay as they are


def test_the_empty_accumulator_is_neutral():
    features, labels, *_ = data()
    full = Accumulator(5).update(features, labels)
    for merged in (full.merge(Accumulator(5)), Accumulator(5).merge(full), full.merge(Accumulator(5, num_features=8))):
        assert merged.result() == full.result()


def test_two_passes_in_several_processes(tmp_path):
    features, labels, W, b, _ = data()
    expected = fc.metrics.from_features(features, labels, W, b)
    halves = [(features[i::2], labels[i::2]) for i in range(2)]
    first = [Accumulator(5).update(*half) for half in halves]
    first[0].merge(first[1]).save(tmp_path / "first.npz")
    second = [Accumulator.load(tmp_path / "first.npz").update_agreement(*half, W, b) for half in halves]
    assert_same(second[0].merge(second[1]).result(), expected)
    with pytest.raises(fc.UsageError, match="different means"):
        second[0].merge(first[1])
    other = Accumulator.load(tmp_path / "first.npz").update_agreement(*halves[0], W, b + 1)
    with pytest.raises(fc.UsageError, match="W or b"):
        second[0].merge(other)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    features, labels, W, b, ood = data()
    names = np.array([f"class {c}" for c in labels], object)
    names[3] = None
    classes = [f"class {c}" for c in range(5)]
    accumulator = Accumulator(classes=classes, ignore_label=float("nan")).update(features, names).update_ood(ood)
    accumulator.update_agreement(features, names, W, b).save(tmp_path / "new folder" / "a.npz")
    found = Accumulator.load(tmp_path / "new folder" / "a.npz")
    assert found.result() == accumulator.result()
    assert found.classes == tuple(classes)
    assert repr(found) == repr(accumulator) == "Accumulator(304 samples of 5 classes, 8 features)"
    Accumulator(3).save(tmp_path / "empty.npz")
    assert Accumulator.load(tmp_path / "empty.npz").num_samples == 0


def test_damaged_files_and_others_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    Accumulator(5).update(*data()[:2]).save(path)
    whole = path.read_bytes()
    arrays: dict[str, Any] = dict(np.load(path))
    said = json.loads(str(arrays["description"]))

    def saved(**changed: Any) -> None:
        whole: dict[str, Any] = arrays | changed
        np.savez(path, **{name: value for name, value in whole.items() if value is not None})

    damaged = {
        "cut": lambda: path.write_bytes(whole[: len(whole) // 2]),
        "no archive": lambda: path.write_bytes(b"x" * 100),
        "another": lambda: np.savez(path, features=np.ones(3)),
        "means lost": lambda: saved(means=None),
        "counts negative": lambda: saved(counts=-arrays["counts"]),
        "shapes differ": lambda: saved(squares=np.ones(3)),
        "classes differ": lambda: saved(description=json.dumps(said | {"classes": [0, 1]})),
        "NaN": lambda: saved(scatter=arrays["scatter"] * np.nan),
        "objects": lambda: saved(agreement=np.array([{}], object)),
        "later version": lambda: saved(description=json.dumps(said | {"accumulator": 99})),
    }
    for kind, write in damaged.items():
        write()
        with pytest.raises(fc.UsageError) as error:
            Accumulator.load(path)
        assert "damaged" in str(error.value), kind
    with pytest.raises(fc.UsageError, match="does not exist"):
        Accumulator.load(tmp_path / "none.npz")
    for call in (Accumulator.load, Accumulator(2).save):
        with pytest.raises(fc.UsageError, match=r"\.npz"):
            call(tmp_path / "a.pt")


def test_without_the_scatter_there_is_all_but_what_needs_it():
    features, labels, W, b, ood = data()
    whole = streamed(features, labels, W, b, ood, 50).result(W, b)
    found = streamed(features, labels, W, b, ood, 50, scatter=False).result(W, b)
    assert whole.keys() - found.keys() == {"nc1"}
    assert_same(found, {name: whole[name] for name in found})
    with pytest.raises(fc.UsageError, match=r"'nc1'.*scatter=True"):
        Accumulator(5, scatter=False).update(features, labels).result(metrics="nc1")


def test_classes_that_occur_once_or_never():
    """Like `from_features`: means of classes that occur, and the rows of W of all."""
    features, labels, W, b, _ = data()
    kept = (labels != 2) & ((labels != 4) | (np.arange(len(labels)) == 4))  # one sample of class 4, none of class 2
    expected = fc.metrics.from_features(
        features[kept], labels[kept], W, b, classes=range(5), metrics=[*ALL[:3], "cdnv"]
    )
    accumulator = Accumulator(5).update(features[kept], labels[kept])
    assert_same(accumulator.result(W, b, metrics=list(expected)), expected)
    assert accumulator.counts[2] == 0
    assert accumulator.counts[4] == 1
    assert np.isnan(accumulator.means[2]).all()
    np.testing.assert_allclose(accumulator.means[4], features[4], rtol=1e-14)


def test_labels_of_any_kind_and_ignored_ones():
    features, labels, *_ = data()
    texts = np.array(list("abcde"))[labels]
    expected = Accumulator(5).update(features, labels).result()
    assert Accumulator(classes=list("abcde")).update(features, texts).result() == expected
    marked = np.concatenate([labels, [-100, -1]])
    more = np.concatenate([features, np.full((2, 8), np.nan)])
    assert Accumulator(5, ignore_label=(-1, -100)).update(more, marked).result() == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "list", "maps"])
def test_features_of_any_type_are_summed_in_float64(dtype):
    features, labels, *_ = data()
    rounded = np.clip(np.round(8 * features) + 60, 0, 255)  # numbers that all these types hold
    expected = Accumulator(5).update(rounded, labels).result()
    wrapped = {"list": rounded.tolist(), "maps": rounded.reshape(-1, 2, 2, 2)}.get(dtype)
    found = Accumulator(5).update(rounded.astype(dtype) if wrapped is None else wrapped, labels).result()
    assert_same(found, expected, rtol=1e-13)


def test_batches_of_one_and_of_none():
    features, labels, *_ = data(n=20)
    accumulator = Accumulator(5)
    for h, c in zip(features, labels, strict=True):
        accumulator.update(h[None], [c]).update(features[:0], labels[:0])
    found = accumulator.result()
    assert_same(found, fc.metrics.from_features(features, labels, metrics=list(found)))


def test_the_digits_network_in_batches():
    features, labels, W, b, mirrored = digits()
    expected = fc.metrics.from_features(features, labels, W, b, ood=mirrored)
    assert_same(streamed(features, labels, W, b, mirrored, 100, C=10).result(), expected, rtol=1e-11)


def test_a_refused_batch_leaves_nothing_behind():
    features, labels, *_ = data()
    accumulator = Accumulator(5)
    broken = features.copy()
    broken[200, 3] = np.nan
    for bad, marks in ((broken, labels), (features, labels + 1), (features * 1e200, labels), (features, labels[:-1])):
        with pytest.raises(fc.UsageError):
            accumulator.update(bad, marks)
        assert accumulator.num_samples == 0
    accumulator.update(features[:, :3], labels)  # not even the number of features
    assert accumulator.num_samples == len(labels)


def test_a_refused_large_batch_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr("flowcollapse.metrics.moments.BLOCK", 80)
    features, labels, *_ = data()
    accumulator = Accumulator(5).update(features, labels)
    before = accumulator.result()
    assert_same(before, fc.metrics.from_features(features, labels, metrics=list(before)))
    broken = features.copy()
    broken[200, 3] = np.inf
    with pytest.raises(fc.UsageError, match="row 200"):
        accumulator.update(broken, labels)
    assert accumulator.result() == before


FEATURES, LABELS, W, B, OOD = data()


def frozen() -> Accumulator:
    return Accumulator(5).update(FEATURES, LABELS).update_agreement(FEATURES, LABELS, W, B)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Accumulator(), ("num_classes", "classes", "neither")),
        (lambda: Accumulator(3, classes=range(3)), ("num_classes", "both")),
        (lambda: Accumulator(1), ("num_classes", "1")),
        (lambda: Accumulator(classes=["a"]), ("classes", "at least 2")),
        (lambda: Accumulator(classes=3), ("classes", "list")),
        (lambda: Accumulator(3, scatter=1), ("scatter", "True or False")),
        (lambda: Accumulator(3, num_features=0), ("num_features", "0")),
        (lambda: Accumulator(5).result(), ("no samples", "update")),
        (lambda: Accumulator(5).update(FEATURES, LABELS[:-1]), ("labels", "304")),
        (lambda: Accumulator(4).update(FEATURES, LABELS), ("labels", "4", "classes")),
        (lambda: Accumulator(5).update(FEATURES[0], LABELS), ("features", "(8,)")),
        (lambda: Accumulator(5, num_features=9).update(FEATURES, LABELS), ("features", "8", "9")),
        (lambda: Accumulator(5).update(FEATURES[:4], LABELS[:4] * 0).result(), ("1 class", "at least 2")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(W.T), ("W", "(8, 5)", "transpose")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(W, B[:2]), ("b", "(2,)")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(b=B), ("b", "without W")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(metrics="nc4"), ("nc4", "pass W")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(W, metrics="nc4"), ("nc4", "update_agreement")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(metrics="nc5"), ("nc5", "update_ood")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(metrics="risk"), ("risk", "run of the model")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).result(metrics="nc9"), ("nc9", "not known")),
        (lambda: Accumulator(5).update_agreement(FEATURES, LABELS), ("no samples", "update")),
        (lambda: Accumulator(5).update(FEATURES, LABELS).update_ood(FEATURES[:, :3]), ("ood", "8 columns")),
        (lambda: Accumulator(5).update_ood(FEATURES[:0]), ("ood", "at least one row")),
        (lambda: Accumulator(5).update_ood(FEATURES * np.nan), ("ood", "NaN")),
        (lambda: frozen().update(FEATURES, LABELS), ("update_agreement", "finish")),
        (lambda: frozen().update_agreement(FEATURES, LABELS, W), ("W or b", "same")),
        (lambda: frozen().update_agreement(FEATURES * np.nan, LABELS, W, B), ("NaN", "row 0")),
        (lambda: frozen().result(W), ("W or b", "same")),
        (lambda: Accumulator(5).merge(3), ("other", "3")),
        (lambda: Accumulator(5).merge(Accumulator(4)), ("classes", "alike")),
        (lambda: Accumulator(5).merge(Accumulator(5, scatter=False)), ("scatter", "alike")),
        (lambda: Accumulator(5, num_features=2).merge(Accumulator(5, num_features=3)), ("2", "3", "one layer")),
    ],
)
def test_bad_input_says_what_to_do(call, words):
    with pytest.raises(fc.UsageError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_many_classes_and_features_stay_in_memory():
    """C = 1000 and p = 2048: the scatter takes 34 MB, one matrix of each class would take 34 GB."""
    rng = np.random.default_rng(0)
    accumulator = Accumulator(1000)
    for _ in range(2):
        labels = np.concatenate([np.arange(1000), rng.integers(0, 1000, 500)])
        accumulator.update(rng.standard_normal((1500, 2048), np.float32), labels)
    moments = accumulator._moments
    assert moments is not None
    assert sum(array.nbytes for array in moments.arrays().values()) < 2**26
    assert 0.4 < accumulator.result(metrics="nc1_trace")["nc1_trace"] < 4

"""Labels and classifiers of `from_features`: which samples are used, and which row of W belongs to which class."""

import numpy as np
import pandas as pd
import pytest
from formulas import of_features

import flowcollapse as fc
from flowcollapse.metrics import features as features_module
from flowcollapse.metrics.class_labels import Labels

C, P, ROWS = 12, 5, 60
RNG = np.random.default_rng(6)
LABELS = np.arange(ROWS) % C
FEATURES = RNG.normal(size=(ROWS, P)) + 3 * RNG.normal(size=(C, P))[LABELS]
W, B = RNG.normal(size=(C, P)), RNG.normal(size=C)
WANTED = of_features(FEATURES, LABELS, W, B)
TEXTS = [str(c) for c in range(C)]


def assert_same(found, wanted, names=None):
    for name in names or wanted:
        # The reference uses the pseudo-inverse of a covariance, which loses the squared condition number of the means.
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-9, atol=1e-13, err_msg=name)


def with_a_missing_sample(value):
    """The labels with one more sample, whose label is missing and whose features are far from all others."""
    kind = np.float64 if isinstance(value, float) else object if value is None or value is pd.NA else np.int64
    return np.vstack([FEATURES, np.full(P, 1e3)]), np.append(LABELS.astype(kind), np.array([value], kind))


FORMS = {
    "int8": LABELS.astype(np.int8),
    "unsigned": LABELS.astype(np.uint64),
    "whole floats": LABELS.astype(np.float32),
    "list": LABELS.tolist(),
    "objects": LABELS.astype(object),
    "gaps": 7 * LABELS - 3,
    "Series": pd.Series(LABELS, index=np.arange(ROWS)[::-1]),
    "nullable Series": pd.Series(LABELS, dtype="Int64"),
    "categories in order": pd.Categorical([TEXTS[c] for c in LABELS], categories=TEXTS),
    "Series of categories": pd.Series(pd.Categorical([TEXTS[c] for c in LABELS], categories=TEXTS)),
    "texts that sort as numbers do": [f"{c:02d}" for c in LABELS],
    "bytes": np.array([f"{c:02d}".encode() for c in LABELS]),
    "masked, with nothing masked": np.ma.masked_array(LABELS, mask=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_any_form_name_the_same_classes(form):
    assert_same(fc.metrics.from_features(FEATURES, FORMS[form], W, B), WANTED)


def test_digits_as_text_follow_the_classes_given():
    texts = [TEXTS[c] for c in LABELS]
    assert sorted(TEXTS) != TEXTS
    assert_same(fc.metrics.from_features(FEATURES, texts, W, B, classes=TEXTS), WANTED)
    names = ["nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "cdnv"]
    assert_same(fc.metrics.from_features(FEATURES, texts), WANTED, names)  # without W the order does not matter
    for labels in (texts, [f"class {c}" for c in LABELS], ["1.0" if c == 1 else TEXTS[c] for c in LABELS]):
        with pytest.raises(fc.UsageError, match=r"labels.*text.*classes="):
            fc.metrics.from_features(FEATURES, labels, W, B)


def test_the_order_of_classes_is_the_order_of_the_rows_of_W():
    order = np.random.default_rng(7).permutation(C)
    found = fc.metrics.from_features(FEATURES, LABELS, W[order], B[order], classes=order)
    assert_same(found, WANTED)


def test_a_batch_that_lacks_classes_is_measured_over_those_that_occur():
    lacking = np.isin(LABELS, (0, 4, C - 1))
    features, labels = FEATURES[~lacking], LABELS[~lacking]
    found = fc.metrics.from_features(features, labels, W, B, classes=range(C))
    occurring, codes = np.unique(labels, return_inverse=True)
    among = of_features(features, codes, W[occurring], B[occurring])
    assert_same(found, among, [name for name in among if not name.endswith("_w") and name != "nc4"])
    assert_same(found, WANTED, ["nc2_norm_w", "nc2_angle_w", "nc2_etf_w"])
    means = np.array([features[labels == c].mean(axis=0) for c in occurring])
    nearest = occurring[np.argmin(np.linalg.norm(features[:, None] - means, axis=2), axis=1)]
    assert_same(found, {"nc4": np.mean(nearest != np.argmax(features @ W.T + B, axis=1))})


@pytest.mark.parametrize("value", [np.nan, None, pd.NA, -1, -100, -7])
def test_samples_that_do_not_count_are_left_out(value):
    features, labels = with_a_missing_sample(value)
    missing = value is None or value is pd.NA or np.isnan(value)
    ignored = np.nan if missing else value
    for ignore_label in (ignored, [-55, ignored]):
        assert_same(fc.metrics.from_features(features, labels, W, B, ignore_label=ignore_label), WANTED)
    features = np.where(features == 1e3, np.nan, features)  # ignored samples are not read
    assert_same(
        fc.metrics.from_features(np.where(features == 1e3, np.nan, features), labels, W, B, ignore_label=ignored),
        WANTED,
    )


MARKS = [np.nan, None, pd.NA, -1, -100]


@pytest.mark.parametrize("value", MARKS)
def test_samples_that_may_not_count_are_refused_with_both_cures(value):
    features, labels = with_a_missing_sample(value)
    with pytest.raises(fc.UsageError, match=r"labels.*ignore_label="):
        fc.metrics.from_features(features, labels)
    if not isinstance(value, int):
        with pytest.raises(fc.UsageError, match=r"missing.*1 of 61 rows.*row 60"):
            fc.metrics.from_features(features, labels.tolist())


def test_minus_one_is_a_class_where_classes_says_so():
    signs = np.where(LABELS % 2 == 0, -1, 1)
    wanted = of_features(FEATURES, (signs + 1) // 2, W[:2], B[:2])
    assert_same(fc.metrics.from_features(FEATURES, signs, W[:2], B[:2], classes=(-1, 1)), wanted)


def nothing_but_labels_that_count(value) -> bool:
    """The law: a sample without a class is refused, or it changes no metric."""
    try:
        found = fc.metrics.from_features(*with_a_missing_sample(value))
    except fc.UsageError:
        return True
    return all(np.isclose(found[name], WANTED[name], rtol=1e-9) for name in found)


def test_the_law_of_missing_labels_fails_where_features_alone_are_checked(monkeypatch):
    assert all(map(nothing_but_labels_that_count, MARKS))

    def unchecked(labels, num_samples, classes, ignore_label, ordered):
        values, codes = np.unique(labels, return_inverse=True)
        return Labels(np.arange(num_samples), codes, tuple(values.tolist()))

    monkeypatch.setattr(features_module, "read_labels", unchecked)
    assert not any(map(nothing_but_labels_that_count, (np.nan, -1, -100)))


ONE_HOT = np.eye(C)[LABELS]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((FEATURES, ONE_HOT), {}, ("labels", "(60, 12)", "np.argmax(labels, axis=1)")),
        ((FEATURES, LABELS[:, None]), {}, ("labels", "(60, 1)", "labels.ravel()")),
        ((FEATURES, LABELS + 0.5), {}, ("labels", "0.5", "integers or text")),
        ((FEATURES, LABELS * 1j), {}, ("labels", "complex128")),
        ((FEATURES, np.where(LABELS == 0, np.inf, LABELS)), {}, ("labels", "inf")),
        ((FEATURES, ["a", 1] * 30), {}, ("labels", "one kind")),
        ((FEATURES, ["a", np.nan] * 30), {}, ("labels", "missing", "ignore_label")),
        ((FEATURES, np.array(["a", np.nan] * 30)), {}, ("labels", "'nan'", "ignore_label")),
        ((FEATURES, [{}] * 60), {}, ("labels", "integers or text")),
        ((FEATURES, np.ma.masked_equal(LABELS, 3)), {}, ("labels", "masked")),
        ((FEATURES, LABELS, W[:5]), {}, ("W", "(5, 5)", "(12, 5)")),
        ((FEATURES, LABELS, W.T), {}, ("W", "(5, 12)", "transpose")),
        ((FEATURES, LABELS % 4, W), {}, ("W", "4 classes", "classes=")),
        ((FEATURES, LABELS, W + np.nan), {}, ("W", "NaN")),
        ((FEATURES, LABELS, W, B + np.inf), {}, ("b", "infinity")),
        ((FEATURES, LABELS, W * 1j), {}, ("W", "complex128")),
        ((FEATURES, LABELS, None, B), {}, ("b", "without W")),
        ((FEATURES, LABELS, W), {"classes": 12}, ("classes", "range(10)")),
        ((FEATURES, LABELS, W), {"classes": "ab"}, ("classes", "'ab'")),
        ((FEATURES, LABELS, W), {"classes": set(range(12))}, ("classes", "order")),
        ((FEATURES, LABELS, W), {"classes": [0, 0, *range(10)]}, ("classes", "twice")),
        ((FEATURES, LABELS, W), {"classes": range(11)}, ("labels", "11", "classes", "ignore_label")),
        ((FEATURES, LABELS, W), {"classes": TEXTS}, ("labels", "numbers", "text")),
        ((FEATURES, LABELS), {"ignore_label": range(12)}, ("labels", "0 classes")),
        ((FEATURES, LABELS), {"ignore_label": 0.5}, ("ignore_label", "0.5")),
        ((FEATURES[:0], LABELS[:0]), {}, ("features", "(0, 5)")),
        ((FEATURES[:, :0], LABELS), {}, ("features", "(60, 0)")),
        ((FEATURES[:, :, None][:, :, :0], LABELS), {}, ("features", "(60, 5, 0)")),
        ((FEATURES * 1j, LABELS), {}, ("features", "complex128")),
        ((FEATURES > 0, LABELS), {}, ("features", "bool")),
        (([[1.0, 2.0], [3.0]], [0, 1]), {}, ("features", "list")),
        ((pd.DataFrame(FEATURES).astype("Float64").mask(FEATURES > 3), LABELS), {}, ("features", "NA")),
        ((np.ma.masked_greater(FEATURES, 3), LABELS), {}, ("features", "masked")),
    ],
)
def test_bad_labels_and_arrays_say_what_to_do(arguments, options, words):
    with pytest.raises(fc.UsageError) as error:
        fc.metrics.from_features(*arguments, **options)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message

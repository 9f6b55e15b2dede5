"""Metrics of real features: the penultimate layer of a small network trained on scikit-learn's bundled digits."""

import numpy as np
import pytest
from formulas import of_features
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import flowcollapse as fc

FEATURES_ONLY = {"nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "cdnv"}
WITH_CLASSIFIER = {"nc2_norm_w", "nc2_angle_w", "nc2_etf_w", "nc3", "nc4"}


def digits_of_unequal_counts():
    """Digits whose class c keeps 30 + 10 c images, in the data set's own order."""
    pixels, labels = load_digits(return_X_y=True)
    rank = np.array([np.sum(labels[:i] == labels[i]) for i in range(len(labels))])
    kept = rank < 30 + 10 * labels
    return pixels[kept] / 16, labels[kept]


# The network stops after a fixed number of epochs on purpose, and scikit-learn warns that it could go on.
@pytest.fixture(scope="module", params=[16, 5], ids=["p=16", "p=5, below C - 1"])
def network(request):
    """Features (samples, p), labels, and the last layer (W, b)."""
    pixels, labels = digits_of_unequal_counts()
    model = MLPClassifier((32, request.param), max_iter=20, learning_rate_init=1e-2, random_state=0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(pixels, labels)
    features = pixels
    for weights, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        features = np.maximum(features @ weights + bias, 0)
    W, b = model.coefs_[-1].T, model.intercepts_[-1]
    predicted = np.argmax(features @ W.T + b, axis=1)
    np.testing.assert_array_equal(predicted, model.predict(pixels))
    return features, labels, W, b


def test_all_metrics_are_their_definitions(network):
    found, expected = fc.metrics.from_features(*network), of_features(*network)
    assert set(found) == FEATURES_ONLY | WITH_CLASSIFIER == set(expected)
    for name, value in expected.items():
        assert isinstance(found[name], float)
        # The pseudo-inverse of a covariance, in the definition, loses the square of the condition of the means.
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


def test_without_a_classifier_only_the_features_are_described(network):
    features, labels, W, b = network
    found, full = fc.metrics.from_features(features, labels), fc.metrics.from_features(features, labels, W, b)
    assert set(found) == FEATURES_ONLY
    for name, value in found.items():
        np.testing.assert_allclose(value, full[name], rtol=1e-12, err_msg=name)


def test_order_of_the_samples_and_names_of_the_classes_do_not_matter(network):
    features, labels, W, b = network
    order = np.random.default_rng(0).permutation(len(labels))
    names = np.array([f"digit {c}" for c in labels])  # sorted as the digits are
    shuffled = fc.metrics.from_features(features[order], names[order], W, b)
    for name, value in fc.metrics.from_features(features, labels, W, b).items():
        np.testing.assert_allclose(shuffled[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


def test_features_in_single_precision_and_in_lists(network):
    """Features that a framework computed in float32 are evaluated in float64, so only their own rounding shows."""
    features, labels, W, b = network
    full = fc.metrics.from_features(features, labels, W, b)
    single = fc.metrics.from_features(features.astype(np.float32), labels.tolist(), W.astype(np.float32).tolist(), b)
    for name in FEATURES_ONLY | WITH_CLASSIFIER - {"nc4"}:
        np.testing.assert_allclose(single[name], full[name], rtol=1e-3 if name == "nc1" else 1e-5, err_msg=name)
    # A sample on the boundary between two classes may change sides.
    assert abs(single["nc4"] - full["nc4"]) <= 2 / len(labels)


def test_a_bias_of_zero_is_the_default(network):
    features, labels, W, _ = network
    expected = of_features(features, labels, W, np.zeros(10))["nc4"]
    np.testing.assert_allclose(fc.metrics.from_features(features, labels, W)["nc4"], expected, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, 2.0], [0, 1]), ("features", "(2,)", "one row a sample")),
        (([["a"], ["b"]], [0, 1]), ("features", "numbers")),
        (([[1.0], [2.0]], [0, 1, 2]), ("labels", "(3,)", "2 rows", "one label a row")),
        (([[1.0], [np.nan]], [0, 1]), ("features", "NaN", "remove")),
        (([[1.0], [2.0]], [7, 7]), ("labels", "1 class", "at least 2")),
        (([[1.0], [2.0]], [0, 1], [[1.0, 2.0]]), ("W", "(1, 2)", "(2, 1)")),
        (([[1.0], [2.0]], [0, 1], [[1.0], [2.0]], [1.0]), ("b", "(1,)", "(2,)")),
    ],
)
def test_bad_input_says_what_to_do(arguments, words):
    with pytest.raises(fc.UsageError) as error:
        fc.metrics.from_features(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message

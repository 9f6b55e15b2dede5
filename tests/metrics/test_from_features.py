"""Metrics of real features: the penultimate layer of a small network trained on scikit-learn's bundled digits."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from formulas import of_features, of_geometry
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import flowcollapse as fc

UNIFORMITY = {"gnc2_log", "gnc2_log_cv", "gnc2_riesz", "gnc2_riesz_cv"}
FEATURES_ONLY = {"nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "cdnv"} | UNIFORMITY
FEATURES_ONLY |= {"nc2_etf_unit_h", "effective_rank_means", "ncc_error"}
WITH_CLASSIFIER = {"nc2_norm_w", "nc2_angle_w", "nc2_etf_w", "nc3", "nc4", "nc2_etf_unit_w", "nc3_etf", "unc3"}


def digits_of_unequal_counts():
    """Digits whose class c keeps 30 + 10 c images, in the order of the data set."""
    pixels, labels = load_digits(return_X_y=True)
    rank = np.array([np.sum(labels[:i] == labels[i]) for i in range(len(labels))])
    kept = rank < 30 + 10 * labels
    return pixels[kept] / 16, labels[kept]


# The network stops after a fixed number of epochs on purpose; scikit-learn warns that it has not converged.
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
    found, (features, labels, W, _) = fc.metrics.from_features(*network), network
    expected = of_features(*network) | of_geometry(features, labels, W, features)
    assert set(found) == FEATURES_ONLY | WITH_CLASSIFIER
    for name, value in expected.items():
        if name not in found:
            continue
        assert isinstance(found[name], float)
        # The definition uses the pseudo-inverse of a covariance, which loses the squared condition number of the means.
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
    names = np.array([f"digit {c}" for c in labels])  # in the same order as the digits
    shuffled = fc.metrics.from_features(features[order], names[order], W, b)
    for name, value in fc.metrics.from_features(features, labels, W, b).items():
        np.testing.assert_allclose(shuffled[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


def test_features_in_single_precision_and_in_lists(network):
    """Features computed in float32 are evaluated in float64, so only the rounding of the features shows."""
    features, labels, W, b = network
    full = fc.metrics.from_features(features, labels, W, b)
    single = fc.metrics.from_features(features.astype(np.float32), labels.tolist(), W.astype(np.float32).tolist(), b)
    for name in (FEATURES_ONLY | WITH_CLASSIFIER) - {"nc4", "ncc_error"}:
        np.testing.assert_allclose(single[name], full[name], rtol=1e-3 if name == "nc1" else 1e-5, err_msg=name)
    # A sample on the boundary between two classes may change sides.
    for name in ("nc4", "ncc_error"):
        assert abs(single[name] - full[name]) <= 2 / len(labels)


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


# ---- arrays of other frameworks


class Tensor:
    """A tensor like those of torch: NumPy can read it only if it is detached, on the CPU, and of a known type."""

    def __init__(self, values, device="cpu", requires_grad=False, dtype="torch.float32"):
        self.values, self.device, self.requires_grad, self.dtype = np.asarray(values), device, requires_grad, dtype

    def detach(self):
        return Tensor(self.values, self.device, False, self.dtype)

    def cpu(self):
        return Tensor(self.values, "cpu", self.requires_grad, self.dtype)

    def float(self):
        return Tensor(self.values, self.device, self.requires_grad, "torch.float32")

    def numpy(self):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


class OnlyNumpy:
    """A tensor that only has `numpy()`, and no array protocol."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("use numpy()")

    def numpy(self):
        return self.values


ROUNDED = np.round(8 * np.random.default_rng(1).normal(size=(30, 4))) / 8  # numbers that bfloat16 holds exactly
CLASSES = np.arange(30) % 3
WEIGHTS, BIAS = np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0.25], [0, 0, 1, 1]]), np.array([0.5, 0.0, -1.0])
KINDS = {
    "gradients": lambda x: Tensor(x, requires_grad=True),
    "another device": lambda x: Tensor(x, device="cuda", requires_grad=True),
    "bfloat16": lambda x: Tensor(x, device="cuda", requires_grad=True, dtype="torch.bfloat16"),
    "numpy() alone": OnlyNumpy,
    "jax bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "jax float16": lambda x: jnp.asarray(x, jnp.float16),
    "float16": lambda x: np.asarray(x, np.float16),
    "long double": lambda x: np.asarray(x, np.longdouble),
    "objects": lambda x: np.asarray(x, object),
    "DataFrame": lambda x: pd.DataFrame(x) if np.ndim(x) == 2 else pd.Series(x),
    "list of tensors": lambda x: [Tensor(row, requires_grad=True) for row in x] if np.ndim(x) == 2 else x,
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_framework_give_the_numbers_that_they_hold(kind):
    wrap = KINDS[kind]
    found = fc.metrics.from_features(wrap(ROUNDED), wrap(CLASSES), wrap(WEIGHTS), wrap(BIAS))
    for name, value in of_features(ROUNDED, CLASSES, WEIGHTS, BIAS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_torch_tensors_that_record_gradients(dtype):
    torch = pytest.importorskip("torch")

    def wrap(x):
        return torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)

    found = fc.metrics.from_features(
        wrap(ROUNDED), torch.tensor(CLASSES), torch.nn.Parameter(wrap(WEIGHTS)), wrap(BIAS)
    )
    for name, value in of_features(ROUNDED, CLASSES, WEIGHTS, BIAS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ("features.npy", ("features", "real numbers")),
        (OnlyNumpy(ROUNDED * 1j), ("features", "complex128")),
        (jax.random.split(jax.random.key(0), 30), ("features", "key")),
        (pd.DataFrame({"a": ["x"] * 30}), ("features", "real numbers", "'x'")),
        (lambda: None, ("features", "real numbers")),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_its_type(features, words):
    with pytest.raises(fc.UsageError) as error:
        fc.metrics.from_features(features, CLASSES)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_traced_features_are_refused_with_the_cure():
    with pytest.raises(fc.UsageError, match=r"features is traced.*outside jax\.jit"):
        jax.jit(lambda x: fc.metrics.from_features(x, CLASSES)["nc1"])(ROUNDED)


# ---- many classes and many samples


def test_many_blocks_of_samples_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr("flowcollapse.metrics.features.BLOCK", 7 * 4)
    found = fc.metrics.from_features(ROUNDED, CLASSES, WEIGHTS, BIAS)
    for name, value in of_features(ROUNDED, CLASSES, WEIGHTS, BIAS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


GROWTH = """
import resource, sys
import jax, numpy as np
import flowcollapse as fc
jax.config.update("jax_enable_x64", True)
C, p, n = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
features, labels, W = rng.standard_normal((n, p), np.float32), np.arange(n) % C, rng.standard_normal((C, p))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
fc.metrics.from_features(features[:40], labels[:40] % 2, W[:2])
before = peak()
fc.metrics.from_features(features, labels, W)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no module resource")
def test_memory_does_not_grow_with_features_times_pairs_of_classes():
    C, p, n = 600, 512, 3000
    found = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, (C, p, n))], capture_output=True, text=True, check=True
    )
    # The differences of all pairs of class means would take p C (C - 1) / 2 numbers: 736 MB.
    assert int(found.stdout) < 0.4 * 8 * p * C * (C - 1) / 2


def test_features_of_a_convolutional_layer_are_flattened():
    maps = ROUNDED.reshape(30, 2, 1, 2)
    found = fc.metrics.from_features(maps, CLASSES, WEIGHTS, BIAS)
    assert found == fc.metrics.from_features(ROUNDED, CLASSES, WEIGHTS, BIAS)

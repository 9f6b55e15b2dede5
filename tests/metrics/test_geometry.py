"""Metrics of uniformity, duality, rank and distance: definitions, exact frames, invariance, and a public package."""

import json
from pathlib import Path

import numpy as np
import pytest
import systems
from digits import digits
from formulas import of_geometry

import flowcollapse as fc
from flowcollapse.metrics.registry import METRICS, usual
from flowcollapse.model.columns import SAMPLES

METRICS_OF_FEATURES = {name: metric for name, metric in METRICS.items() if metric.of_features is not None}
GEOMETRY = tuple(of_geometry(np.eye(3), np.arange(3), np.eye(3), np.eye(3)))
EPS = float(np.finfo(float).eps)


def noisy(C=5, p=8, n=200, seed=0):
    """Features of classes of different sizes, labels, a classifier, and features outside the classes."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(C), np.minimum(rng.integers(0, C, n), rng.integers(0, C, n))])
    features = rng.normal(size=(len(labels), p)) + 3 * rng.normal(size=(C, p))[labels] + 1
    return features, labels, rng.normal(size=(C, p)), rng.normal(size=(7, p)) + 2


@pytest.mark.parametrize("shape", [(5, 8), (9, 4), (2, 3)], ids=str)
def test_definitions(shape):
    features, labels, W, ood = noisy(*shape)
    found = fc.metrics.from_features(features, labels, W, ood=ood, metrics=GEOMETRY)
    for name, value in of_geometry(features, labels, W, ood).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


def test_a_public_package_finds_the_same():
    """Values of the package that is named in the file, for the same features."""
    values = json.loads((Path(__file__).parents[1] / "data" / "digits_values.json").read_text())["values"]
    features, labels, W, _, mirrored = digits()
    found = fc.metrics.from_features(features, labels, W, ood=mirrored, metrics=list(METRICS_OF_FEATURES))
    mean, variance = values["kernel_stats log"]
    products = np.array(values["similarities"])
    lengths = np.array(values["mean_norms"])
    theirs = {
        "nc1": values["covariance_ratio pinv"],
        "nc1_trace": values["covariance_ratio quotient"],
        "cdnv": values["variability_cdnv"],
        "nc2_norm_h": np.std(lengths) / np.mean(lengths),
        "nc2_etf_h": values["simplex_etf_error"],
        "gnc2_log": mean,
        "gnc2_log_cv": np.sqrt(variance) / abs(mean),
        "nc3_etf": values["self_duality_error"],
        "unc3": np.std(products) / np.mean(products),
        "nc4": 1 - values["clf_ncc_agreement"],
        "nc5": values["orthogonality_deviation"],
    }
    for name, value in theirs.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, err_msg=name)


def collapsed(M, repeats=3):
    """Collapsed features with these class means (columns), their labels, and the dual classifier."""
    C = M.shape[1]
    return np.repeat(M.T, repeats, axis=0), np.repeat(np.arange(C), repeats), M.T


@pytest.mark.parametrize(("C", "p"), [(2, 2), (4, 4), (6, 9)])
def test_values_on_the_simplex(C, p):
    rng = np.random.default_rng(C)
    turned = np.linalg.qr(rng.normal(size=(p, C)))[0] @ systems.centring(C)
    orthogonal = turned + np.linalg.svd(turned)[0][:, C - 1 :][:, :1]  # shifted along an axis orthogonal to them
    features, labels, W = collapsed(orthogonal)
    found = fc.metrics.from_features(
        features, labels, W - W.mean(axis=0), metrics=list(METRICS_OF_FEATURES), ood=features
    )
    zero = set(METRICS_OF_FEATURES) - set(stated(C)) - {"nc5", "nc1_class", "class_distances"}
    for name in zero:
        # A residue of C eps in the Gram matrix, over the root of its smallest entries.
        assert abs(found[name]) < 100 * C * EPS**0.5 * EPS**0.5, name
    for name, value in stated(C).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["nc1_class"], 0, atol=1e-28)
    np.testing.assert_allclose(found["class_distances"], 2**0.5 * (1 - np.eye(C)), atol=1e-13)


def stated(C):
    """The values on a simplex that are not 0."""
    return {
        "gnc2_log": -0.5 * np.log(2 * C / (C - 1)),
        "gnc2_riesz": np.sqrt((C - 1) / (2 * C)),
        "effective_rank_means": C - 1,
        "effective_rank_features": C - 1,
    }


@pytest.mark.parametrize("p", [2, 3, 5])
def test_values_on_the_orthoplex(p):
    """Class means `+-e_i`, the best frame for C = 2 p: cosines 0, and -1 for one other class each."""
    C = 2 * p
    features, labels, W = collapsed(np.concatenate([np.eye(p), -np.eye(p)], axis=1))
    found = fc.metrics.from_features(features, labels, W, ood=np.ones((1, p)))
    defect = np.sqrt(2 - 2 * np.sqrt(C / (2 * (C - 1))))
    expected = {
        "nc2_norm_h": 0,
        "nc2_angle_h": 2 * (C - 2) / (C - 1) ** 2,
        "nc2_etf_h": defect,
        "nc2_etf_unit_w": defect,
        "nc3_etf": defect,
        "nc3": 0,
        "unc3": 0,
        "gnc2_log": -np.log(2) / 2 * C / (C - 1),
        "gnc2_riesz": (0.5 + (C - 2) / np.sqrt(2)) / (C - 1),
        "effective_rank_means": p,
        "nc5": 1 / np.sqrt(p),
        "ncc_error": 0,
        "nc1": 0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_rotations_scaling_and_the_order_of_classes_change_nothing():
    features, labels, W, ood = noisy()
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    order = rng.permutation(5)
    base = fc.metrics.from_features(features, labels, W, ood=ood, metrics=list(METRICS_OF_FEATURES))
    turned = fc.metrics.from_features(
        1e-3 * features @ turn,
        order[labels],
        1e3 * W[np.argsort(order)] @ turn,
        ood=7 * ood @ turn,
        metrics=list(METRICS_OF_FEATURES),
    )
    back = np.argsort(order)
    for name, metric in METRICS_OF_FEATURES.items():
        value = np.asarray(base[name])
        for axis in range(len(metric.axes)):
            value = np.take(value, back, axis)
        scale = 1e-3 if name == "class_distances" else 1.0
        np.testing.assert_allclose(turned[name], scale * value, rtol=1e-10, atol=1e-14, err_msg=name)


def test_what_a_run_can_have_is_the_same_for_its_features(paper_model, key):
    """The scalars that are written in JAX are metrics of a run too, if they are requested."""
    state = fc.initial.sphere(paper_model, 1.0, key=key)
    names = [name for name, metric in METRICS_OF_FEATURES.items() if metric.of_model]
    found = fc.metrics.evaluate(paper_model, state, names)
    labels = np.repeat(np.arange(3), 3)
    measured = fc.metrics.from_features(np.asarray(state.H).T, labels, state.W, state.b, metrics=names)
    for name in names:
        np.testing.assert_allclose(found[name], measured[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_runs_have_them_on_request_alone(paper_model, key):
    assert not set(usual(paper_model, SAMPLES)) & set(GEOMETRY)
    with pytest.raises(fc.UsageError, match="from_features"):
        fc.metrics.evaluate(paper_model, fc.initial.sphere(paper_model, 1.0, key=key), ["class_distances"])

"""Geometry of class means, classifier and features beyond NC1 to NC4: uniformity, duality, ranks, distances.

These are the metrics that studies of real networks report. Those that are written in JAX can be requested for runs of
the model too.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..programs import inlined
from .labelled import LabelledFeatures
from .neural_collapse import square_distances
from .view import Measured, Metric, _or_nan, frame_defect


@inlined
def _frame_defect(gram: Float[Array, "C C"]) -> Float[Array, ""]:
    """The defect of a matrix whose trace is no measure of its size."""
    return frame_defect(gram, jnp.max(jnp.abs(gram)))


def _nc3_etf(view: Measured):
    return _frame_defect(view.paired @ view.M)


def _unc3(view: Measured):
    return _variation(jnp.sum(view.paired.T * view.M, axis=0))


@inlined
def _variation(products: Float[Array, " C"]) -> Float[Array, ""]:
    return jnp.std(products) / _or_nan(jnp.abs(jnp.mean(products)))


def _mean_and_variation(pairs: Float[Array, "C C"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean and the coefficient of variation of all entries off the diagonal, whose own entries do not count."""
    C = len(pairs)
    off = 1 - jnp.eye(C, dtype=pairs.dtype)
    mean = jnp.sum(pairs * off) / (C * (C - 1))
    variance = jnp.sum((pairs - mean) ** 2 * off) / (C * (C - 1))
    return mean, jnp.sqrt(variance) / _or_nan(jnp.abs(mean))


def _square_chords(M: Float[Array, "p C"], squares: Float[Array, " C"]) -> Float[Array, "C C"]:
    """Squared distances between the directions of the class means, and 1 on the diagonal."""
    directions = M / _or_nan(jnp.sqrt(squares))
    return square_distances(directions) + jnp.eye(directions.shape[1], dtype=directions.dtype)


@inlined
def _log_energy_of(M: Float[Array, "p C"], squares: Float[Array, " C"]):
    return _mean_and_variation(-0.5 * jnp.log(_square_chords(M, squares)))


@inlined
def _riesz_energy_of(M: Float[Array, "p C"], squares: Float[Array, " C"]):
    return _mean_and_variation(1 / jnp.sqrt(_square_chords(M, squares)))


def _log_energy(view: Measured):
    return _log_energy_of(view.M, view.class_means.squares)


def _riesz_energy(view: Measured):
    return _riesz_energy_of(view.M, view.class_means.squares)


def _nc1_class(view: Measured):
    return view.variances() / view.M_square * view.M.shape[1]


def _class_distances(view: Measured):
    return jnp.sqrt(square_distances(view.M))


def _effective_rank(eigenvalues: Float[np.ndarray, " n"]) -> float:
    """`exp(-sum_i q_i ln q_i)` with the shares q of the eigenvalues; NaN if all vanish."""
    positive = eigenvalues[eigenvalues > 0]
    if not positive.size:
        return float("nan")
    shares = positive / positive.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _effective_rank_means(view: Measured):
    return _effective_rank(np.linalg.eigvalsh(np.asarray(view.class_means.gram)))


def _effective_rank_features(data: LabelledFeatures):
    return _effective_rank(np.linalg.eigvalsh(data.total_scatter()))


def _nc5(data: LabelledFeatures):
    means, outside = data.means, np.asarray(data.outside)
    lengths = np.linalg.norm(means, axis=1) * np.linalg.norm(outside)
    return np.mean(np.abs(means @ outside) / np.where(lengths > 0, lengths, np.nan))


METRICS = {
    "nc2_etf_unit_h": Metric(
        lambda v: _frame_defect(v.class_means.cosines),
        "class means' cosines against the simplex frame",
        on_request=True,
        of_features=(),
    ),
    "nc2_etf_unit_w": Metric(
        lambda v: _frame_defect(v.classifier.cosines),
        "classifier rows' cosines against the simplex frame",
        on_request=True,
        of_features=("classifier",),
    ),
    "gnc2_log": Metric(
        lambda v: _log_energy(v)[0], "logarithmic energy of the class means", on_request=True, of_features=()
    ),
    "gnc2_log_cv": Metric(
        lambda v: _log_energy(v)[1], "variation of the logarithmic energy over pairs", on_request=True, of_features=()
    ),
    "gnc2_riesz": Metric(
        lambda v: _riesz_energy(v)[0], "Riesz energy of the class means", on_request=True, of_features=()
    ),
    "gnc2_riesz_cv": Metric(
        lambda v: _riesz_energy(v)[1], "variation of the Riesz energy over pairs", on_request=True, of_features=()
    ),
    "nc3_etf": Metric(
        _nc3_etf, "classifier times class means against the simplex frame", on_request=True, of_features=("classifier",)
    ),
    "unc3": Metric(_unc3, "uniformity of the duality", on_request=True, of_features=("classifier",)),
    "nc5": Metric(_nc5, "orthogonality to features outside the classes", of_model=False, of_features=("outside",)),
    "ncc_error": Metric(
        lambda data: data.misassigned(), "error of the nearest class mean", of_model=False, of_features=("assigned",)
    ),
    "effective_rank_means": Metric(
        _effective_rank_means, "effective rank of the class means", of_model=False, of_features=()
    ),
    "effective_rank_features": Metric(
        _effective_rank_features,
        "effective rank of the features",
        costly=True,
        of_model=False,
        of_features=("scatter",),
    ),
    "nc1_class": Metric(
        _nc1_class, "within-class variability of each class", of_model=False, of_features=(), axes=("class",)
    ),
    "class_distances": Metric(
        _class_distances, "distances between class means", of_model=False, of_features=(), axes=("class", "other")
    ),
}

"""The collapse metrics as their papers define them, in plain NumPy and sample by sample.

Features are rows here, `(samples, p)`, as in every framework; `labels` are 0 ... C - 1. `mu_c` are the class means,
`mu_G` their unweighted mean, `M = [mu_c - mu_G]`, `S_W` the within-class covariance averaged over all samples and
`S_B = M M^T / C`. References: Papyan, Han and Donoho 2020 (NC1-NC4); Tirer, Huang and Niles-Weed 2023 (the ratio of
traces); Zhu et al. 2021 (the Gram matrix); Galanti, Gyorgy and Hutter 2021 (CDNV); arXiv 2011.11619 (SNC and the
distance to S).
"""

from typing import Any

import numpy as np
import systems
from jaxtyping import Float, Int


def of_features(
    features: Float[np.ndarray, "samples p"],
    labels: Int[np.ndarray, " samples"],
    W: Float[np.ndarray, "C p"],
    b: Float[np.ndarray, " C"],
) -> dict[str, float]:
    """The metrics that exist for any features and a classifier."""
    C = labels.max() + 1
    samples = range(len(labels))
    means = np.array([features[labels == c].mean(axis=0) for c in range(C)])
    M = means - means.mean(axis=0)
    S_W = sum(np.outer(d, d) for d in (features[i] - means[labels[i]] for i in samples)) / len(labels)
    S_B = sum(np.outer(m, m) for m in M) / C

    def variance(c: int) -> float:
        return float(np.mean(np.sum((features[labels == c] - means[c]) ** 2, axis=1)))

    pairs = [(i, j) for i in range(C) for j in range(C) if i != j]
    decided = [np.argmax(W @ features[i] + b) for i in samples]
    nearest = [np.argmin(np.linalg.norm(means - features[i], axis=1)) for i in samples]
    values = {
        "nc1": np.trace(S_W @ np.linalg.pinv(S_B, rcond=1e-10)) / C,
        "nc1_trace": np.trace(S_W) / np.trace(S_B),
        "nc2_norm_h": spread(M),
        "nc2_norm_w": spread(W),
        "nc2_angle_h": angle_defect(M),
        "nc2_angle_w": angle_defect(W),
        "nc2_etf_h": gram_defect(M),
        "nc2_etf_w": gram_defect(W),
        "nc3": np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M)),
        "nc4": np.mean(np.not_equal(decided, nearest)),
        "cdnv": np.mean(
            [(variance(i) + variance(j)) / (2 * np.sum((means[i] - means[j]) ** 2)) for i, j in pairs],
        ),
    }
    return {name: float(value) for name, value in values.items()}


def of_geometry(features, labels, W, ood) -> dict[str, Any]:
    """The metrics of uniformity, duality, ranks and distances, for a network's features.

    References: Liu et al. 2023 (energies of the directions, with the kernels -ln d and 1/d); Wu and Papyan 2024 (their
    spread over pairs, the spread of the duality); Zhu et al. 2021 (the product of classifier and means); Roy and
    Vetterli 2007 (effective rank, here of covariances); Ben Ammar et al. 2024 (NC5).
    """
    C = labels.max() + 1
    means = np.array([features[labels == c].mean(axis=0) for c in range(C)])
    M = means - means.mean(axis=0)
    variances = [np.mean(np.sum((features[labels == c] - means[c]) ** 2, axis=1)) for c in range(C)]
    units, rows = ([v / np.linalg.norm(v) for v in vectors] for vectors in (M, W))
    chords = np.array([np.linalg.norm(units[i] - units[j]) for i in range(C) for j in range(i)])
    paired = np.array([w @ m for w, m in zip(W, M, strict=True)])
    product = W @ M.T
    outside = ood.mean(axis=0)
    nearest = [np.argmin(np.linalg.norm(means - h, axis=1)) for h in features]
    logarithms, inverse = -np.log(chords), 1 / chords
    return {
        "nc2_etf_unit_h": gram_defect(np.array(units)),
        "nc2_etf_unit_w": gram_defect(np.array(rows)),
        "gnc2_log": np.mean(logarithms),
        "gnc2_log_cv": np.std(logarithms) / abs(np.mean(logarithms)),
        "gnc2_riesz": np.mean(inverse),
        "gnc2_riesz_cv": np.std(inverse) / np.mean(inverse),
        "nc3_etf": np.linalg.norm(product / np.linalg.norm(product) - systems.centring(C) / np.sqrt(C - 1)),
        "unc3": np.std(paired) / abs(np.mean(paired)),
        "nc5": np.mean([abs(m @ outside) / np.linalg.norm(m) / np.linalg.norm(outside) for m in means]),
        "ncc_error": np.mean(np.not_equal(nearest, labels)),
        "effective_rank_means": effective_rank(np.cov(M.T)),
        "effective_rank_features": effective_rank(np.cov(features.T)),
        "nc1_class": np.array(variances) / np.mean(np.sum(M**2, axis=1)),
        "class_distances": np.array([[np.linalg.norm(m - n) for n in means] for m in means]),
    }


def effective_rank(covariance) -> float:
    """The exponential of the entropy of the eigenvalues' shares."""
    shares = np.linalg.svd(covariance)[1] / np.trace(covariance)
    return float(np.exp(-sum(q * np.log(q) for q in shares if q > 0)))


def spread(vectors) -> float:
    """Standard deviation of the vectors' lengths, divided by their mean."""
    lengths = np.linalg.norm(vectors, axis=1)
    return float(np.std(lengths) / np.mean(lengths))


def angle_defect(vectors) -> float:
    """Mean over pairs of `|cos + 1/(C - 1)|`."""
    C = len(vectors)
    cosines = [
        vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
        for i in range(C)
        for j in range(i)
    ]
    return float(np.mean(np.abs(np.array(cosines) + 1 / (C - 1))))


def gram_defect(vectors) -> float:
    """`|| V V^T / ||V V^T||_F - P / sqrt(C - 1) ||_F`."""
    C, gram = len(vectors), vectors @ vectors.T
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - systems.centring(C) / np.sqrt(C - 1)))


def of_point(point: systems.Arrays, counts, start: systems.Arrays) -> dict[str, float]:
    """All metrics of a point of the model without decay; SNC and the distance to S for equal counts only."""
    H, W, b = point
    labels = np.repeat(np.arange(len(counts)), counts)
    drift = (W.T @ W - H @ H.T) - (start.W.T @ start.W - start.H @ start.H.T)
    values = of_features(H.T, labels, W, b) | {
        "risk": float(systems.risk(point, counts)),
        "grad_norm": float(np.sqrt(sum(np.sum(part**2) for part in systems.velocity(point, counts)))),
        "balancedness": float(np.linalg.norm(drift) / np.sum(start.H**2)),
    }
    if len(set(counts)) > 1:
        return values
    (C, p), N = W.shape, counts[0]
    s = np.sqrt(N)
    z = np.concatenate([part.ravel() for part in point])
    basis = systems.subspace_basis(C, N, p)
    distance = float(np.linalg.norm(z - basis.T @ (basis @ z)))
    return values | {
        "snc1": float(np.linalg.norm(W @ W.T - s * systems.centring(C))),
        "snc2": float(np.linalg.norm(H - np.repeat(W.T, N, axis=1) / s) / np.linalg.norm(H)),
        "snc3": float(np.linalg.norm(b - 1 / C)),
        "distance": distance,
        "relative_distance": distance / float(np.linalg.norm(z)),
    }

"""Laws of unequal counts: minority collapse, thresholds, the squared error with decay, and the order of learning."""

import jax
import numpy as np

from ...model.problem import velocity
from .. import imbalance
from ..minima import minimiser
from ..optimality import certify
from . import lab as lab_module
from .lab import EPS, TIMES, Lab, Point, System, as_point, as_state, gap, sphere, split
from .logits import ROUNDED, field, size
from .registry import DERIVED, Comparisons, law

DANG = "Dang et al. 2023, arXiv 2301.00437"
HONG = "Hong and Ling 2023, arXiv 2309.09725; named by Fang et al. 2021"
FOUND = 1e-8
"""The error allowed for probabilities at a minimum that was found numerically."""


def _smoothing(system: System) -> float:
    return float(system.loss.partition(":")[2] or 0.0)


def _at_share(system: System, share: float):
    """The minimum with mu at a share of the threshold of the smallest classes."""
    mu = share * float(imbalance.class_thresholds(system.model())[-1])
    model = system.model((2 * mu, mu / 2, 0.1 * system.a))
    return mu, model, jax.device_get(minimiser(model))


@law(
    "minority-collapse",
    "cross-entropy: small classes merge iff mu >= a sqrt(n_B): they differ at 0.97, and not at 1.03",
    HONG,
)
def minority_collapse(lab: Lab) -> Comparisons:
    for system in lab_module.TWO_GROUPS:
        small = np.array(system.counts) == min(system.counts)
        expected = system.a * np.sqrt(min(system.counts)) * (1 - _smoothing(system))
        yield abs(float(imbalance.class_thresholds(system.model())[-1]) / expected - 1), ROUNDED
        for share, merged in ((0.97, False), (1.03, True)):
            _, _, found = lab.keep(_kept, system, share)
            W = found.state.W[small]
            yield float((np.abs(W - W.mean(axis=0)).max() < 1e-6) != merged), 0.5
            yield float(bool(found.collapsed) == merged), 0.5


def _kept(lab: Lab, system: System, share: float):
    return _at_share(system, share)


@law(
    "law-inside-groups",
    "among classes of n samples p_on - p_off = max(0, 1 - eps - mu/(a sqrt n)), eps the smoothing",
    DERIVED,
)
def law_inside_groups(lab: Lab) -> Comparisons:
    for system in lab_module.TWO_GROUPS:
        n = np.array(system.counts)
        for share in (0.97, 1.03):
            mu, _, found = lab.keep(_kept, system, share)
            logits = found.state.W @ found.state.X / np.sqrt(n) + found.state.b[:, None]
            p = np.exp(logits - logits.max(axis=0))
            p /= p.sum(axis=0)
            for k in range(system.C):
                twins = [j for j in range(system.C) if j != k and n[j] == n[k]]
                for j in twins:
                    wanted = max(0.0, 1 - _smoothing(system) - mu / (system.a * np.sqrt(n[k])))
                    yield abs(p[k, k] - p[j, k] - wanted), FOUND


@law(
    "imbalanced-minimum",
    "cross-entropy with unequal counts: the field vanishes at the minimum, and duality certifies it",
    DERIVED,
)
def imbalanced_minimum(lab: Lab) -> Comparisons:
    for system in lab_module.TWO_GROUPS:
        for share in (0.97, 1.03):
            mu, model, found = lab.keep(_kept, system, share)
            moved = as_point(velocity(model, found.state))
            yield size(moved) / (mu * size(as_point(found.state))), FOUND
            yield float(certify(model, found.state).excess / found.risk), FOUND


@law("everything-vanishes", "without a bias everything vanishes iff mu >= a (1 - eps) ||P diag(sqrt n)||_op", DERIVED)
def everything_vanishes(lab: Lab) -> Comparisons:
    for system in lab_module.TWO_GROUPS:
        bare = system._replace(use_bias=False)
        P = np.eye(system.C) - 1 / system.C
        expected = bare.a * (1 - _smoothing(bare)) * np.linalg.norm(P * np.sqrt(bare.counts), 2)
        yield abs(float(imbalance.vanishing_threshold(bare.model())) / expected - 1), ROUNDED
        origin = as_state(Point(*(0 * part for part in sphere(bare, 1.0, seed=0))))
        for share, wanted in ((0.97, False), (1.03, True)):
            model = bare.model((share * expected, share * expected, 0.0))
            yield float(bool(certify(model, origin).is_global) != wanted), 0.5


@law(
    "orthogonal-frame",
    "squared error, no bias: W W^T = sqrt(lam_H/lam_W) diag(sigma), sigma_k = (sqrt n_k - mu)_+",
    DANG,
)
def orthogonal_frame(lab: Lab) -> Comparisons:
    for system in lab_module.UNEQUAL:
        n, decay = np.array(system.counts), (0.5, 3.0, 0.0)
        sigma = np.sort(np.maximum(np.sqrt(n) - np.sqrt(1.5), 0.0))[::-1]
        found = minimiser(system.model(decay))
        point = as_point(found.state)
        yield size(field(system, point, decay)) / size(point), ROUNDED
        yield np.linalg.norm(point.W @ point.W.T - np.sqrt(6.0) * np.diag(sigma)), ROUNDED
        yield float(np.any(np.asarray(found.learned) != (n > 1.5))), 0.5
        yield max(0.0, float(certify(system.model(decay), found.state).excess)), ROUNDED


@law("free-bias", "squared error, lam_b = 0: b = n/M, H 1 = 0, and W H soft-thresholds Y (I - 1 1^T/M) at mu", DERIVED)
def free_bias(lab: Lab) -> Comparisons:
    for system in lab_module.UNEQUAL:
        biased, decay = system._replace(use_bias=True), (0.5, 0.5, 0.0)
        form, point = imbalance.free_bias(biased.model(decay)), as_point(minimiser(biased.model(decay)).state)
        yield size(field(biased, point, decay)) / size(point), ROUNDED
        yield gap([point.b], [np.array(system.counts) / sum(system.counts)]), ROUNDED
        means = split(biased, point.H)[0] / np.sqrt(system.counts)
        yield np.linalg.norm(point.W @ means - form.class_means), ROUNDED
        yield np.linalg.norm(point.H.sum(axis=1)), ROUNDED


def _aligned(system: System) -> Point:
    W = sphere(system, 0.6, seed=41).W
    return Point(np.repeat(W.T / np.sqrt(system.counts), system.counts, axis=1), W, np.zeros(system.C))


@law(
    "aligned-riccati",
    "B = W^T: M = W W^T has M(t)^-1 = e^{-Tt} M0^-1 e^{-Tt} + (I - e^{-2Tt})/T, T = diag(sqrt n) - lam",
    DERIVED,
)
def aligned_riccati(lab: Lab) -> Comparisons:
    """The closed form against runs, and its derivative at the start against the field."""
    for system in lab_module.UNEQUAL:
        start = _aligned(system)
        if np.linalg.matrix_rank(start.W) < system.C:
            raise ValueError(f"{system} has too few features")
        ts, decays = np.linspace(0.0, 2.0, TIMES), [(0.0,) * 3, (0.6, 0.6, 0.0)]
        paths = lab.flow(system, [start, start], ts, decays=decays)
        for lane, decay in enumerate(decays):
            W = paths.states.W[lane]
            yield gap([W @ np.swapaxes(W, 1, 2)], [imbalance.gram(system.model(decay), as_state(start), ts)]), 1e-9


@law(
    "order-of-learning",
    "class k has half of |w_k|^2 at ln(sqrt n_k/r_k^2)/(2 sqrt n_k), r from the QR of V0^T",
    DERIVED,
)
def order_of_learning(lab: Lab) -> Comparisons:
    """From starts of size 1e-6. The error is a power of the start's size that depends on the ratios of the counts."""
    for system in lab_module.UNEQUAL:
        start = sphere(system, 1e-6, seed=42)
        times = np.asarray(imbalance.learning_times(system.model(), as_state(start)))
        order = np.argsort(times)
        ts = np.append(np.zeros(TIMES - system.C), times[order])
        paths = lab.flow(system, [start], ts, rtol=1e-10)
        for place, k in enumerate(order):
            W = paths.states.W[0, TIMES - system.C + place]
            yield abs(np.sum(W[k] ** 2) / np.sqrt(system.counts[k]) - 0.5), 5e-3
        yield float(np.any(np.diff(times[np.argsort(system.counts)]) >= 0)), 0.5


@law(
    "vanished-classes",
    "squared error with decay: a class of n_k <= mu^2 samples is not learned, whatever the others",
    DANG,
)
def vanished_classes(lab: Lab) -> Comparisons:
    for system in lab_module.UNEQUAL:
        n = np.array(system.counts)
        smallest = float(np.sqrt(n.min()))
        for share, wanted in ((0.98, True), (1.02, False)):
            found = minimiser(system.model((share * smallest, share * smallest, 0.0)))
            yield float(bool(np.asarray(found.learned)[np.argmin(n)]) != wanted), 0.5
        yield float(np.abs(imbalance.class_thresholds(system.model()) - np.sqrt(n)).max()), 16 * EPS

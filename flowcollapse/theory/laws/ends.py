"""Laws of the limits of small starts in other models: few features, no bias, unequal counts, weight decay."""

import math

import jax
import numpy as np

from ..small_starts import limits
from . import lab as lab_module
from .lab import TIMES, Lab, as_state, balanced_system, end_time, mean_modes, modes, sphere, split
from .registry import DERIVED, Comparisons, law

EPS_OF_STARTS = 1e-3


def _ends(lab: Lab, system):
    """A small start, and the run from it."""
    start = sphere(system, EPS_OF_STARTS, seed=18)
    return start, lab.flow(system, [start], np.linspace(0.0, end_time(system, start, 30.0), TIMES), rtol=1e-11)


@law(
    "as-many-features",
    "p = C - 1: L and u vanish, NC1 = 0, yet ||B - W^T|| = kappa |v0|: collapse is never exact",
    DERIVED,
)
def as_many_features(lab: Lab) -> Comparisons:
    for system in (lab_module.REACHED[-1], balanced_system(3, 4, 2), balanced_system(2, 3, 1)):
        start, paths = _ends(lab, system)
        B, L = split(system, paths.at(0).H)
        v, eps = mean_modes(system, start)[1], EPS_OF_STARTS
        yield np.linalg.norm(L), 1e-9 * eps
        yield np.linalg.norm(paths.at(0).W.sum(axis=0)), 1e-9 * eps
        expected = limits.kappa(system.model()) * np.linalg.norm(v)
        yield abs(np.linalg.norm((B - paths.at(0).W.T).mean(axis=1)) * math.sqrt(system.C) / expected - 1), 60 * eps**2


@law("too-few-features", "p < C - 1: W W^T -> s proj(V0), and the risk rests at N (C - 1 - p)/2", DERIVED)
def too_few_features(lab: Lab) -> Comparisons:
    for system in (lab_module.EVERY[-1], balanced_system(4, 3, 2), balanced_system(3, 2, 1)):
        start, paths = _ends(lab, system)
        U, W = modes(system, start)[0], paths.at(0).W
        expected = float(limits.plateau(system.model(), as_state(start)).metrics["risk"])
        yield abs(paths.metrics["risk"][0, -1] - expected), 1e-9
        yield abs(expected - system.N * (system.C - 1 - system.p) / 2), 1e-12
        yield np.linalg.norm(W @ W.T - system.s * U @ U.T), 20 * EPS_OF_STARTS**2


@law("no-bias", "without a bias W -> sqrt(s) polar((W0 + B0^T)/2), and the risk rests at N max(0, C - p)/2", DERIVED)
def no_bias(lab: Lab) -> Comparisons:
    for system in lab_module.NO_BIAS:
        start, paths = _ends(lab, system)
        end = jax.device_get(limits.plateau(system.model(), as_state(start)).state)
        yield np.linalg.norm(paths.at(0).W - end.W), 20 * EPS_OF_STARTS**2
        yield np.linalg.norm(split(system, paths.at(0).H)[0] - end.X[:, : system.C]), 20 * EPS_OF_STARTS**2
        yield abs(paths.metrics["risk"][0, -1] - system.N * max(0, system.C - system.p) / 2), 1e-9


@law("imbalanced", "W W^T -> (Z Z^T)^{1/2}, Z = diag(sqrt n)(I - sqrt n sqrt n^T/n_tot), and b -> n/n_tot", DERIVED)
def imbalanced(lab: Lab) -> Comparisons:
    for system in lab_module.IMBALANCED:
        limit = limits.imbalanced_limit(system.model())
        start = sphere(system, EPS_OF_STARTS, seed=18)
        path = lab.flow(system, [start], np.linspace(0.0, 40.0, TIMES), rtol=1e-11)
        end = path.at(0)
        yield np.linalg.norm(end.W @ end.W.T - limit.gram), 20 * EPS_OF_STARTS**2
        yield np.linalg.norm(end.b - limit.b), 2 * EPS_OF_STARTS


# Without mean mode: equal decay, unequal decay, decay of b. With mean mode: equal, unequal. Last: W vanishes.
DECAYS = ((0.5, 0.5, 0.0), (0.4, 0.9, 0.0), (0.5, 0.5, 1.0), (0.1, 0.1, 2.0), (0.2, 0.05, 1.5), (3.0, 3.0, 0.3))


@law(
    "decay",
    "W W^T -> sqrt(lam_H/lam_W) [max(0, s - g) P + x 11^T/C], g = sqrt(lam_W lam_H), x = max(0, s - g - CN g/lam_b)",
    DERIVED,
)
def decay(lab: Lab) -> Comparisons:
    """Also `b = min(N/(CN + lam_b), s g/lam_b)` and L = 0. Runs are long because the rates are those of the decay."""
    for system in lab_module.REACHED:
        start = sphere(system, 1e-2, seed=18)
        paths = lab.flow(system, [start] * len(DECAYS), np.linspace(0.0, 600.0, TIMES), decays=DECAYS, rtol=1e-10)
        for lane, lams in enumerate(DECAYS):
            limit, end = limits.decay_limit(system.model(lams)), paths.at(lane)
            yield np.linalg.norm(end.W @ end.W.T - limit.gram), 1e-7
            yield np.linalg.norm(end.b - limit.b), 1e-7
            yield np.linalg.norm(split(system, end.H)[1]), 1e-7

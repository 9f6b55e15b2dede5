"""Laws of whole paths: closed forms on S and on balanced sets, conserved quantities, reductions."""

import jax.numpy as jnp
import numpy as np

from ...model.coordinates import to_class_means
from .. import exact
from ..small_starts import curves
from . import lab as lab_module
from .lab import EPS, TIMES, Lab, Point, as_point, as_state, gap, modes, random_on_subspace, sphere, split
from .registry import DERIVED, ON_THE_PAPER, PAPER, Comparisons, law

ROUNDED = 1e4 * EPS
INTEGRATED = 1e-9
"""The error allowed for a run at rtol 1e-12 after the escape from the origin."""


@law("subspace-flow", "on S, mu_i(t) = s mu_i e^{2st} / (s + mu_i (e^{2st} - 1)), b relaxes as e^{-CNt}", ON_THE_PAPER)
def subspace_flow(lab: Lab) -> Comparisons:
    yield from _flow_on_subspace(lab, [(0.0, 0.0, 0.0)], [1e-2, 0.5])


@law(
    "subspace-flow-decay",
    "with equal decay lam, s - lam replaces s in mu_i(t), and b goes to N/(CN + lam_b)",
    DERIVED,
)
def subspace_flow_decay(lab: Lab) -> Comparisons:
    yield from _flow_on_subspace(lab, [(0.4, 0.4, 0.0), (0.4, 0.4, 0.7), (3.0, 3.0, 5.0)], [0.5])


def _flow_on_subspace(lab: Lab, decays, sizes) -> Comparisons:
    for system in lab_module.EVERY:
        lanes = [(decay, random_on_subspace(system, size, 5, beta=0.6)) for decay in decays for size in sizes]
        ts = np.linspace(0.0, 8.0 / system.s, TIMES)
        paths = lab.flow(system, [start for _, start in lanes], ts, decays=[decay for decay, _ in lanes])
        for lane, (decay, start) in enumerate(lanes):
            form = as_point(exact.subspace_flow(system.model(decay), as_state(start), ts))
            yield gap([part[lane] for part in paths.states], form), INTEGRATED


@law("subspace-descent", "on S descent is mu <- mu (1 + eta (s - lam - mu))^2 and a linear map of b", ON_THE_PAPER)
def subspace_descent(lab: Lab) -> Comparisons:
    steps = [0, 1, 2, 5, 10, 20, 50, 100, 200]
    for system in lab_module.EVERY:
        threshold, start = 2 / (system.C * system.N + system.s), random_on_subspace(system, 0.3, seed=5)
        lanes = [((0.0, 0.0, 0.0), 0.1), ((0.0, 0.0, 0.0), 0.9), ((0.4, 0.4, 0.7), 0.5)]
        rates = [share * threshold for _, share in lanes]
        paths = lab.descent(system, [start] * 3, steps, rates, decays=[decay for decay, _ in lanes])
        for lane, (decay, _) in enumerate(lanes):
            form = exact.subspace_descent(system.model(decay), as_state(start), steps, learning_rate=rates[lane])
            yield gap([part[lane] for part in paths.states], as_point(form)), ROUNDED


@law(
    "rank-condition",
    "on S the flow collapses if rank W0 = C - 1, and stops at risk N (C - 1 - r)/2 at rank r",
    f"{PAPER}; the risk at rank r {DERIVED}",
)
def rank_condition(lab: Lab) -> Comparisons:
    """Compare the ends of runs. Rounding seeds the missing modes, but they stay below 1e-16 e^{st}."""
    for system in lab_module.EVERY:
        highest, model = min(system.num_modes, system.p), system.model()
        starts = [random_on_subspace(system, 0.5, seed=6, rank=rank) for rank in range(1, highest + 1)]
        ts = np.linspace(0.0, 14.0 / system.s, TIMES)
        paths = lab.flow(system, starts, ts)
        for rank, start in enumerate(starts, start=1):
            expected = curves.learning_curve(model, as_state(start), ts[-1:]).risk[0]
            yield abs(paths.metrics["risk"][rank - 1, -1] - expected), 1e-8
            yield abs(expected - system.N * (system.C - 1 - rank) / 2), 1e-8
            U, _, Vt = modes(system, start)
            W = np.sqrt(system.s) * U[:, :rank] @ Vt[:rank]
            yield gap([paths.at(rank - 1).W], [W]), 1e-8


@law("balancedness", "W^T W - H H^T is conserved by the flow, and decays as e^{-2 lam t} under equal decay", DERIVED)
def balancedness(lab: Lab) -> Comparisons:
    for system in (*lab_module.EVERY, *lab_module.NO_BIAS[:1], *lab_module.IMBALANCED[:1]):
        decays, ts = [(0.0, 0.0, 0.0), (0.4, 0.4, 0.1)], np.linspace(0.0, 4.0, TIMES)
        paths = lab.flow(system, [sphere(system, 1.0, seed=7)] * 2, ts, decays=decays)
        yield paths.metrics["balancedness"][0].max(), INTEGRATED
        first = _imbalance(paths.at(0, 0))
        for time, t in enumerate(ts):
            yield gap([_imbalance(paths.at(1, time))], [np.exp(-2 * 0.4 * t) * first]), INTEGRATED


def _imbalance(point: Point) -> np.ndarray:
    return point.W.T @ point.W - point.H @ point.H.T


# ---- reductions


@law(
    "reduced-descent",
    "descent in class-mean columns is descent on the samples, for any counts, decay and number of rows",
    DERIVED,
)
def reduced_descent(lab: Lab) -> Comparisons:
    """In the last system not all rows move, so the rows are compressed too."""
    wide = lab_module.balanced_system(3, 2, 20)
    for system in (*lab_module.EVERY[:2], lab_module.IMBALANCED[0], wide):
        start, steps = [sphere(system, 0.5, seed=8, b=0.1)], [0, 1, 2, 5, 10, 20, 50, 100, 200]
        full, reduced = (
            lab.descent(system, start, steps, 0.02, decays=(0.1, 0.2, 0.3), coordinates=coordinates)
            for coordinates in ("sample", "auto")
        )
        yield gap(reduced.states, full.states), ROUNDED


# ---- matrix Riccati equations


def balanced_start(system, lam: float, beta: float | None, *, centred: bool = False, size: float = 0.4) -> Point:
    """A random start with `W^T W - H H^T = lam I`; with a bias also `H 1 = 0`, and if `centred` also `1^T W = 0`.

    `beta` is the offset of b from `n / n_tot`, the same for all classes.
    """
    rng, n = np.random.default_rng([9, *system.counts, system.p]), sum(system.counts)

    def frame(rows: int, most: int, centre: bool) -> np.ndarray:
        normal = rng.standard_normal((rows, min(system.p, most - centre)))
        return np.linalg.qr(normal - centre * normal.mean(axis=0))[0]

    left, right = frame(system.C, system.C, centred), frame(n, n, system.use_bias)
    features, common = np.linalg.qr(rng.standard_normal((system.p, system.p)))[0], min(left.shape[1], right.shape[1])
    squares = np.zeros(system.p)
    squares[:common] = (size * rng.uniform(0.5, 1.0, common)) ** 2
    of_W, of_H = np.sqrt(squares + max(lam, 0.0)), np.sqrt(squares + max(-lam, 0.0))
    W = left * of_W[: left.shape[1]] @ features[:, : left.shape[1]].T
    H = features[:, : right.shape[1]] * of_H[: right.shape[1]] @ right.T
    return Point(H, W, np.array(system.counts) / n + beta if beta is not None else np.zeros(system.C))


def _riccati(lab: Lab, system, starts: list[Point], decays=(0.0, 0.0, 0.0)) -> Comparisons:
    """Compare `Q Q^T`, `Q = [W; H^T]`, of the run and of the closed form, which is unique up to a feature rotation."""
    ts = np.linspace(0.0, 6.0 / np.sqrt(max(system.counts)), TIMES)
    paths, decays = lab.flow(system, starts, ts, decays=decays), np.broadcast_to(decays, (len(starts), 3))
    for lane, (start, decay) in enumerate(zip(starts, decays, strict=True)):
        form = as_point(exact.balanced_flow(system.model(decay), as_state(start), ts))
        found = Point(*(part[lane] for part in paths.states))
        yield gap((_gram(found), found.b), (_gram(form), form.b)), INTEGRATED


def _gram(point: Point) -> np.ndarray:
    Q = np.concatenate([point.W, np.swapaxes(point.H, -1, -2)], axis=-2)
    return Q @ np.swapaxes(Q, -1, -2)


@law("riccati", "without a bias Q Q^T, Q = [W; H^T], of a start with W^T W = H H^T is known at all times",
     "Fukumizu 1998; Braun et al. 2022")  # fmt: skip
def riccati(lab: Lab) -> Comparisons:
    for system in lab_module.NO_BIAS:
        start = balanced_start(system, 0.0, None)
        yield from _riccati(lab, system, [start, start], [(0.0, 0.0, 0.0), (0.3, 0.3, 0.0)])


@law("riccati-lambda", "without a bias Q Q^T of a start with W^T W - H H^T = lam I is known at all times",
     "Domine et al. 2024")  # fmt: skip
def riccati_lambda(lab: Lab) -> Comparisons:
    for system in lab_module.NO_BIAS:
        lams = (0.4, -0.4) if system.p <= system.C else (-0.4,)
        yield from _riccati(lab, system, [balanced_start(system, lam, None) for lam in lams])


@law("riccati-bias", "with a bias it holds on {H 1 = 0, b = 1/C} and on {H 1 = 0, 1^T W = 0, b in span(1)}", DERIVED)
def riccati_bias(lab: Lab) -> Comparisons:
    for system in lab_module.EVERY[:3]:
        starts = [balanced_start(system, 0.0, 0.0), *[balanced_start(system, 0.0, 0.2, centred=True)] * 2]
        decays = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.2, 0.2, 0.7)]
        yield from _riccati(lab, system, starts, decays)


@law("riccati-imbalanced", "for any counts it holds on {H 1 = 0, b = n/n_tot} with target Y (I - 1 1^T/n_tot)", DERIVED)
def riccati_imbalanced(lab: Lab) -> Comparisons:
    for system in lab_module.IMBALANCED:
        lams = (0.0, 0.4, -0.4) if system.p <= system.C else (0.0,)
        yield from _riccati(lab, system, [balanced_start(system, lam, 0.0) for lam in lams])


# ---- the second phase


@law(
    "second-phase",
    "W = W* + 1 u^T/sqrt C, B = W*^T, u and L off the frame: invariant, u' = -L L^T u, L' = -u u^T L",
    DERIVED,
)
def second_phase(lab: Lab) -> Comparisons:
    """Compare `L L^T`, since L is unique only up to a rotation of the samples; for p > C - 1 and N > 1."""
    for system in lab_module.ABOVE:
        rng = np.random.default_rng([10, *system.counts, system.p])
        U, _, Vt = modes(system, sphere(system, 1.0, seed=10))
        off = np.eye(system.p) - Vt.T @ Vt
        u, dev = off @ rng.standard_normal(system.p), off @ rng.standard_normal((system.p, sum(system.counts)))
        _, dev = split(system, dev)
        u, dev = 0.4 * u / np.linalg.norm(u), 0.4 * dev / np.linalg.norm(dev)
        W = np.sqrt(system.s) * U @ Vt
        H = np.repeat(W.T, system.counts, axis=1) / system.s + dev
        start = Point(H, W + u / np.sqrt(system.C), np.full(system.C, 1 / system.C))
        ts = np.linspace(0.0, 40.0, TIMES)
        # In class-mean columns, where the rotation only mixes the columns of L.
        form = exact.second_phase(system.model(), to_class_means(system.model(), as_state(start)), ts)
        paths = lab.flow(system, [start], ts)
        B, L = split(system, paths.states.H[0])
        expected = (form.B, form.L @ jnp.swapaxes(form.L, 1, 2), form.W, form.b)
        yield gap((B, L @ np.swapaxes(L, 1, 2), paths.states.W[0], paths.states.b[0]), expected), INTEGRATED
        u = np.asarray(form.W).sum(axis=1) / np.sqrt(system.C)
        risks = 0.5 * np.sum(np.einsum("tpn,tp->tn", form.L, u) ** 2, axis=1)
        yield np.abs(paths.metrics["risk"][0] - risks).max() / risks[0], INTEGRATED

"""Laws of small starts: the saddle at the origin, the escape from it, and the plateau."""

import functools
import math

import jax
import numpy as np

from ...curvature.hessian import hessian_vector_product
from ...initial import sphere as random_start
from ..small_starts import curves, limits
from . import lab as lab_module
from .lab import EPS, LANES, TIMES, Lab, Point, as_point, as_state, end_time, modes, small_starts, split
from .registry import DERIVED, ON_THE_PAPER, Comparisons, law

FOLLOWED = 60.0
"""The error allowed for a law of leading order, relative to eps^2: its next order on the way to the plateau."""


# ---- the origin


@law(
    "origin-modes",
    "at (0, 0, 1/C): rate +s on S, -s on H = -(W (x) 1)^T/s, 0 for 1^T W, Hbar 1, H_dev, -CN for b",
    ON_THE_PAPER,
)
def origin_modes(lab: Lab) -> Comparisons:
    """Apply the Hessian to random directions of each kind."""
    for system in lab_module.EVERY:
        model, (C, N, p, s) = system.model(), (system.C, system.N, system.p, system.s)
        origin = as_state(Point(np.zeros((p, C * N)), np.zeros((C, p)), np.full(C, 1 / C)))
        rng = np.random.default_rng(11)
        W, u, H = system.P @ rng.standard_normal((C, p)), rng.standard_normal(p), rng.standard_normal((p, C * N))
        grow = np.repeat(W.T, N, axis=1) / s
        zero = Point(np.zeros((p, C * N)), np.zeros((C, p)), np.zeros(C))
        directions = [
            (-s, Point(grow, W, np.zeros(C))),
            (s, Point(-grow, W, np.zeros(C))),
            (0.0, zero._replace(W=np.tile(u, (C, 1)))),
            (0.0, zero._replace(H=np.outer(u, np.ones(C * N)))),
            (0.0, zero._replace(H=split(system, H)[1])),
            (C * N, zero._replace(b=rng.standard_normal(C))),
        ]
        for rate, z in directions:
            image = as_point(hessian_vector_product(model, origin, as_state(z)))
            error = math.sqrt(sum(np.sum((x - rate * part) ** 2) for x, part in zip(image, z, strict=True)))
            yield error / math.sqrt(sum(np.sum(part**2) for part in z)), 1e3 * EPS * C * N


@law("origin-distance", "near the origin dist^2(t) = ||L||^2 + 2 ||Y||^2 e^{-2st} + |u|^2 + |v|^2", DERIVED)
def origin_distance(lab: Lab) -> Comparisons:
    """Start from b = 1/C and run while the modes are of the order of the start; `Y = P (W - B^T)/2`."""
    for system in lab_module.EVERY:
        start, ts = lab_module.sphere(system, 1e-5, seed=12, b=1 / system.C), np.linspace(0, 3 / system.s, TIMES)
        (u, v), (B, L) = lab_module.mean_modes(system, start), split(system, start.H)
        Y = system.P @ (start.W - B.T) / 2
        squares = np.sum(L**2) + 2 * np.sum(Y**2) * np.exp(-2 * system.s * ts) + u @ u + v @ v
        found = lab.flow(system, [start], ts).metrics["distance"][0]
        yield np.abs(found / np.sqrt(squares) - 1).max(), 1e-7


# ---- the plateau


@law(
    "polar-limit",
    "W -> sqrt(s) polar(V0) + 1 u^T/sqrt C, B -> sqrt(s) polar(V0)^T + v 1^T/sqrt C, b -> 1/C - W v/(s sqrt C)",
    DERIVED,
)
def polar_limit(lab: Lab) -> Comparisons:
    """The next order is eps^2 for W and B, and eps^3 for b."""
    for system in lab_module.EVERY:
        runs = lab.keep(small_starts, system)
        for lane, eps in enumerate(runs.sizes):
            found, end = runs.paths.at(lane), runs.plateaus[lane].state
            U, _, Vt = modes(system, runs.starts[lane])
            W = math.sqrt(system.s) * U @ Vt + runs.plateaus[lane].u / math.sqrt(system.C)
            yield np.linalg.norm(found.W - W), 20 * eps**2
            yield np.linalg.norm(split(system, found.H)[0] - end.X[:, : system.C]), 20 * eps**2
            yield np.linalg.norm(found.b - end.b), 20 * eps**3


def _plateau(metric: str, lab: Lab) -> Comparisons:
    """Compare a metric's closed form at the plateau with the run's end; if it is 0, only rounding remains."""
    for system in lab_module.EVERY:
        runs = lab.keep(small_starts, system)
        for lane, eps in enumerate(runs.sizes):
            found, expected = runs.paths.metrics[metric][lane, -1], float(runs.plateaus[lane].metrics[metric])
            if metric in limits.powers(system.model()):
                yield abs(found / expected - 1), FOLLOWED * eps**2
            else:
                yield abs(found - expected), 1e-20


PLATEAU = {
    "snc1": "SNC1^2 = ||O (D0 + v v^T) O^T||^2/4 + |u|^4, O = polar(V0), D0 = W0^T W0 - H0 H0^T",
    "snc2": "SNC2^2 = (||L||^2 + |u - v|^2)/(s k) to leading order, L = Pi_ L0, u = Pi_ u0, v = Pi_ v0 + kappa Pi v0",
    "snc3": "SNC3 = |Pi v|/sqrt(s C)",
    "distance": "dist^2 = ||L||^2 + |u|^2 + |v|^2 + SNC3^2",
    "relative_distance": "dist/||z|| -> dist/sqrt(2 s k + 1/C), the limit of the paper's Figure 2",
    "nc1": "NC1 by the pseudo-inverse is of order eps^6, ||X L||^2/(s C N)",
    "nc1_trace": "NC1 by traces = ||L||^2/(s k)",
    "nc3": "NC3 = |u|/sqrt(s k) to leading order",
    "risk": "the risk rests at |L^T u|^2/2 + N (C - 1 - k)/2",
}
for _metric, _statement in PLATEAU.items():
    law(f"plateau-{_metric.replace('_', '-')}", _statement, DERIVED)(functools.partial(_plateau, _metric))


@law(
    "powers",
    "at the plateau each metric goes as a whole power of eps: SNC1 2, SNC2, SNC3 and dist 1, NC1 6 or 2, risk 4",
    DERIVED,
)
def powers(lab: Lab) -> Comparisons:
    """Fit slopes for two directions over sizes from 1e-2 down. NC1 is 1e-19 at the smallest, so it has fewer digits."""
    for system in lab_module.EVERY:
        runs = lab.keep(small_starts, system)
        for metric, power in limits.powers(system.model()).items():
            for direction in range(2 if metric in runs.paths.metrics else 0):
                values = runs.paths.metrics[metric][direction::2, -1]
                slope = np.polyfit(np.log(runs.sizes[direction::2]), np.log(values), 1)[0]
                yield abs(slope - power), 0.05 if metric == "nc1" else 0.01


@law(
    "kappa",
    "the escape leaves kappa = Gamma(a)^2/(Gamma(a - 1/2) Gamma(a + 1/2)), a = (1 + C s)/2, of v in the span of V0",
    DERIVED,
)
def kappa(lab: Lab) -> Comparisons:
    """Compare kappa with `<Pi v, Pi v0>/|Pi v0|^2` of runs."""
    for system in lab_module.REACHED:
        runs = lab.keep(small_starts, system)
        for lane, eps in enumerate(runs.sizes):
            _, _, Vt = modes(system, runs.starts[lane])
            first = Vt @ lab_module.mean_modes(system, runs.starts[lane])[1]
            last = Vt @ lab_module.mean_modes(system, runs.paths.at(lane), turned=False)[1]
            yield abs(first @ last / (first @ first) - limits.kappa(system.model())), FOLLOWED * eps**2


RANDOM_STARTS = 64 * LANES


@law("rms", "root mean squares over random starts of SNC2, SNC3, dist, NC3 and mean NC1, exact in C, N, p", DERIVED)
def rms(lab: Lab) -> Comparisons:
    """Average over runs from `fc.initial.sphere`, within five standard errors of the mean of the squares."""
    eps = 1e-4
    for system in (*lab_module.ABOVE, *lab_module.REACHED[-1:]):
        model = system.model()
        keys = jax.random.split(jax.random.key(0), RANDOM_STARTS)
        draw = jax.jit(jax.vmap(lambda key, model=model: random_start(model, eps, key=key, reduced=False)))
        drawn = as_point(draw(keys))
        starts = [Point(*(part[i] for part in drawn)) for i in range(RANDOM_STARTS)]
        ts = np.array([end_time(system, start, 20.0) for start in starts])[:, None] * np.linspace(0.0, 1.0, TIMES)
        found, expected = lab.flow(system, starts, ts, rtol=1e-6).metrics, limits.rms(model, eps)
        names = set(expected) & set(found) - ({"nc3", "nc1_trace"} if system.p == system.C - 1 else set())
        for name in sorted(names):
            samples, mean = found[name][:, -1], float(expected[name])
            samples, mean = (samples, mean) if name == "nc1_trace" else (samples**2, mean**2)
            yield abs(samples.mean() / mean - 1), 5 * samples.std() / (mean * math.sqrt(RANDOM_STARTS))


@law(
    "plateau-time",
    "by T = (ln(sqrt(s)/sigma_min) + d)/s decaying parts have fallen by e^-d; likewise for descent, in steps",
    DERIVED,
)
def plateau_time(lab: Lab) -> Comparisons:
    """Measure L along the slowest mode at d = 10, where it is still far above rounding."""
    for system in lab_module.EVERY:
        model, start, eta = system.model(), lab_module.sphere(system, 1e-4, seed=13), 1e-2
        T = float(limits.plateau_time(model, as_state(start), 10.0))
        steps = int(limits.plateau_steps(model, as_state(start), eta, 10.0))
        assert steps <= lab_module.NUM_STEPS
        flow = lab.flow(system, [start], np.linspace(0, T, TIMES)).at(0)
        descent = lab.descent(system, [start], np.linspace(0, steps, TIMES).round(), eta).at(0)
        slowest = modes(system, start)[2][-1]
        first = slowest @ split(system, start.H)[1]
        for end, tolerance in ((flow, 1e-3), (descent, 2.5 * eta * system.s)):
            left = first @ (slowest @ split(system, end.H)[1]) / (first @ first)
            yield abs(math.log(left) + 10.0), tolerance


# ---- shadowing


def _shadowing(corrected: bool, lab: Lab) -> Comparisons:
    for system in lab_module.EVERY:
        runs = lab.keep(small_starts, system)
        for lane, eps in enumerate(runs.sizes):
            ts, risks = runs.ts[lane], runs.paths.metrics["risk"][lane]
            curve = curves.learning_curve(system.model(), as_state(runs.starts[lane]), ts, corrected=corrected)
            # The first time is skipped: the relaxing bias has an error of another order.
            error = np.abs(np.asarray(curve.risk) - risks)[1:].max() / risks[0]
            yield error, 0.2 * eps**2 if corrected else 0.1 * eps**2 * math.log(1 / eps)


law("shadowing", "a small start follows the flow on S from V0: the risk to O(eps^2 ln 1/eps)", DERIVED)(
    functools.partial(_shadowing, False)
)
law("shadowing-corrected", "with the modes slowed by the rest of the start, V0 (I - t K2) V0^T, to O(eps^2)", DERIVED)(
    functools.partial(_shadowing, True)
)


@law("shadowing-descent", "descent from a small start follows the recursion of mu and beta on S from V0", DERIVED)
def shadowing_descent(lab: Lab) -> Comparisons:
    for system in lab_module.EVERY:
        eps, eta = 1e-3, 0.3 / (system.C * system.N + system.s)
        start, steps = lab_module.sphere(system, eps, seed=14), np.linspace(0, lab_module.NUM_STEPS, TIMES).astype(int)
        curve = curves.descent_curve(system.model(), as_state(start), eta, lab_module.NUM_STEPS)
        found = lab.descent(system, [start], steps, eta).metrics["risk"][0]
        yield np.abs(np.asarray(curve.risk)[steps] - found).max() / found[0], 2 * eps**2 * math.log(1 / eps)

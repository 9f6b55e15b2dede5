"""Laws of the global minimum of balanced classes with weight decay, and of the certificate of a minimum."""

import jax
import numpy as np

from ...model.problem import risk
from ..frames import transition
from ..minima import minimiser
from ..optimality import certify
from . import lab as lab_module
from .curvature import hessian
from .lab import EPS, Lab, Point, System, as_point, as_state, gap, sphere
from .logits import DECAY, ROUNDED, ZHOU, curved, every, field, frame, pull_of, size
from .registry import DERIVED, Comparisons, law

ZHU = "Zhu et al. 2021, arXiv 2105.02375"
SHARE = 0.3
"""The decay of most laws: mu is this share of the threshold `a s pull(0)`."""


def decay_of(system: System, share: float = SHARE, ratio: float = 2.0) -> tuple[float, float, float]:
    """Decays with mu at a share of the threshold, those of W and H unequal."""
    mu = share * system.a * system.s * pull_of(system, 0.0)
    return mu * ratio, mu / ratio, 0.2 * system.a


def explicit_logit(system: System, share: float = SHARE) -> float:
    """`rho = ln(1 + C (1/phi - 1))` with `phi = mu/(a s)`, plus eps for smoothed labels."""
    eps = float(system.loss.partition(":")[2] or 0.0)
    phi = share * (1 - eps) + eps
    return float(np.log(1 + system.C * (1 / phi - 1)))


def smooth() -> tuple[System, ...]:
    return (*lab_module.CROSS_ENTROPY, *lab_module.SMOOTHED)


def _critical(systems) -> Comparisons:
    for system in systems:
        decay = decay_of(system)
        point = frame(system, explicit_logit(system), *decay[:2])
        yield size(field(system, point, decay)) / (size(point) * np.sqrt(decay[0] * decay[1])), ROUNDED


@law(
    "entropy-frame",
    "cross-entropy with decay: W W^T = alpha^2 P, rho = ln(1 + C(1/phi - 1)), phi = mu/(a s) is critical",
    f"{ZHU}; explicit form {DERIVED}",
)
def entropy_frame(lab: Lab) -> Comparisons:
    yield from _critical(lab_module.CROSS_ENTROPY)


@law("smoothed-frame", "label smoothing: the same with phi = eps + mu/(a s)", f"{ZHOU}; explicit form {DERIVED}")
def smoothed_frame(lab: Lab) -> Comparisons:
    yield from _critical(lab_module.SMOOTHED)


@law("focal-frame", "focal loss: mu/(a s) = psi(rho)", f"{ZHOU}; explicit form {DERIVED}")
def focal_frame(lab: Lab) -> Comparisons:
    for system in lab_module.FOCUSED:
        decay = decay_of(system)
        rho = float(minimiser(system.model(decay)).rho)
        yield abs(pull_of(system, rho) / (SHARE * pull_of(system, 0.0)) - 1), ROUNDED
        yield size(field(system, frame(system, rho, *decay[:2]), decay)) / size(frame(system, rho)), ROUNDED


@law("minimiser", "the minimiser has W W^T = rho sqrt(N lam_H/lam_W) P, H = sqrt(lam_W/(lam_H N)) (W (x) 1)^T", ZHU)
def the_minimiser(lab: Lab) -> Comparisons:
    for system in every():
        decay = decay_of(system)
        found = minimiser(system.model(decay))
        point, form = as_point(found.state), frame(system, float(found.rho), *decay[:2])
        yield gap([point.W @ point.W.T, point.W @ point.H], [form.W @ form.W.T, form.W @ form.H]), ROUNDED
        yield size(field(system, point, decay)) / size(point), ROUNDED


@law("least-risk", "R* = a C N ln(1 + (C-1) e^{-rho}) + mu s (C-1) rho", DERIVED)
def least_risk(lab: Lab) -> Comparisons:
    for system in lab_module.CROSS_ENTROPY:
        decay, rho = decay_of(system), explicit_logit(system)
        C, mu = system.C, np.sqrt(decay[0] * decay[1])
        form = system.a * C * system.N * np.log1p((C - 1) * np.exp(-rho)) + mu * system.s * (C - 1) * rho
        yield abs(float(risk(system.model(decay), as_state(frame(system, rho, *decay[:2])))) / form - 1), ROUNDED
        yield abs(float(minimiser(system.model(decay)).risk) / form - 1), ROUNDED


@law(
    "global-certificate",
    "at a global minimum of a convex loss ||G||_op = mu, and the bound by duality is the risk",
    DERIVED,
)
def global_certificate(lab: Lab) -> Comparisons:
    for system in (*smooth(), *lab_module.TWO_GROUPS):
        model = system.model(decay_of(system))
        found = minimiser(model)
        proof = certify(model, found.state)
        yield abs(float(proof.residual_norm / proof.bound) - 1), 1e-9
        yield float(proof.excess / found.risk), 1e-9


@law(
    "certified-bound", "no state is below the bound: risk - excess <= least risk at random states of all sizes", DERIVED
)
def certified_bound(lab: Lab) -> Comparisons:
    for system in (*smooth(), *lab_module.TWO_GROUPS):
        model = system.model(decay_of(system))
        least = float(minimiser(model).risk)
        for seed, scale in enumerate((0.01, 0.3, 1.0, 4.0)):
            state = as_state(sphere(system, scale, seed=seed))
            bound = float(risk(model, state) - certify(model, state).excess)
            yield max(bound / least - 1, 0.0) if np.isfinite(bound) else 0.0, ROUNDED


@law("origin-optimal", "the origin is the global minimum iff mu >= a s pull(0): at 0.98 it is not, at 1.02 it is", ZHU)
def origin_optimal(lab: Lab) -> Comparisons:
    for system in smooth():
        origin = as_state(Point(*map(np.zeros_like, frame(system, 1.0))))
        for share, wanted in ((0.98, False), (1.02, True)):
            model = system.model(decay_of(system, share))
            yield float(bool(certify(model, origin).is_global) != wanted), 0.5
            yield float(bool(minimiser(model).collapsed) == wanted), 0.5


def _spectrum(lab: Lab, share: float) -> Comparisons:
    """Every listed value must be near an eigenvalue of the Hessian that is not yet taken."""
    for system in (*every()[:3], lab_module.SMOOTHED[0], lab_module.FOCUSED[0]):
        decay = decay_of(system, share)
        found = minimiser(system.model(decay))
        assert found.spectrum is not None
        exact = np.linalg.eigvalsh(hessian(lab, system, decay, as_point(found.state)))
        exact = exact if system.use_bias else np.delete(exact, np.argmin(np.abs(exact)))  # b does not move
        left, largest = list(exact), np.abs(exact).max()
        worst = 0.0
        for value in np.asarray(found.spectrum.eigenvalues):
            nearest = int(np.argmin(np.abs(np.array(left) - value)))
            worst = max(worst, abs(left.pop(nearest) - value))
        yield worst / largest, ROUNDED


@law("frame-spectrum", "the Hessian at the frame: lam_H (1 + rho/C), lam_H (1 + rho p), 0, lam_W + lam_H, ...", DERIVED)
def the_frame_spectrum(lab: Lab) -> Comparisons:
    yield from _spectrum(lab, SHARE)


@law(
    "origin-spectrum",
    "at the origin: m -+ sqrt(((lam_W - lam_H)/2)^2 + (a s pull(0))^2) p(C-1) times, lam_W, lam_H, ...",
    DERIVED,
)
def the_origin_spectrum(lab: Lab) -> Comparisons:
    yield from _spectrum(lab, 1.3)


@law(
    "within-class-rate",
    "at the frame ||H_dev|| falls at lam_H (1 + rho/C), at lam_H (1 + rho p) along its class",
    DERIVED,
)
def within_class_rate(lab: Lab) -> Comparisons:
    for system in lab_module.CROSS_ENTROPY:
        decay, rho = decay_of(system), explicit_logit(system)
        point = frame(system, rho, *decay[:2])
        own = point.W[0] / np.linalg.norm(point.W[0])
        basis = np.linalg.svd(point.W)[2][: system.C - 1]
        rows = [(own, rho * np.exp(rho) / (np.exp(rho) + system.C - 1))]
        if system.C > 2:
            other = basis[0] - (basis[0] @ own) * own
            other = other if np.linalg.norm(other) > 0.1 else basis[1] - (basis[1] @ own) * own
            rows.append((other, rho / system.C))
        for direction, extra in rows:
            H = np.zeros_like(point.H)
            H[:, 0], H[:, 1] = direction, -direction
            image = curved(system, point, Point(H, 0 * point.W, 0 * point.b), decay)
            yield gap(image, (decay[1] * (1 + extra) * H, 0 * point.W, 0 * point.b)), ROUNDED


@law(
    "smoothed-fit",
    "without decay smoothed labels are fitted at rho P, rho = ln(1 + C(1/eps - 1)); R = their entropy",
    DERIVED,
)
def smoothed_fit(lab: Lab) -> Comparisons:
    for system in lab_module.SMOOTHED:
        C, eps = system.C, 0.1
        point = frame(system, float(np.log(1 + C * (1 / eps - 1))))
        yield size(field(system, point)) / size(point), ROUNDED
        q = np.append(1 - eps + eps / C, np.full(C - 1, eps / C))
        entropy = -system.a * C * system.N * np.sum(q * np.log(q))
        yield abs(float(risk(system.model(), as_state(point))) / entropy - 1), ROUNDED


@law(
    "focal-jump",
    "focal loss, 40 classes: origin stable from 1.13046, optimal from 1.14973, no frame from 1.15793",
    DERIVED,
)
def focal_jump(lab: Lab) -> Comparisons:
    """At the second threshold the frame and the origin have equal risks; at the first, curvature along S is 0."""
    for counts, reduction in (((1,) * 40, "sum"), ((4,) * 40, "sum"), ((1,) * 40, "mean")):
        system = System(counts, 39, loss="focal:2", reduction=reduction)
        stable, optimal, ends = (float(mu) for mu in transition(system.model()))
        unit = system.a * system.s
        for found, expected in zip((stable, optimal, ends), (1.13046, 1.14973, 1.15793), strict=True):
            yield abs(found / unit - expected), 1e-5
        decay = (optimal * (1 - 1e-9),) * 2 + (0.0,)
        at_frame = float(minimiser(system.model(decay)).risk)
        mode = frame(system, 1.0)
        origin = Point(*map(np.zeros_like, mode))
        at_origin = float(risk(system.model(decay), as_state(origin)))
        yield abs(at_frame / at_origin - 1), 1e-7
        yield size(curved(system, origin, mode, (stable, stable, 0.0))) / size(mode) / stable, ROUNDED
        beyond = minimiser(system.model((optimal * 1.001, optimal * 1.001, 0.0)))
        yield float(bool(beyond.collapsed)), 0.5


@law("equal-losses", "label smoothing 0 and focal loss 0 are cross-entropy, in field and minimum", ZHOU)
def equal_losses(lab: Lab) -> Comparisons:
    for system in lab_module.CROSS_ENTROPY:
        point, decay = sphere(system, 2.0, seed=26), decay_of(system)
        for loss in ("label-smoothing:0", "focal:0"):
            other = system._replace(loss=loss)
            yield gap(field(other, point, DECAY), field(system, point, DECAY)), ROUNDED
            one, two = (jax.device_get(minimiser(one.model(decay)).risk) for one in (system, other))
            yield abs(float(two / one) - 1), 64 * EPS

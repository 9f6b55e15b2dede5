"""Laws of every loss of the logits: the pull, growth from the origin, conserved quantities, and exact reductions."""

import jax.numpy as jnp
import numpy as np

from ...curvature.hessian import hessian_vector_product
from ...model.columns import ClassMeanColumns
from ...model.problem import risk, velocity
from ...model.state import State
from . import lab as lab_module
from .lab import EPS, Lab, Point, System, as_point, as_state, gap, sphere, split
from .registry import DERIVED, Comparisons, law

ROUNDED = 1e4 * EPS
DECAY = (0.3, 0.5, 0.2)
ZHOU = "Zhou et al. 2022, arXiv 2210.02192"


def frame(system: System, rho: float, lam_W: float = 1.0, lam_H: float = 1.0) -> Point:
    """The simplex frame with logits `rho P`, balanced between W and H as decay balances them, in NumPy."""
    half = np.linalg.svd(np.eye(system.C) - 1 / system.C)[0][:, : system.C - 1]
    W = np.sqrt(rho * system.s * np.sqrt(lam_H / lam_W)) * np.pad(half, ((0, 0), (0, system.p - system.C + 1)))
    return Point(np.repeat(W.T, system.counts, axis=1) * np.sqrt(lam_W / lam_H) / system.s, W, np.zeros(system.C))


def field(system: System, point: Point, decay=(0.0, 0.0, 0.0)) -> Point:
    """The velocity of the package at a point."""
    return as_point(velocity(system.model(decay), as_state(point)))


def size(point: Point) -> float:
    return float(np.sqrt(sum(np.sum(part**2) for part in point)))


def curved(system: System, point: Point, direction: Point, decay=(0.0, 0.0, 0.0)) -> Point:
    """The Hessian of the package times a direction."""
    return as_point(hessian_vector_product(system.model(decay), as_state(point), as_state(direction)))


def every() -> tuple[System, ...]:
    return (*lab_module.CROSS_ENTROPY, *lab_module.SMOOTHED, *lab_module.FOCUSED)


def pull_of(system: System, rho: float) -> float:
    """The pull, written out: `phi = C/(e^rho + C - 1)`, `phi - eps`, and that of the focal loss."""
    C, (name, _, number) = system.C, system.loss.partition(":")
    p, miss = (x / (np.exp(rho) + C - 1) for x in (np.exp(rho), C - 1))
    if name == "focal":
        gamma = float(number)
        return C / (C - 1) * miss**gamma * (miss - gamma * p * np.log(p))
    return C / (np.exp(rho) + C - 1) - float(number or 0.0)


@law("logit-pull", "on logits rho P the residual is -pull(rho) P: phi = C/(e^rho + C - 1), phi - eps, psi", DERIVED)
def logit_pull(lab: Lab) -> Comparisons:
    for system in every():
        for rho in (0.3, 2.0, 9.0):
            point, a = frame(system, rho), system.a
            W = field(system, point).W  # -G H^T
            expected = a * pull_of(system, rho) * system.s * point.W
            yield gap([W], [expected]), ROUNDED
            model = system.model()
            yield abs(float(model.loss.pull(jnp.asarray(rho), system.C)) / pull_of(system, rho) - 1), ROUNDED


@law(
    "logit-growth",
    "modes on S grow from the origin at a s pull(0): s (1 - eps), s (1-1/C)^g (1 + g ln C/(C-1))",
    DERIVED,
)
def logit_growth(lab: Lab) -> Comparisons:
    for system in every():
        mode = frame(system, 1.0)
        origin = Point(*map(np.zeros_like, mode))
        image = curved(system, origin, mode)
        rate = system.a * system.s * pull_of(system, 0.0)
        yield gap(image, (-rate * mode.H, -rate * mode.W, mode.b)), ROUNDED


@law("logit-means", "1^T W decays as e^{-lam_W t} and mean b as e^{-lam_b t}, whatever else moves", DERIVED)
def logit_means(lab: Lab) -> Comparisons:
    for system in (*every(), *lab_module.TWO_GROUPS):
        point = sphere(system, 2.0, seed=21, b=0.7 * system.use_bias)
        moved = field(system, point, DECAY)
        scale = size(moved)
        yield np.linalg.norm(moved.W.sum(axis=0) + DECAY[0] * point.W.sum(axis=0)) / scale, ROUNDED
        if system.use_bias:
            yield abs(moved.b.mean() + DECAY[2] * point.b.mean()) / scale, ROUNDED


@law(
    "logit-balancedness",
    "W^T W - H H^T is conserved for every loss of the logits, and decays as e^{-2 lam t} under equal decay",
    DERIVED,
)
def logit_balancedness(lab: Lab) -> Comparisons:
    for system in (*every(), *lab_module.TWO_GROUPS):
        point = sphere(system, 2.0, seed=22)
        for lam in (0.0, 0.4):
            W, H = (field(system, point, (lam, lam, 0.1)).W, field(system, point, (lam, lam, 0.1)).H)
            change = W.T @ point.W + point.W.T @ W - H @ point.H.T - point.H @ H.T
            imbalance = point.W.T @ point.W - point.H @ point.H.T
            yield np.linalg.norm(change + 2 * lam * imbalance) / np.linalg.norm(point.W.T @ W), ROUNDED


@law(
    "logit-ray",
    "on the frame rho' = 2 rho (a s pull(rho) - lam) under equal decay, and H = (W (x) 1)^T/s stays",
    DERIVED,
)
def logit_ray(lab: Lab) -> Comparisons:
    for system in every():
        for rho, lam in ((0.2, 0.0), (3.0, 0.3)):
            point = frame(system, rho)
            moved = field(system, point, (lam, lam, lam))
            rate = system.a * system.s * pull_of(system, rho) - lam
            yield gap([moved.W, moved.H], [rate * point.W, rate * point.H]), ROUNDED


@law(
    "collapsed-columns",
    "features that are equal inside each class stay so, and class means hold them for every loss",
    DERIVED,
)
def collapsed_columns(lab: Lab) -> Comparisons:
    for system in (*every(), *lab_module.TWO_GROUPS):
        point, model = sphere(system, 2.0, seed=23, b=0.3 * system.use_bias), system.model(DECAY)
        B, _ = split(system, point.H)
        state = State(X=B, W=point.W, b=point.b, columns=ClassMeanColumns(system.counts))
        H = np.repeat(B / np.sqrt(system.counts), system.counts, axis=1)
        yield abs(float(risk(model, state) / risk(model, State(H=H, W=point.W, b=point.b))) - 1), ROUNDED
        one, other = velocity(model, state), field(system, Point(H, point.W, point.b), DECAY)
        yield gap((one.H, one.W, one.b), other), ROUNDED


@law("sample-count", "without a bias a collapsed start obeys (W, B)_N(t) = sqrt(s) (W, B)_1(s t), s = sqrt N", DERIVED)
def sample_count(lab: Lab) -> Comparisons:
    for system in every():
        one = system._replace(counts=(1,) * system.C, use_bias=False, reduction="sum")
        many = system._replace(use_bias=False, reduction="sum")
        point = sphere(one, 2.0, seed=24)
        root = np.sqrt(system.s)
        repeated = Point(np.repeat(root * point.H / system.s, system.counts, axis=1), root * point.W, point.b)
        expected, found = field(one, point), field(many, repeated)
        B, _ = split(many, found.H)
        factor = root * system.s
        yield gap([found.W, B], [factor * expected.W, factor * expected.H]), ROUNDED


@law("mean-reduction", "the mean over the samples with decay lam is 1/M times the sum with decay M lam", DERIVED)
def mean_reduction(lab: Lab) -> Comparisons:
    for system in (*every(), *lab_module.TWO_GROUPS):
        point, M = sphere(system, 1.0, seed=25), sum(system.counts)
        mean, total = (system._replace(reduction=reduction) for reduction in ("mean", "sum"))
        scaled = tuple(M * lam for lam in DECAY)
        yield gap(field(mean, point, DECAY), [part / M for part in field(total, point, scaled)]), ROUNDED
        state = as_state(point)
        yield abs(float(M * risk(mean.model(DECAY), state) / risk(total.model(scaled), state)) - 1), ROUNDED

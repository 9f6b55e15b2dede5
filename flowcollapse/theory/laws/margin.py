"""Laws of cross-entropy without decay: the largest margin, the motion along the frame, and what is remembered."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expi

from ...methods.flow import Flow
from ...model.problem import risk, velocity
from ...simulation import simulate
from .. import max_margin
from . import lab as lab_module
from .lab import Lab, Point, System, as_point, as_state, gap, sphere, split
from .logits import ROUNDED, curved, field, frame
from .registry import DERIVED, Comparisons, law

JI = "Ji et al. 2022, arXiv 2110.02796"
LYU = "Lyu and Li 2020"
SELI = "Thrampoulidis et al. 2022, arXiv 2208.05512"
LOG_TIMES = np.array([20.0, 50.0, 100.0, 200.0, 400.0])
RTOL = 1e-8


class Late(NamedTuple):
    """A run in the log clock to e^400, from a start of norm 1."""

    start: Point
    points: Point


def late(lab: Lab, system: System) -> Late:
    """The run of a system without a bias, with p = C - 1."""
    start = sphere(system, 1.0, seed=31)
    flow = Flow(clock="log", t1=float(LOG_TIMES[-1]), rtol=RTOL)
    path = simulate(system.model(), as_state(start), flow, LOG_TIMES, save_states=True, metrics=())
    assert path.states is not None
    return Late(start, as_point(path.states))


def tight() -> tuple[System, ...]:
    """The systems with p = C - 1 and no bias, whose runs several laws share."""
    return tuple(
        system._replace(p=system.C - 1, use_bias=False, reduction="sum") for system in lab_module.CROSS_ENTROPY
    )


def frames() -> tuple[System, ...]:
    return lab_module.CROSS_ENTROPY


def margin_of(system: System, point: Point) -> float:
    """The least margin over half the squared norm."""
    logits, samples = point.W @ point.H + point.b[:, None], np.arange(sum(system.counts))
    labels = np.repeat(np.arange(system.C), system.counts)
    own = logits[labels, samples]
    logits[labels, samples] = -np.inf
    return float((own - logits.max(axis=0)).min()) / (sum(float(np.sum(part**2)) for part in point) / 2)


@law("seli", "logits P Y have margins 1 and the least norm, ||W||^2 + ||H||^2 = 2 ||P diag(sqrt n)||_*", SELI)
def seli(lab: Lab) -> Comparisons:
    systems = [system._replace(use_bias=False) for system in (*frames(), *lab_module.TWO_GROUPS[:2])]
    for system in systems:
        state = as_point(max_margin.seli(system.model()))
        P, labels = np.eye(system.C) - 1 / system.C, np.repeat(np.eye(system.C), system.counts, axis=1)
        yield gap([state.W @ state.H], [P @ labels]), ROUNDED
        nuclear = np.linalg.svd(P * np.sqrt(system.counts), compute_uv=False).sum()
        yield abs((np.sum(state.W**2) + np.sum(state.H**2)) / (2 * nuclear) - 1), ROUNDED
        yield abs(margin_of(system, state) * nuclear - 1), ROUNDED
        yield abs(float(max_margin.margin(system.model())) * nuclear - 1), ROUNDED


@law(
    "margin",
    "margin/(||theta||^2/2) -> 1/(s (C-1)): above 0.999 of it at t = e^400, and never above it",
    f"{JI}; {LYU}",
)
def margin(lab: Lab) -> Comparisons:
    for system in tight():
        run = lab.keep(late, system)
        found = margin_of(system, Point(*(part[-1] for part in run.points))) * system.s * (system.C - 1)
        yield max(1 - found, 0.0), 1e-3
        yield max(found - 1, 0.0), ROUNDED


@law("smoothed-margin", "-ln(e^R - 1)/||theta||^2 never decreases once R < ln 2, R the sum over the samples", LYU)
def smoothed_margin(lab: Lab) -> Comparisons:
    """Along a run to e^50, where R is still a float; and its derivative at random states is not negative."""
    for system in tight():
        run, model = lab.keep(late, system), system.model()
        values = []
        for time in range(2):
            point = Point(*(part[time] for part in run.points))
            values.append(-math.log(math.expm1(float(risk(model, as_state(point))))) / _square(point))
        yield max(values[0] - values[1], 0.0) / values[1], RTOL
        for rho in (6.0, 8.0):
            noise = sphere(system, 0.1, seed=32)
            point = Point(*(x + dx for x, dx in zip(frame(system, rho), noise, strict=True)))
            value, moved = float(risk(model, as_state(point))), as_point(velocity(model, as_state(point)))
            fall = sum(float(np.sum(part**2)) for part in moved)  # -R'
            grow = 2 * sum(float(np.sum(x * dx)) for x, dx in zip(point, moved, strict=True))
            rate = math.exp(value) / math.expm1(value) * fall * _square(point) + math.log(math.expm1(value)) * grow
            yield max(-rate, 0.0), ROUNDED
            yield float(value > math.log(2)), 0.5


def _square(point: Point) -> float:
    return sum(float(np.sum(part**2)) for part in point)


@law(
    "frame-norms", "on the frame ||W||^2 = ||H||^2 = s (C-1) rho, and the margin is the largest at every time", DERIVED
)
def frame_norms(lab: Lab) -> Comparisons:
    for system in frames():
        for rho in (0.1, 10.0):
            point = frame(system, rho)
            yield abs(np.sum(point.W**2) / (system.s * (system.C - 1) * rho) - 1), ROUNDED
            yield abs(margin_of(system, point) / float(max_margin.margin(system.model())) - 1), ROUNDED


@law("frame-time", "on the frame 2 a s C t = Ei(rho) - Ei(rho0) + (C-1) ln(rho/rho0)", DERIVED)
def frame_time(lab: Lab) -> Comparisons:
    """The closed form, its inverse, and its derivative against the field."""
    for system in frames():
        model, rho0 = system.model(), 0.2
        for rho in (0.5, 3.0, 20.0):
            log_time = max_margin.time_on_ray(model, rho, rho0)
            integral = float(expi(rho) - expi(rho0)) + (system.C - 1) * math.log(rho / rho0)
            yield abs(math.expm1(float(log_time)) * 2 * system.a * system.s * system.C / integral - 1), ROUNDED
            yield abs(float(max_margin.logit_on_ray(model, log_time, rho0)) / rho - 1), ROUNDED
            point = frame(system, rho)
            rate = 2 * rho * np.sum(field(system, point).W * point.W) / np.sum(point.W**2)  # rho'
            slope = jax.grad(lambda time, model=model, rho0=rho0: max_margin.logit_on_ray(model, time, rho0))(log_time)
            yield abs(float(slope) / (rate * math.exp(float(log_time))) - 1), ROUNDED


@law("frame-late", "late on the frame rho = ln t + ln ln t + ln(2 a s C) + o(1), to times of e^1000000", DERIVED)
def frame_late(lab: Lab) -> Comparisons:
    for system in frames():
        times = jnp.array([1e2, 1e4, 1e6])
        rho = np.asarray(max_margin.logit_on_ray(system.model(), times, 1.0))
        rest = rho - times - np.log(times) - math.log(2 * system.a * system.s * system.C)
        yield np.max(np.abs(rest) * times / np.log(times)), 2.0
        yield np.max(np.abs(max_margin.time_on_ray(system.model(), rho, 1.0) / times - 1)), ROUNDED


@law(
    "late-logits",
    "generic starts follow the ray: their logits are rho P up to a part that vanishes at late times",
    DERIVED,
)
def late_logits(lab: Lab) -> Comparisons:
    for system in tight():
        run = lab.keep(late, system)
        for time, allowed in ((1, 0.05), (-1, 0.01)):
            logits = (run.points.W[time] @ run.points.H[time])[:, :: system.N]
            rho = np.trace(logits - logits.mean(axis=0)) / (system.C - 1)
            yield abs(rho - float(max_margin.logit_on_ray(system.model(), LOG_TIMES[time], 1.0))), allowed


@law("memory", "p = C - 1: rho ||W/||W|| - B^T/||B|| || -> ||K0||/(2 s sqrt(C-1)), so NC3 falls as 1/ln t", DERIVED)
def memory(lab: Lab) -> Comparisons:
    for system in tight():
        run = lab.keep(late, system)
        W, B = run.points.W[-1], split(system, run.points.H[-1])[0]
        W, B = W - W.mean(axis=0), B - B.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(W) * np.linalg.norm(B)
        found = norms / (system.s * (system.C - 1)) * np.linalg.norm(W / np.linalg.norm(W) - B.T / np.linalg.norm(B))
        expected = float(max_margin.memory(system.model(), as_state(run.start)))
        yield abs(found - expected) / max(expected, 1e-3), 1e-5


@law(
    "within-class-powers",
    "without decay H_dev falls as e^{-rho/(2C)} ~ t^{-1/(2C)} in the row space, as t^{-1/2} along its class",
    DERIVED,
)
def within_class_powers(lab: Lab) -> Comparisons:
    """The Hessian at the frame gives `d ln|h|/d rho`, exactly -1/(2C) and -p/2."""
    for system in frames():
        powers, rho = max_margin.powers(system.model()), 12.0
        point = frame(system, rho)
        rate = 2 * rho * np.sum(field(system, point).W * point.W) / np.sum(point.W**2)
        basis = np.linalg.svd(point.W)[2]
        own = point.W[0] / np.linalg.norm(point.W[0])
        p = math.exp(rho) / (math.exp(rho) + system.C - 1)
        rows = [(own, powers.own * p)]
        if powers.other is not None:
            rest = basis[: system.C - 1] - np.outer(basis[: system.C - 1] @ own, own)
            rows.append((rest[np.argmax(np.linalg.norm(rest, axis=1))], powers.other))
        if powers.outside is not None:
            rows.append((basis[-1], powers.outside))
        for direction, power in rows:
            H = np.zeros_like(point.H)
            H[:, 0], H[:, 1] = direction, -direction
            image = curved(system, point, Point(H, 0 * point.W, 0 * point.b))
            yield abs(-np.sum(image.H * H) / np.sum(H**2) / rate - power), 1e-10


@law("late-balance", "the imbalance W^T W - H H^T of the start is kept to t = e^400", DERIVED)
def late_balance(lab: Lab) -> Comparisons:
    for system in tight():
        run = lab.keep(late, system)
        first = run.start.W.T @ run.start.W - run.start.H @ run.start.H.T
        for W, H in zip(run.points.W, run.points.H, strict=True):
            yield np.linalg.norm(W.T @ W - H @ H.T - first) / np.sum(W**2), 100 * RTOL
            yield np.linalg.norm(W.sum(axis=0) - run.start.W.sum(axis=0)) / np.linalg.norm(W), 100 * RTOL

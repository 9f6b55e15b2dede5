"""Least squares on the closed forms: guesses read off the curve, the shapes that the data warrant, and intervals."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import least_squares
from scipy.stats import t as student

from .closed_forms import NAMES, Setting, predicted, slopes

SCALE, EPS, DECAY, LEVEL = range(len(NAMES))

BOUNDS = np.array([[-46.0, 46.0], [-80.0, 7.0], [0.0, 0.95], [-14.0, 14.0]])
"""The range of each coordinate."""

VARIANCE_BOUNDS, SHAPE_BOUNDS = [1e-8, 400.0], [-30.0, 30.0]

ROUNDING = 1e-12
"""The residual over the range of a curve below which it counts as rounding."""

TRIED = 3
"""The number of guesses, the closest to the data, from which minima are sought."""

FAR = 12.0
"""How far, in a coordinate that is a logarithm, a profile is followed before the interval counts as unbounded."""


class Problem(NamedTuple):
    """The curves to fit, as rows of `values` at the times `ts`, each with its weight."""

    setting: Setting
    names: tuple[str, ...]
    ts: Float[np.ndarray, " time"]
    values: Float[np.ndarray, "metric time"]
    weights: Float[np.ndarray, " metric"]

    @property
    def num_coordinates(self) -> int:
        return len(NAMES) + self.setting.num_shapes

    def residuals(self, at: Float[np.ndarray, " q"]) -> Float[np.ndarray, "metric time"]:
        """Prediction minus measurement, unweighted."""
        found = predicted(self.setting, self.names, jnp.asarray(at), jnp.asarray(self.ts))
        return np.asarray(found, np.float64) - self.values

    def weighted(self, at: Float[np.ndarray, " q"]) -> Float[np.ndarray, " n"]:
        return (self.residuals(at) * self.weights[:, None]).ravel()

    def jacobian(self, at: Float[np.ndarray, " q"]) -> Float[np.ndarray, "n q"]:
        found = slopes(self.setting, self.names, jnp.asarray(at), jnp.asarray(self.ts))
        return (np.asarray(found, np.float64) * self.weights[:, None, None]).reshape(-1, self.num_coordinates)

    def bounds(self) -> Float[np.ndarray, "q 2"]:
        shapes = [VARIANCE_BOUNDS, *[SHAPE_BOUNDS] * self.setting.num_shapes][: self.setting.num_shapes]
        return np.array([*BOUNDS, *shapes])


class Solution(NamedTuple):
    """A minimum over the `free` coordinates: all coordinates, and the sum of the weighted squares."""

    at: Float[np.ndarray, " q"]
    free: Bool[np.ndarray, " q"]
    squares: float


def solved(problem: Problem, at: Float[np.ndarray, " q"], free: Bool[np.ndarray, " q"]) -> Solution:
    """The minimum next to `at` over the free coordinates; the others stay."""
    low, high = problem.bounds()[free].T
    inside = 1e-9 * (high - low)

    def whole(part: Float[np.ndarray, " f"]) -> Float[np.ndarray, " q"]:
        full = at.copy()
        full[free] = part
        return full

    found = least_squares(
        lambda part: problem.weighted(whole(part)),
        np.clip(at[free], low + inside, high - inside),
        jac=lambda part: problem.jacobian(whole(part))[:, free],  # pyright: ignore[reportArgumentType] # it may be one
        bounds=(low, high),
        x_scale="jac",
        ftol=1e-13,
        xtol=1e-13,
        gtol=1e-13,
        max_nfev=60,
    )
    return Solution(whole(found.x), free, 2 * float(found.cost))


def best(problem: Problem, free: Bool[np.ndarray, " q"], start: Float[np.ndarray, " q"]) -> Solution:
    """The minimum over the free coordinates of the model with as many shapes of the modes as the data warrant.

    The variance of the modes is always free. Further shapes are added one at a time, as long as the Bayesian
    information criterion, `n ln(squares / n) + q ln n`, falls.
    """
    ranked = sorted(guesses(problem, free, start), key=lambda guess: float(np.sum(problem.weighted(guess) ** 2)))
    found = least_of(solved(problem, guess, free) for guess in ranked[:TRIED])
    for shape in range(problem.setting.num_shapes):
        wider, place = found.free.copy(), len(NAMES) + shape
        wider[place] = True
        more = least_of(
            solved(problem, replaced(found.at, place, step), wider)
            for step in ((0.1, 1.0, 4.0) if shape == 0 else (0.1, -0.1))
        )
        if shape == 0:
            found = more
            continue
        if information(problem, more) >= information(problem, found):
            break
        found = more
    return found


def least_of(solutions: Iterable[Solution]) -> Solution:
    return min(solutions, key=lambda one: one.squares)


def replaced(at: Float[np.ndarray, " q"], place: int, value: float) -> Float[np.ndarray, " q"]:
    """The same coordinates, except one."""
    at = at.copy()
    at[place] = value
    return at


def information(problem: Problem, solution: Solution) -> float:
    """The Bayesian information criterion of a solution; squares below rounding count as rounding."""
    n = problem.values.size
    least = n * (ROUNDING * np.max(problem.weights * np.ptp(problem.values, axis=1))) ** 2
    return n * math.log(max(solution.squares, least) / n) + np.sum(solution.free) * math.log(n)


def guesses(
    problem: Problem, free: Bool[np.ndarray, " q"], start: Float[np.ndarray, " q"]
) -> Iterator[Float[np.ndarray, " q"]]:
    """Starting points, read off the first curve: the mean mode is a logistic function of time.

    `x / (1 - x)` of the mean mode grows as `e^{2 r scale t}`: a line through its logarithm gives the rate and the half
    time. The decay follows from the end of the curve, and so is tried beside none.
    """
    setting, ts, s = problem.setting, problem.ts, problem.setting.s
    for level in levels(problem, free, start):
        mean = mean_mode(problem, level)
        end = float(np.clip(np.median(mean[-max(1, len(mean) // 20) :]), 0.05, 1.0))
        for decay in dict.fromkeys((0.0, 1 - end)) if free[DECAY] else (start[DECAY],):
            part = np.clip(mean / max(1 - decay, 0.05), 1e-12, 1 - 1e-12)
            rate, half = line(ts, np.log(part / (1 - part)), (part > 0.05) & (part < 0.95))
            for factor in (1.0, 0.5, 2.0):
                at = start.copy()
                r = s * (1 - decay)
                at[SCALE] = math.log(factor * rate / (2 * r))
                exponent = np.clip(factor * rate * half, -3.0, 150.0)
                at[EPS] = 0.5 * (math.log(setting.num_modes * r) - np.logaddexp(0.0, exponent))
                at[DECAY], at[LEVEL] = decay, level
                yield np.clip(at, *problem.bounds().T)


def levels(problem: Problem, free: Bool[np.ndarray, " q"], start: Float[np.ndarray, " q"]) -> tuple[float, ...]:
    """The logarithms of the levels to try: if it is free, the first risk is that of the plateau or of the origin."""
    if not free[LEVEL]:
        return (start[LEVEL],)
    first = max(float(problem.values[0][0]), 1e-300)
    return tuple(math.log(first / at) for at in dict.fromkeys((problem.setting.plateau, problem.setting.origin)))


def mean_mode(problem: Problem, level: float = 0.0) -> Float[np.ndarray, " time"]:
    """The mean of the modes over `sqrt N` that the first curve shows, if all modes were equal and the bias at rest."""
    setting, curve = problem.setting, problem.values[0]
    lost = curve**2 if problem.names[0] == "snc1" else 2 * curve / (setting.factor * math.exp(level))
    left = np.maximum(lost - setting.samples * setting.missing, 0.0) / setting.num_modes
    return 1 - np.sqrt(left) / setting.s


def line(ts: Float[np.ndarray, " time"], heights: Float[np.ndarray, " time"], inside: Bool[np.ndarray, " time"]):
    """The slope and the zero of a rising line through the points inside; a steep or a slow one if they are too few."""
    span = ts[-1] - ts[0]
    if np.sum(inside) >= 2:
        slope, height = np.polyfit(ts[inside], heights[inside], 1)
        if slope * span > 0.1:
            return float(slope), float(-height / slope)
    above = np.flatnonzero(heights > 0)
    if len(above) == 0:  # no mode escapes within the curve
        return 10 / span, float(ts[-1])
    return 4 / float(np.min(np.diff(ts))), float(ts[above[0]])


class Spread(NamedTuple):
    """How well the coordinates are determined: the linear half width of each interval, and what the profile needs."""

    half: Float[np.ndarray, " q"]
    allowed: float


def spread(problem: Problem, solution: Solution, confidence: float) -> Spread:
    """The Gauss-Newton intervals of the free coordinates, from the residuals.

    Residuals that resemble their neighbours, with the correlation rho, tell less: as for an autoregressive process, the
    covariance is multiplied by `(1 + rho) / (1 - rho)`. A direction that the data do not determine has an infinite
    width.
    """
    residuals = problem.residuals(solution.at) * problem.weights[:, None]
    rho = max(0.0, *(neighbours(row) for row in residuals))
    freedom = max(residuals.size - int(np.sum(solution.free)), 1)
    variance = solution.squares / freedom * (1 + rho) / (1 - rho)
    reach = float(student.ppf(0.5 + confidence / 2, freedom))
    half = np.zeros(len(solution.at))
    half[solution.free] = reach * np.sqrt(variance * diagonal(problem.jacobian(solution.at)[:, solution.free]))
    return Spread(half, reach**2 * variance)


def neighbours(row: Float[np.ndarray, " n"]) -> float:
    """The correlation of neighbouring residuals, below 1."""
    square = float(np.sum(row**2))
    return min(float(row[1:] @ row[:-1]) / square, 1 - 1 / len(row)) if square > 0 else 0.0


def diagonal(jacobian: Float[np.ndarray, "n f"]) -> Float[np.ndarray, " f"]:
    """The diagonal of `(J^T J)^-1`; infinite where J determines nothing."""
    lengths = np.linalg.norm(jacobian, axis=0)
    known = np.where(lengths > 0, lengths, 1.0)
    _, sizes, right = np.linalg.svd(jacobian / known, full_matrices=False)
    small = sizes <= len(jacobian) * np.finfo(float).eps * max(float(sizes.max(initial=0.0)), 1e-300)
    parts = right**2 / np.where(small, 1.0, sizes)[:, None] ** 2
    found = np.sum(parts * ~small[:, None], axis=0) / known**2
    return np.where(np.any(right[small] ** 2 > 1e-6, axis=0) | (lengths == 0), np.inf, found)


def interval(problem: Problem, solution: Solution, about: Spread, which: int) -> tuple[float, float, bool]:
    """The interval of a coordinate, and whether it is a profile.

    The linear interval is kept if the sum of squares, minimised over the other coordinates, rises at both of its ends
    as the linearisation says, within a quarter. Otherwise its ends are where that sum has risen by the allowed amount.
    """
    at, half = solution.at[which], about.half[which]
    if not solution.free[which] or half == 0:
        return at, at, False
    if half < 1e-7:  # so narrow that the curvature is lost in rounding
        return at - half, at + half, False
    low, high = problem.bounds()[which]
    rest, last = solution.free.copy(), solution
    rest[which] = False

    def rise(value: float) -> float:
        nonlocal last
        last = solved(problem, replaced(last.at, which, value), rest)
        return last.squares - solution.squares

    ends = (at - half, at + half)
    if all(low < end < high and 0.75 < rise(end) / about.allowed < 4 / 3 for end in ends):
        return *ends, False
    below, above = (crossing(rise, at, sign, half, (low, high), about.allowed) for sign in (-1, 1))
    return below, above, True


def crossing(rise, at: float, sign: int, half: float, bounds: tuple[float, float], allowed: float) -> float:
    """Where the profile has risen by the allowed amount on one side; infinite if it does not before the bound.

    The root of the rise is nearly linear, so its chord cuts the bracket; a cut near an end is moved inward.
    """
    furthest = min(abs((bounds[0] if sign < 0 else bounds[1]) - at), FAR)
    inner, low, outer = 0.0, 0.0, min(half, 1.0, furthest)
    while (high := math.sqrt(max(rise(at + sign * outer), 0.0) / allowed)) < 1:
        if outer >= furthest:
            return sign * math.inf
        inner, low, outer = outer, high, min(2 * outer, furthest)
    while outer - inner > 2e-3 * outer:
        cut = inner + (outer - inner) * min(max((1 - low) / (high - low), 0.1), 0.9)
        height = math.sqrt(max(rise(at + sign * cut), 0.0) / allowed)
        if height < 1:
            inner, low = cut, height
        else:
            outer, high = cut, height
    return at + sign * outer

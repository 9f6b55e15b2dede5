"""Whether the model explains the curves: the criterion, and the reason in a sentence."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..theory.small_starts.escape import FAINT, SMALL
from .closed_forms import Setting
from .least_squares import Problem, neighbours
from .result import Estimate, growing_share

SCATTER = 0.05
"""The largest misfit, relative to the range of the curve, with which a noisy curve still counts as explained."""

PEAK = 0.2
"""The largest single residual, relative to the range of the curve, of a curve that counts as explained."""

SIGMAS = 5.0
"""How many typical differences of neighbouring points still count as noise."""

UNEVEN = 10.0
"""The largest factor between modes, as singular values, of a random start with at least two features for each mode.

For many classes it tends to `(sqrt 2 + 1)/(sqrt 2 - 1) = 5.8` (Marchenko and Pastur); for four it exceeds 10 once in a
hundred starts. With fewer features there is no such bound, only the one of the theory of small starts.
"""

LONELY = 8.0
"""How often the misfit a residual may be large before it counts as a fault of the model, and not as scatter."""

FLAT = 1e-6
"""The range of a curve, relative to its largest value, below which it counts as constant."""

WIDE = {"scale": math.log(4.0), "eps": math.log(100.0), "level": math.log(2.0)}
"""The widest intervals, as the logarithm of high over low, of estimates that still count as determined."""

WIDE_DECAY = 0.25
"""The widest interval of a decay that counts as determined, relative to `sqrt N`, at which the modes stop growing."""


class Agreement(NamedTuple):
    """How close a prediction is to a curve, relative to the range of the curve."""

    r_squared: float
    misfit: float
    systematic: float
    peak: float


def agreement(values: Float[np.ndarray, " time"], residuals: Float[np.ndarray, " time"]) -> Agreement:
    """The coefficient of determination, the root mean square of the residuals, what neighbours share, and the largest.

    The correlation of neighbouring residuals is 1 for a misfit that changes slowly, and below `2 / sqrt n` for noise.
    """
    size, total = float(np.ptp(values)), float(np.sum((values - np.mean(values)) ** 2))
    if size == 0:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    square = float(np.mean(residuals**2))
    shared = max(neighbours(residuals) - 2 / math.sqrt(len(values)), 0.0) * square
    peak = float(np.max(np.abs(residuals)))
    return Agreement(1 - square * len(values) / total, math.sqrt(square) / size, math.sqrt(shared) / size, peak / size)


def is_flat(values: Float[np.ndarray, " time"]) -> bool:
    """Whether a curve is constant."""
    return bool(np.ptp(values) <= FLAT * np.max(np.abs(values)))


def undetermined(setting: Setting, estimates: Mapping[str, Estimate], fixed: tuple[str, ...]) -> tuple[str, ...]:
    """The estimates whose intervals are too wide to tell anything."""
    found = [
        name
        for name, width in WIDE.items()
        if name not in fixed and not estimates[name].high < math.exp(width) * estimates[name].low
    ]
    decay = estimates["decay"]
    if "decay" not in fixed and not decay.high - decay.low <= WIDE_DECAY * setting.s:
        found.append("decay")
    return tuple(found)


class Judgement(NamedTuple):
    """Everything that the judgement looks at; `other_loss` is the text of a loss that is not the squared error."""

    problem: Problem
    residuals: Float[np.ndarray, "metric time"]
    agreements: Mapping[str, Agreement]
    estimates: Mapping[str, Estimate]
    modes: Float[np.ndarray, " k"]
    undetermined: tuple[str, ...]
    tolerance: float
    axis: str
    other_loss: str | None
    level_is_free: bool

    def against(self) -> str | None:
        """The first reason against the model, or None."""
        return next(self._reasons(), None)

    def _reasons(self) -> Iterator[str]:
        constant = [name for name, row in self._rows() if is_flat(row)]
        if constant:
            yield f"{constant[0]} is constant, so no mode escapes and nothing fixes the time scale or the start."
            return
        if self.other_loss is not None:
            yield f"the loss of the run is {self.other_loss}, and the closed forms are those of the squared error."
        if "risk" in self.problem.names:
            yield from self._wrong_level(dict(self._rows())["risk"])
        missed = next((name for name, _ in self._rows() if self._misses(name)), None)
        if missed is not None:
            yield from self._unsteady(missed)
            yield from self._late(missed)
        ratio = math.sqrt(self.modes.max() / max(self.modes.min(), 1e-300))
        most = FAINT if self.problem.setting.few_features else UNEVEN
        if ratio > most:
            yield (
                f"the modes of the start would differ by a factor of {ratio:.3g}, and those of a random start do by "
                f"less than {most:g}: the modes of this run grow at different rates."
            )
        about = f"the best start, of eps = {self.estimates['eps'].value:.3g}, is not small"
        small = sphere_size(self.problem.setting, self.estimates["eps"].value) <= SMALL
        if missed is not None:
            yield from self._missed(missed, "" if small else f"{about}, and even with it ")
        if not small:
            yield f"{about}: the closed forms would hold only on the invariant subspace, which curves cannot tell."
        if self.undetermined:
            yield f"the curves do not determine {' or '.join(self.undetermined)}{self._because()}."

    def _rows(self) -> Iterator[tuple[str, Float[np.ndarray, " time"]]]:
        return zip(self.problem.names, self.problem.values, strict=True)

    def _misses(self, name: str) -> bool:
        found = self.agreements[name]
        return not (found.systematic <= self.tolerance and found.misfit <= SCATTER and found.peak <= PEAK)

    def _late(self, name: str) -> Iterator[str]:
        """A time axis that starts on the plateau, where the bias is at rest, although it says that training starts."""
        first, (low, high), squares = float(self.problem.values[0][0]), self._starts(), self.residuals[0] ** 2
        alone = squares[0] > 0.5 * np.sum(squares) and self.problem.ts[0] == 0 and not self.level_is_free
        if name == "risk" and alone and abs(first - low) < 0.2 * (high - low):
            yield (
                f"risk is {first:.4g} at {self.axis} = 0, where the bias has relaxed already, and at the start of "
                f"training it would be {high:.4g}: leave out that time, or count from the start."
            )

    def _unsteady(self, name: str) -> Iterator[str]:
        """Scatter, or a rise that no gradient flow has."""
        row, found = dict(self._rows())[name], self.agreements[name]
        noise = found.peak <= LONELY * found.misfit and found.systematic <= max(self.tolerance, 0.5 * found.misfit)
        if found.misfit > SCATTER and noise:
            yield (
                f"{name} scatters about the model by {found.misfit:.1%} of its range, more than {SCATTER:.0%}: average "
                "over runs, or over batches."
            )
        rise, step = float(np.max(row - np.minimum.accumulate(row))), float(np.median(np.abs(np.diff(row))))
        if rise > max(0.1 * np.ptp(row), 2 * SIGMAS * step):
            yield (
                f"{name} rises again by {rise / np.ptp(row):.0%} of its range after it has fallen, and in the model it "
                "never does."
            )

    def _missed(self, name: str, start: str) -> Iterator[str]:
        """A misfit that is neither scatter nor a rise."""
        found, row = self.agreements[name], self.residuals[self.problem.names.index(name)]
        worst = self.problem.ts[int(np.argmax(np.abs(row)))]
        yield (
            f"{start}the model misses {name} by {found.misfit:.1%} of its range, by {found.systematic:.1%} in a "
            f"systematic way, and by {found.peak:.0%} at {self.axis} = {worst:.4g}."
        )

    def _wrong_level(self, row: Float[np.ndarray, " time"]) -> Iterator[str]:
        """A first risk that the model cannot have: another loss, another normalisation, or a large start."""
        setting, first = self.problem.setting, float(row[0])
        low, high = self._starts()
        noise = SIGMAS * float(np.median(np.abs(np.diff(row[:9]))))
        if 0.9 * low - noise <= first <= 1.1 * high + noise or (first < low and self.problem.ts[0] > 0):
            return
        about = f"risk starts at {first:.4g}, and from a small start it would start between {low:.4g} and {high:.4g}"
        total = setting.samples * setting.num_classes
        logarithms = {math.log(setting.num_classes) * total, math.log(setting.num_classes)}
        if any(math.isclose(first, one, rel_tol=0.02) for one in logarithms):
            yield f"{about}: it starts at ln C, as cross-entropy does, and the closed forms are of the squared error."
        names = {"sum": 1.0, "mean": 1 / total, "mse": 2 / total / setting.num_classes}
        ratios = {name: factor / self.estimates["level"].value for name, factor in names.items()}
        right = [name for name, ratio in ratios.items() if 0.95 * low * ratio <= first <= 1.05 * high * ratio]
        if right:
            yield f"{about}: it would start right with reduction={' or '.join(map(repr, right))}."
        yield f"{about}: the start is not small, or the loss is another one."

    def _starts(self) -> tuple[float, float]:
        """The risk from which the modes escape, and the risk at the origin."""
        level = self.estimates["level"].value / self.problem.setting.factor
        return self.problem.setting.plateau * level, self.problem.setting.origin * level

    def _because(self) -> str:
        risen = 1 - np.sqrt(max(float(self.problem.values[0][-1] / self.problem.values[0][0]), 0.0))
        if "decay" in self.undetermined and risen < 0.9:
            return ", as they stop before the plateau: train longer, or give decay="
        return ": measure more points, or points with less noise"


def sphere_size(setting: Setting, eps: float) -> float:
    """`eps^2 / sqrt N` of the random start with this growing part: the size that the theory of small starts bounds."""
    return eps**2 / growing_share(setting) / setting.s

"""The verb `fit`: the unconstrained features model that explains measured curves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from .._checks import Number, check_number, real_numbers, shown
from .._errors import UsageError
from .closed_forms import NAMES, Setting, modes_of, predicted
from .judgement import Agreement, Judgement, agreement, is_flat, undetermined
from .least_squares import BOUNDS, DECAY, ROUNDING, VARIANCE_BOUNDS, Problem, Solution, best, interval, solved, spread
from .measured import Measured, chosen, compared, read, setting_of, values_of
from .result import Estimate, Fit

TOLERANCE = 0.01
"""The largest systematic misfit, relative to the range of the curve, of a model that explains it."""


def fit(
    curves: Any,
    *,
    num_classes: int | None = None,
    samples_per_class: Any = None,
    num_features: int | None = None,
    use_bias: bool | None = None,
    reduction: str | None = None,
    penalised: bool | None = None,
    metrics: Any = None,
    decay: Number | None = None,
    confidence: Number = 0.95,
    tolerance: Number = TOLERANCE,
) -> Fit:
    """Fit the model to curves of a training run with squared error and small initial weights.

    The fit finds the time scale, the size of the start and the weight decay with which the closed forms on S follow the
    curves, by least squares. The first guess is read off the curves.

    Args:
        curves: a mapping such as `{"epoch": ..., "risk": ...}`, with the times under `epoch`, `t` or `time`, each curve
            of shape (time,); a pandas DataFrame with such columns; an `xarray.Dataset` with such a dimension; or a
            `Trajectory`. Training starts at time 0, with the bias at 0; the first points may be missing. `loss` is
            another name for the risk.
        num_classes: C, at least 2. Default: the attribute of the Dataset, or that of its model.
        samples_per_class: N, or one count per class; counts may differ by a tenth, and their mean is used. Default: as
            for C.
        num_features: p, if there are few: below C - 1 it limits the number of modes, and below 2 (C - 1) the modes of
            a start may differ much.
        use_bias: whether the classifier has a bias. Default True.
        reduction: how the measured risk is normalised: `"sum"`, half the sum of the squares; `"mean"`, half their sum
            over the number of samples; `"mse"`, the mean of the squares over samples and classes, as torch's MSELoss;
            or `"free"`, with a factor that is fitted too. Default: as for C, or `"sum"`.
        penalised: whether the risk includes the term of the weight decay. Default: False, and True for runs of this
            package.
        metrics: the names of the metrics to fit, of `risk`, `snc1` and `snc3`. Default: the risk, or else `snc1`. The
            other metrics with a curve are predicted and compared.
        decay: the weight decay in units of the summed risk, if it is known. Default: it is fitted.
        confidence: that of the intervals, from 0.01 to 0.9999.
        tolerance: the largest systematic misfit, relative to the range of a curve.

    Returns:
        The `Fit`. It explains the curves if, for each fitted metric, the part of the misfit that neighbouring residuals
        share is at most `tolerance` of the range, and the whole misfit at most 5 %; the start is small; its modes
        differ by a factor of at most 10, or 100 if `num_features` is less than twice their number; and the curves
        determine each estimate: high over low is at most 4 for the scale, 100 for eps and 2 for the level, and the
        interval of the decay is at most a quarter of `sqrt N`.

    The intervals assume that the closed form is exact and that residuals have equal variance within a metric. They are
    Gauss-Newton intervals, widened by the correlation of neighbouring residuals, or profiles of the sum of squares
    where that is not quadratic. From a start off S, estimates are also off by the order of eps^2.

    Raises:
        UsageError: for curves that are no such curves (times that do not increase, lengths that differ, fewer than 12
            points, NaN, negative risks, unknown names, several runs), sizes that are missing or wrong, unequal counts,
            wrong options, or without float64.

    Source: derived here, from the paper's flow on S; see `fc.theory.exact` and `fc.theory.curves`.

    Example:
        >>> import numpy as np, flowcollapse as fc
        >>> fc.enable_x64()
        >>> epoch = np.arange(5, 100)  # the bias has relaxed
        >>> mode = 1 / (1 + np.exp(-0.2 * (epoch - 50.0)))  # both modes of three classes grow alike
        >>> fit = fc.fit({"epoch": epoch, "risk": 25 * (1 - mode) ** 2}, num_classes=3, samples_per_class=25)
        >>> fit.explains, round(fit.scale.value, 4), bool(fit.decay.value < 1e-3)
        (True, 0.02, True)
    """
    if not jax.config.read("jax_enable_x64"):
        raise UsageError("fc.fit needs float64, and JAX runs in 32 bits: call fc.enable_x64() first.")
    for name, value in (("confidence", confidence), ("tolerance", tolerance)):
        check_number(name, value)
    if not 0.01 <= float(confidence) <= 0.9999:
        raise UsageError(f"confidence must lie between 0.01 and 0.9999, got {shown(confidence)}: use 0.95.")
    given = {
        "num_classes": num_classes,
        "samples_per_class": samples_per_class,
        "num_features": num_features,
        "use_bias": use_bias,
        "reduction": reduction,
        "penalised": penalised,
    }
    measured = read(curves)
    setting = setting_of(measured.facts, given)
    _check_decay(setting, decay)
    names = chosen(measured, metrics, setting)
    values = np.stack([values_of(measured, name) for name in names])
    free_level = (reduction or measured.facts.get("reduction")) == "free"

    start = np.zeros(len(NAMES) + setting.num_shapes)
    start[len(NAMES) : len(NAMES) + 1] = VARIANCE_BOUNDS[0]
    start[DECAY] = 0.0 if decay is None else float(decay) / setting.s
    free = np.array([True, True, decay is None, free_level] + [False] * setting.num_shapes)
    ranges = np.ptp(values, axis=1)
    problem = Problem(setting, names, measured.ts, values, 1 / np.where(ranges > 0, ranges, 1.0))
    solution = best(problem, free, start)
    if len(names) > 1:
        problem, solution = _reweighted(problem, solution)
    return _judged(measured, problem, solution, free, float(confidence), float(tolerance))


def _check_decay(setting: Setting, decay: Any) -> None:
    numbers, most = None if decay is None else real_numbers(decay), BOUNDS[DECAY, 1] * setting.s
    if decay is not None and (numbers is None or numbers.ndim != 0 or not 0 <= numbers <= most):
        raise UsageError(
            f"decay must be a number from 0 to {most:.3g}, near which modes stop growing, got {shown(decay)}: give one "
            "in units of the summed risk, or leave it out."
        )


def _reweighted(problem: Problem, solution: Solution) -> tuple[Problem, Solution]:
    """The fit with each metric weighed by the scatter of its residuals, and from there on in units of that scatter."""
    scatter = np.sqrt(np.mean(problem.residuals(solution.at) ** 2, axis=1))
    problem = problem._replace(weights=1 / np.maximum(scatter, ROUNDING / problem.weights))
    return problem, solved(problem, solution.at, solution.free)


def _judged(
    measured: Measured,
    problem: Problem,
    solution: Solution,
    free: Bool[np.ndarray, " q"],
    confidence: float,
    tolerance: float,
) -> Fit:
    """The fit with its intervals and its judgement."""
    setting, at = problem.setting, solution.at
    ends = dict.fromkeys(NAMES, (-math.inf, math.inf, False))
    if not any(is_flat(row) for row in problem.values):
        about = spread(problem, solution, confidence)
        ends = {name: interval(problem, solution, about, place) for place, name in enumerate(NAMES)}
    estimates = {
        name: Estimate(*(_number(setting, name, value) for value in (at[place], *ends[name][:2])))
        for place, name in enumerate(NAMES)
    }
    fixed = tuple(name for place, name in enumerate(NAMES) if not free[place])
    modes = np.sort(np.asarray(modes_of(setting, at)))[::-1]
    agreements = _agreements(measured, problem, at)
    left_open = undetermined(setting, estimates, fixed)
    judgement = Judgement(
        problem=problem,
        residuals=problem.residuals(at),
        agreements=agreements,
        estimates=estimates,
        modes=modes,
        undetermined=left_open,
        tolerance=tolerance,
        axis=measured.axis,
        other_loss=measured.facts.get("other_loss"),
        level_is_free="level" not in fixed,
    )
    reason = judgement.against()
    worst = max(agreements[name].misfit for name in problem.names)
    return Fit(
        explains=reason is None,
        reason=reason
        or f"from a small start, the model follows {' and '.join(problem.names)} up to {worst:.2g} of the range.",
        scale=estimates["scale"],
        eps=estimates["eps"],
        decay=estimates["decay"],
        level=estimates["level"],
        modes=modes,
        metrics=problem.names,
        fixed=fixed,
        r_squared={name: one.r_squared for name, one in agreements.items()},
        misfit={name: one.misfit for name, one in agreements.items()},
        systematic={name: one.systematic for name, one in agreements.items()},
        undetermined=left_open,
        confidence=confidence,
        profiled=tuple(name for name in NAMES if ends[name][2]),
        num_points=len(measured.ts),
        axis=measured.axis,
        setting=setting,
        coordinates=at,
    )


def _number(setting: Setting, name: str, coordinate: float) -> float:
    """The number that a coordinate stands for."""
    if name == "decay":
        return setting.s * max(coordinate, 0.0)
    factor = setting.factor if name == "level" else 1.0
    return factor * math.exp(coordinate) if coordinate < math.inf else math.inf


def _agreements(measured: Measured, problem: Problem, at: Float[np.ndarray, " q"]) -> dict[str, Agreement]:
    """The agreement of each fitted metric, and of every other one that has a curve, where it is finite."""
    found = dict(zip(problem.names, map(agreement, problem.values, problem.residuals(at)), strict=True))
    for name in problem.setting.names:
        if name in measured.curves and name not in found:
            values = compared(measured, name)
            known = np.isfinite(values)
            if np.any(known):
                rows = predicted(problem.setting, (name,), jnp.asarray(at), jnp.asarray(measured.ts))
                found[name] = agreement(values[known], (np.asarray(rows)[0] - values)[known])
    return found

"""The moving parts of a film: class means, classifier and samples, the directions that show them, and the pace."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from .._checks import is_traced
from .._errors import UsageError
from ..model.columns import class_means
from ..results.trajectory import Trajectory
from ._read import another_picture, read
from ._select import attribute
from ._style import clock_label

SNC = ("snc1", "snc2", "snc3")
NC = {"nc1": "NC1", "nc2_etf_h": "NC2 of $H$", "nc2_etf_w": "of $W$", "nc3": "NC3"}
"""The errors that fall beside the risk: those of strong collapse, or of collapse if the run has no strong one."""

TOO_LARGE = 1e100
"""Saves with larger numbers are left out, because their squares overflow."""

DIMENSIONS = {2: 1, 3: 2, 4: 3}
"""The dimensions of the picture by the number of classes: those of the simplex. More classes are drawn in a plane."""

POLYGON = 0.1
"""Axes whose lengths at the end differ by less than this share are rotated until the simplex is a regular polygon."""

ABSENT = 1e-6
"""A direction is absent from vectors that have less than this share of their size in it."""

PACE = {"motion": 2.0, "curves": 1.0, "time": 0.4}
"""How much of a film goes to the motion, to the curves beside it, and to the time that passes meanwhile."""


@dataclasses.dataclass(frozen=True)
class Motion:
    """A run as a film shows it.

    `times` has shape (time,), `means` (time, p, C), `W` (time, C, p), and `classes` (drawn samples,). `features` gives
    H at the drawn samples, shape (frames, p, drawn samples), for an array of save numbers.
    """

    times: np.ndarray
    means: np.ndarray
    W: np.ndarray
    counts: tuple[int, ...]
    classes: np.ndarray
    features: Callable[[np.ndarray], np.ndarray]
    curves: dict[str, np.ndarray]
    clock: str

    @property
    def ratio(self) -> float:
        """The length of the class means over that of the rows of W at the end: `1/sqrt N` after strong collapse."""
        sizes = np.linalg.norm(self.means[-1]), np.linalg.norm(self.W[-1])
        return float(sizes[0] / sizes[1]) if min(sizes) > 0 else 1.0

    @property
    def dimensions(self) -> int:
        """The dimensions of the picture, at most 3."""
        return min(DIMENSIONS.get(len(self.counts), 2), self.means.shape[1])


def motion_of(run: Any, samples: int) -> Motion:
    """The motion of a run with states at its save times, with at most `samples` drawn samples of each class.

    Raises:
        UsageError: if the run has no states, or several lanes.
    """
    motion = _of_trajectory(run, samples) if isinstance(run, Trajectory) else _of_dataset(read(run), samples)
    sizes = [np.abs(part).max(axis=(1, 2)) for part in (motion.means, motion.W)]
    kept = np.flatnonzero((np.stack(sizes) < TOO_LARGE).all(axis=0))  # False for NaN
    if len(kept) == 0:
        raise UsageError("run has no finite state: choose another start, or a smaller step size.")
    features = motion.features
    return dataclasses.replace(
        motion,
        times=motion.times[kept],
        means=motion.means[kept],
        W=motion.W[kept],
        features=lambda frames: features(kept[frames]),
        curves={name: values[kept] for name, values in motion.curves.items()},
    )


def curves_shown(names: Iterable[str]) -> list[str]:
    """The metrics that a film shows beside the motion, of those that there are: the risk first."""
    there = set(names)
    errors = [name for name in SNC if name in there] or [name for name in NC if name in there]
    return [name for name in ("risk",) if name in there] + errors


def drawn_samples(counts: Sequence[int], most: int) -> np.ndarray:
    """The numbers of the first samples of each class, at most `most`. Random starts treat all samples alike."""
    first = np.cumsum([0, *counts[:-1]])
    return np.concatenate([start + np.arange(min(n, most)) for start, n in zip(first, counts, strict=True)])


def _of_trajectory(run: Trajectory, samples: int) -> Motion:
    if is_traced(run.ts):
        raise UsageError("run is traced and has no values yet: return it from jax.jit first.")
    if np.ndim(run.ts) != 1:
        raise UsageError(f"run has lanes of shape {np.shape(run.ts)[:-1]}, and a film shows one: pass a single run.")
    states = run.states
    if states is None:
        raise UsageError("run has no states: call fc.simulate(..., save_states=True).")
    counts, columns = run.model.counts, states.columns
    chosen = drawn_samples(counts, samples)
    B = np.asarray(states.B) / np.sqrt(np.array(counts)) if columns.reduced else None
    means = np.asarray(class_means(states.X, counts)) if B is None else B
    return Motion(
        times=np.asarray(run.ts, float),
        means=np.asarray(means, float),
        W=np.asarray(states.W, float),
        counts=counts,
        classes=np.repeat(np.arange(len(counts)), counts)[chosen],
        features=lambda frames: np.asarray(columns.lift_some(states.X[frames], chosen), float),
        curves={name: np.asarray(run.metrics[name], float) for name in curves_shown(run.metrics)},
        clock="time $t$" if run.method.time_name == "time" else run.method.time_name,
    )


def _of_dataset(dataset: xr.Dataset, samples: int) -> Motion:
    if "time" not in dataset.dims or not {"H", "W"} <= {*dataset.data_vars}:
        kind = another_picture(dataset, "run")
        raise UsageError(f"run has no states H and W over time{kind}: save them, with save_states=True.")
    H, W = (dataset[name] for name in ("H", "W"))
    if H.dims != ("time", "feature", "sample") or W.dims != ("time", "class", "feature"):
        raise UsageError(f"run has H over {H.dims} and W over {W.dims}, and a film shows one run: select one first.")
    times = dataset["time"] if "time" in dataset.coords else dataset.get("t")
    if times is None or times.dims != ("time",):
        raise UsageError("run has no times: pass what fc.simulate returns, its to_xarray(), or its file.")
    model = attribute(dataset, "model")
    C, n = W.sizes["class"], H.sizes["sample"]
    counts = np.broadcast_to(np.asarray(model.get("samples_per_class", max(1, n // C))), (C,))
    if counts.sum() != n:
        raise UsageError(f"run has {n} samples, which are not those of its {C} classes: keep the attribute 'model'.")
    counts = tuple(map(int, counts))
    features, chosen = H.values.astype(float), drawn_samples(counts, samples)
    sums = np.add.reduceat(features, np.cumsum([0, *counts[:-1]]), axis=-1)
    names = curves_shown(str(name) for name, values in dataset.data_vars.items() if values.dims == ("time",))
    return Motion(
        times=times.values.astype(float),
        means=sums / np.array(counts),
        W=W.values.astype(float),
        counts=counts,
        classes=np.repeat(np.arange(C), counts)[chosen],
        features=lambda frames: features[frames][..., chosen],
        curves={name: dataset[name].values.astype(float) for name in names},
        clock=clock_label(dataset.assign_coords(time=times)),
    )


def directions(means: np.ndarray, more: Iterable[np.ndarray], count: int) -> np.ndarray:
    """An orthonormal basis of the directions that a film shows, shape (p, count).

    Args:
        means: the class means at the end, shape (p, C). The directions are the leading ones of their differences; of
            directions that are equally long, up to `POLYGON`, those in which a simplex is a regular polygon. They are
            turned so that the first class is up, and the second to the right of it.
        more: further vectors, shape (p, any), for the directions that the class means at the end leave open.
        count: the number of directions, at most p.
    """
    p, C = means.shape
    centred = means - means.mean(axis=1, keepdims=True)
    if np.abs(centred).max() <= 1e-12 * np.abs(means).max():  # equal up to rounding
        centred = np.zeros_like(centred)
    angles = 2 * np.pi * np.arange(C) / C
    polygon = np.stack([np.cos(angles), np.sin(angles)]) * np.sqrt(2 / C)
    basis = np.zeros((p, 0))
    for vectors in (centred + POLYGON * centred @ polygon.T @ polygon, means, *more, np.eye(p)):
        if basis.shape[1] == count:
            break
        left = vectors - basis @ (basis.T @ vectors)
        axes, sizes, _ = np.linalg.svd(left / (np.abs(vectors).max() or 1.0), full_matrices=False)
        basis = np.hstack([basis, axes[:, sizes > ABSENT]])[:, :count]
    turn, ends = np.linalg.qr(basis.T @ centred)
    signs = np.where(np.diagonal(ends)[: turn.shape[1]] < 0, -1.0, 1.0)
    return np.roll(basis @ (turn * signs), -1, axis=1)


def simplex(ends: np.ndarray) -> np.ndarray | None:
    """The corners of the regular simplex, or of its projection, that are nearest to points; shape (dimensions, C).

    Returns None for points that do not span all dimensions. The best rotation is that of the polar factor, and the best
    size the mean of the singular values (Procrustes).
    """
    centre = ends.mean(axis=1, keepdims=True)
    left, sizes, right = np.linalg.svd(ends - centre, full_matrices=False)
    if sizes[-1] <= 1e-3 * sizes[0] or sizes[0] == 0:
        return None
    return centre + sizes.mean() * (left @ right)


def even_frames(motion: Motion, basis: np.ndarray, count: int) -> np.ndarray:
    """At most `count` save numbers, from the first to the last, between which equally much happens; see `PACE`."""
    moving = np.concatenate([basis.T @ motion.means, motion.ratio * basis.T @ np.swapaxes(motion.W, 1, 2)], axis=2)
    curves = [heights(name, values) for name, values in motion.curves.items()]
    passed = np.zeros(len(motion.times))
    for name, steps in (
        ("motion", np.linalg.norm(np.diff(moving, axis=0), axis=(1, 2))),
        ("curves", sum((np.abs(np.diff(curve)) for curve in curves), np.zeros(len(passed) - 1))),
        ("time", np.diff(motion.times)),
    ):
        total = steps.sum()
        if np.isfinite(total) and total > 0:
            passed[1:] += PACE[name] * np.cumsum(steps) / total
    if passed[-1] == 0:
        return np.unique([0, len(passed) - 1])
    return np.unique(np.abs(passed[:, None] - np.linspace(0, passed[-1], count)).argmin(axis=0))


def heights(name: str, values: np.ndarray) -> np.ndarray:
    """A curve as its axes show it: the risk as it is, errors as logarithms; missing values as those before them."""
    low = floor_of(values)
    curve = values if name == "risk" else np.log(np.maximum(np.where(np.isfinite(values), values, low), low))
    curve = np.where(np.isfinite(curve), curve, 0.0)
    return curve / (np.ptp(curve) or 1.0)


def floor_of(values: np.ndarray) -> float:
    """The smallest error that a film shows: the smallest positive value, or 1e-10 of the largest."""
    positive = values[np.isfinite(values) & (values > 0)]
    return max(float(positive.min()), 1e-10 * float(positive.max())) if len(positive) else 1.0

"""One batch of gradient flows to integrate, the report of a peer about it, and code that the peers share."""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

METRICS = ("snc1", "snc2", "snc3", "relative_distance", "risk")

T = TypeVar("T")


class PeerUnavailable(RuntimeError):
    """A peer cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Batch:
    """Starts to integrate, with balanced classes and the columns of H sorted by class; all arrays are float64.

    Lane l runs from time 0 to `ts[l, -1]`; `ts[:, 0]` must be 0, so that the start is the first point of its curve.
    """

    samples_per_class: int
    H0: Float[np.ndarray, "lanes p CN"]
    W0: Float[np.ndarray, "lanes C p"]
    b0: Float[np.ndarray, "lanes C"]
    ts: Float[np.ndarray, "lanes times"]
    rtol: float

    def __post_init__(self) -> None:
        lanes, num_classes, p = self.W0.shape
        wanted = {
            "H0": (lanes, p, num_classes * self.samples_per_class),
            "b0": (lanes, num_classes),
            "ts": (lanes, self.ts.shape[-1]),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, W0 asks for {shape}.")
        if np.any(self.ts[:, 0] != 0.0) or np.any(np.diff(self.ts, axis=1) <= 0.0):
            raise ValueError("Every row of ts must start at 0 and increase.")

    @property
    def lanes(self) -> int:
        return len(self.W0)

    @property
    def atol(self) -> Float[np.ndarray, " lanes"]:
        """rtol times the size of the start, measured by the norm of its W."""
        return self.rtol * np.linalg.norm(self.W0, axis=(1, 2))

    def take(self, lanes: Int[np.ndarray, " few"]) -> "Batch":
        """The same problem with only these lanes, for peers that are too slow for all of them."""
        return Batch(self.samples_per_class, self.H0[lanes], self.W0[lanes], self.b0[lanes], self.ts[lanes], self.rtol)


@dataclass(frozen=True)
class Timing:
    """The result of a peer and its cost. Times are in seconds; `cpu_s` covers all threads of the process."""

    name: str
    H: Float[np.ndarray, "lanes p CN"]
    W: Float[np.ndarray, "lanes C p"]
    b: Float[np.ndarray, "lanes C"]
    curves: Float[np.ndarray, "lanes times 5"]
    """The columns are `METRICS`."""
    compile_s: float
    wall_s: float
    cpu_s: float
    evaluations: Int[np.ndarray, " lanes"] | None
    """Evaluations of the vector field, including rejected steps; None if the library does not report them."""
    remark: str

    def trajectories_per_cpu_second(self) -> float:
        """Trajectories per second of one busy core."""
        return len(self.W) / self.cpu_s


def flow_metrics(xp: ModuleType, H: Any, W: Any, b: Any, samples_per_class: int) -> Any:
    """The five `METRICS` of the states `H [..., p, CN]`, `W [..., C, p]`, `b [..., C]`, stacked along the last axis.

    `xp` is numpy or jax.numpy. The squared distance to `S = {H = (W (x) 1^T)^T / sqrt N, 1^T W = 0, b in span 1}`
    is, with class means M and `P = I - 1 1^T / C`: `||H - M (x) 1^T||^2 + 1/2 ||P (W - sqrt N M^T)||^2
    + ||1^T W||^2 / C + N ||M 1||^2 / C + ||P b||^2`.
    """
    num_classes = W.shape[-2]
    s = samples_per_class**0.5
    identity = xp.eye(num_classes)
    centering = identity - 1.0 / num_classes
    by_class = H.reshape(*H.shape[:-1], num_classes, samples_per_class)
    means = xp.swapaxes(by_class.mean(-1), -1, -2)
    logits = xp.matmul(W, H) + b[..., None]

    def squares(x: Any, axes: int) -> Any:
        return (x * x).sum(tuple(range(-axes, 0)))

    gap = W - s * means
    distance = (
        squares(by_class - xp.swapaxes(means, -1, -2)[..., None], 3)
        + 0.5 * squares(gap - gap.mean(-2, keepdims=True), 2)
        + squares(W.sum(-2), 1) / num_classes
        + samples_per_class * squares(means.sum(-2), 1) / num_classes
        + squares(b - b.mean(-1, keepdims=True), 1)
    )
    size = squares(H, 2) + squares(W, 2) + squares(b, 1)
    duality = squares(by_class - xp.swapaxes(W, -1, -2)[..., None] / s, 3)
    return xp.stack(
        [
            xp.sqrt(squares(xp.matmul(W, xp.swapaxes(W, -1, -2)) - s * centering, 2)),
            xp.sqrt(duality / squares(H, 2)),
            xp.sqrt(squares(b - 1.0 / num_classes, 1)),
            xp.sqrt(distance / size),
            0.5 * squares(logits - xp.repeat(identity, samples_per_class, axis=1), 2),
        ],
        -1,
    )


def require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise PeerUnavailable(f"{name.partition('.')[0]} is not installed") from missing


@contextmanager
def one_blas_thread() -> Iterator[None]:
    with require("threadpoolctl").threadpool_limits(limits=1, user_api="blas"):
        yield


def fastest(function: Callable[[], T], repeats: int, within_s: float = 60.0) -> tuple[T, float, float]:
    """The result of the function in its fastest run, and the wall and CPU seconds of that run.

    Runs it `repeats` times, but starts no run after `within_s` seconds.
    """
    runs: list[tuple[T, float, float]] = []
    while len(runs) < repeats and (not runs or sum(run[1] for run in runs) < within_s):
        wall, cpu = time.perf_counter(), time.process_time()
        value = function()
        runs.append((value, time.perf_counter() - wall, time.process_time() - cpu))
    return min(runs, key=lambda run: run[1])


def no_curves(batch: Batch) -> Float[np.ndarray, "lanes times 5"]:
    """Curves of a peer that saves nothing."""
    return np.full((*batch.ts.shape, len(METRICS)), np.nan)


def target_of(batch: Batch) -> Float[np.ndarray, "C CN"]:
    return np.repeat(np.eye(batch.W0.shape[1]), batch.samples_per_class, axis=1)


def pack(batch: Batch) -> Float[np.ndarray, "lanes size"]:
    lanes = batch.lanes
    return np.concatenate([batch.H0.reshape(lanes, -1), batch.W0.reshape(lanes, -1), batch.b0], axis=1)


def unpack(batch: Batch, flat: Float[np.ndarray, "*leading size"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    h, w = batch.H0[0].size, batch.W0[0].size
    lead = flat.shape[:-1]
    H = flat[..., :h].reshape(*lead, *batch.H0.shape[1:])
    return H, flat[..., h : h + w].reshape(*lead, *batch.W0.shape[1:]), flat[..., h + w :]


def numpy_field(batch: Batch) -> Callable[[float, np.ndarray], np.ndarray]:
    """The field of one lane on its flat state [H, W, b], with as few NumPy calls as possible."""
    (p, columns), num_classes = batch.H0.shape[1:], batch.W0.shape[1]
    h, w = p * columns, num_classes * p
    target = target_of(batch)

    def field(t: float, y: np.ndarray) -> np.ndarray:
        H, W = y[:h].reshape(p, columns), y[h : h + w].reshape(num_classes, p)
        slope = np.empty_like(y)
        residual = target - W @ H
        residual -= y[h + w :, None]
        np.matmul(W.T, residual, out=slope[:h].reshape(p, columns))
        np.matmul(residual, H.T, out=slope[h : h + w].reshape(num_classes, p))
        residual.sum(1, out=slope[h + w :])
        return slope

    return field

"""The error of a peer's answer against a reference."""

import numpy as np
from jaxtyping import Int
from peer_batch import (
    METRICS,
    Batch,
    Timing,
    fastest,
    flow_metrics,
    numpy_field,
    one_blas_thread,
    pack,
    require,
    unpack,
)


def reference(batch: Batch, rtol: float = 1e-13) -> Timing:
    """Integrate the batch at a tight tolerance, whatever its own, with scipy's DOP853, restarted at every save time.

    The restarts keep interpolation errors out of the curves. Use it for a few lanes only: each takes about a tenth of a
    second.
    """
    integrate = require("scipy.integrate")
    field = numpy_field(batch)
    evaluations = np.zeros(batch.lanes, int)
    paths = np.empty((*batch.ts.shape, pack(batch).shape[1]))

    def run() -> None:
        for lane, (y, ts, atol) in enumerate(zip(pack(batch), batch.ts, batch.atol, strict=True)):
            paths[lane, 0] = y
            for k in range(1, len(ts)):
                span = (ts[k - 1], ts[k])
                solution = integrate.solve_ivp(
                    field, span, y, method="DOP853", rtol=rtol, atol=atol / batch.rtol * rtol
                )
                if not solution.success:
                    raise RuntimeError(f"reference: {solution.message}")
                y = paths[lane, k] = solution.y[:, -1]
                evaluations[lane] += solution.nfev

    with one_blas_thread():
        _, wall_s, cpu_s = fastest(run, repeats=1)
    curves = flow_metrics(np, *unpack(batch, paths), batch.samples_per_class)
    H, W, b = unpack(batch, paths[:, -1])
    remark = f"DOP853 at rtol {rtol:g}, restarted at every save time"
    return Timing("reference", H, W, b, curves, 0.0, wall_s, cpu_s, evaluations, remark)


def errors(timing: Timing, truth: Timing, lanes: Int[np.ndarray, " few"] | None = None) -> dict[str, float]:
    """The largest errors over lanes. `lanes` are the lanes of `timing` that `truth` holds; None means all.

    - `state`: `||Z - Z*|| / ||Z*||` at the end, `Z = (H, W, b)`.
    - `curve`: the error of each metric divided by the largest value on its curve, the largest over times and metrics.
    - `end_<metric>`: the relative error of the last value. It is the strictest measure, because the metrics end smaller
      than the state by powers of the start's size. The risk ends smaller by the fourth power, or at 0, so `end_risk`
      can be huge even if the state is accurate to rtol.
    """
    pick = np.arange(len(truth.W)) if lanes is None else lanes
    pairs = [(timing.H[pick], truth.H), (timing.W[pick], truth.W), (timing.b[pick], truth.b)]

    def size(parts: list[np.ndarray]) -> np.ndarray:
        return np.sqrt(sum((part.reshape(len(part), -1) ** 2).sum(1) for part in parts))

    curves = timing.curves[pick]
    scale = np.abs(truth.curves).max(axis=1, keepdims=True)
    end = np.abs(curves[:, -1] / truth.curves[:, -1] - 1.0).max(axis=0)
    return {
        "state": float((size([a - b for a, b in pairs]) / size([b for _, b in pairs])).max()),
        "curve": float((np.abs(curves - truth.curves) / scale).max()),
        **{f"end_{name}": float(value) for name, value in zip(METRICS, end, strict=True)},
    }

"""Four losses from the same start: each run ends at the minimum of its loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import initial
from ..methods.flow import Flow
from ..model.ufm import UFM
from ..simulation import simulate
from ..theory import minimiser
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

C, N, P, EPS, DECAY, END = 4, 5, 3, 0.1, 0.05, 400.0
LOSSES = ("squared", "cross-entropy", "label-smoothing:0.1", "focal:2")
NAMES = ("risk", "nc1", "nc2_etf_w", "nc3", "grad_norm")
SHOWN = {"nc1": "NC1", "nc2_etf_w": "NC2 of the classifier", "nc3": "NC3"}


def model(loss: str) -> UFM:
    return UFM(num_classes=C, samples_per_class=N, num_features=P, weight_decay=(DECAY, DECAY, 0.0), loss=loss)


def run(progress: bool) -> "xr.Dataset":
    import xarray as xr

    start = initial.sphere(model("cross-entropy"), EPS, key=jax.random.key(1))
    times = np.concatenate([np.linspace(0, 8, 81)[:-1], np.geomspace(8, END, 80)])
    runs = []
    for loss in LOSSES:
        path = simulate(model(loss), start, Flow(rtol=1e-10), times, metrics=list(NAMES))
        least = minimiser(model(loss))
        theory = {"least_risk": float(least.risk), "rho": float(np.max(least.rho))}
        runs.append(path.to_xarray()[list(NAMES)].assign(theory))
    losses = xr.DataArray(list(LOSSES), dims="loss", name="loss")
    data: xr.Dataset = xr.concat(runs, losses, combine_attrs="drop_conflicts")  # pyright: ignore[reportAssignmentType]
    data["loss"].attrs["long_name"] = "the loss"
    data["least_risk"].attrs.update(long_name="risk at the global minimum, theory", units="1")
    data["rho"].attrs.update(long_name="logits at the global minimum, theory", units="1")
    return data


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import LEGEND, OKABE_ITO, log_scale, panels

    with panels(None, 4, (11.0, 3.0)) as axes:
        for color, loss in zip(OKABE_ITO, data["loss"].values, strict=False):
            one = data.sel(loss=loss)
            for ax, name in zip(axes, SHOWN, strict=False):
                ax.plot(one["time"][1:], one[name][1:], color=color, lw=1.4, label=str(loss))
            axes[3].plot(one["time"][1:], (one["risk"] - one["least_risk"])[1:].clip(1e-16), color=color, lw=1.4)
        for ax, label in zip(axes, (*SHOWN.values(), "risk above the global minimum"), strict=True):
            ax.set_xlabel("time $t$")
            ax.set_ylabel(label)
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, 1e-32), high)  # the squared error's NC1 falls to the smallest number
            log_scale(ax, "x")
            log_scale(ax, "y")
        axes[0].legend(**LEGEND)
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    end, rows = data.isel(time=-1), []
    for loss in data["loss"].values:
        one = end.sel(loss=loss)
        rows.append(Check(f"{loss}: risk at the end", float(one["least_risk"]), float(one["risk"]), 1e-9))
        rows.append(Check(f"{loss}: NC3 at the end", 0.0, float(one["nc3"]), 1e-5))
    return rows


PICTURE = Picture(
    "Squared error, cross-entropy, label smoothing and focal loss from one start: each collapses at its own minimum",
    "Zhu et al. 2021 (arXiv 2105.02375), Zhou et al. 2022 (arXiv 2210.02192); the minima are derived here",
    run,
    draw,
    checks,
)

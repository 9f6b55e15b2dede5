"""Cross-entropy without decay to t = e^1000: the margin on the exact ray, its limit, and the memory of the start."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import initial
from ..methods.flow import Flow
from ..model.ufm import UFM
from ..sweeps.sweep import sweep
from ..theory import max_margin
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

C, N, P, EPS, SEEDS, END = 3, 3, 2, 0.5, 6, 1000.0
NAMES = ("margin", "normalised_margin", "alignment", "nc1")


def model() -> UFM:
    return UFM(num_classes=C, samples_per_class=N, num_features=P, use_bias=False, loss="cross-entropy")


def run(progress: bool) -> "xr.Dataset":
    clock = np.concatenate([[0.0], np.geomspace(1, END, 91)])
    flow = Flow(rtol=1e-9, clock="log")
    data = sweep(model(), flow, eps=[EPS], seeds=SEEDS, ts=clock, metrics=list(NAMES), progress=progress)
    starts = [initial.sphere(model(), EPS, key=jax.random.key(seed)) for seed in range(SEEDS)]
    about = {"units": "1"}
    # The ray forgets where it began: its logits from rho0 = 1 differ from any other's by less than 1/ln t.
    ray = np.asarray(max_margin.logit_on_ray(model(), clock[1:], 1.0))
    memories = [float(max_margin.memory(model(), start)) for start in starts]
    found = {
        "ray": ("time", np.append(np.nan, ray), about | {"long_name": "logits on the ray, theory"}),
        "largest_margin": ((), float(max_margin.margin(model())), about | {"long_name": "limit, theory"}),
        "memory": ("seed", memories, about | {"long_name": "margin times misalignment in the limit, theory"}),
    }
    return data.isel(eps=0, drop=True).assign(found)


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import LEGEND, log_scale, palette, panels

    clock = data["time"][1:]
    with panels(None, 3, (10.2, 3.1)) as axes:
        margins, ratio, misaligned = axes
        seeds = data.isel(time=slice(1, None)).transpose("seed", ...)
        for color, i in zip(palette(data.sizes["seed"]), range(data.sizes["seed"]), strict=True):
            one = seeds.isel(seed=i)
            margins.plot(clock, one["margin"] - clock, color=color, lw=1.2)
            ratio.plot(clock, 1 - one["normalised_margin"] / data["largest_margin"], color=color, lw=1.2)
            misaligned.plot(clock, one["alignment"], color=color, lw=1.4)
            misaligned.plot(clock, float(one["memory"]) / one["ray"], color="black", lw=0.9, ls=(0, (1, 2)))
        margins.plot(clock, data["ray"][1:] - clock, color="black", lw=1.1, ls=(0, (1, 2)), label="exact ray (theory)")
        margins.set_ylabel(r"margin $- \ln(1+t)$")
        ratio.set_ylabel(r"$1 - $ normalised margin $\cdot\, \sqrt{N}(C-1)$")
        misaligned.set_ylabel("misalignment of $W$ and class means")
        misaligned.plot([], [], color="black", lw=0.9, ls=(0, (1, 2)), label="memory of the start (theory)")
        for ax in axes:
            ax.set_xlabel(r"$\ln(1+t)$")
            log_scale(ax, "x")
        log_scale(ratio, "y")
        log_scale(misaligned, "y")
        for ax in (margins, misaligned):
            ax.legend(**LEGEND)
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    end, rows = data.isel(time=-1), []
    limit, ray = float(end["largest_margin"]), float(end["ray"])
    worst = end["normalised_margin"].values[np.argmax(np.abs(end["normalised_margin"].values - limit))]
    rows.append(Check("margin over (|W|^2 + |H|^2)/2 at e^1000: 1/(s (C - 1))", limit, float(worst), 1e-3))
    worst = end["margin"].values[np.argmax(np.abs(end["margin"].values - ray))]
    rows.append(Check("margin at e^1000: the exact ray", ray, float(worst), 1e-4))
    for seed in data["seed"].values:
        one = end.sel(seed=seed)
        product = float(one["margin"] * one["alignment"])
        rows.append(Check(f"margin times misalignment at e^1000, seed {seed}", float(one["memory"]), product, 1e-3))
    return rows


PICTURE = Picture(
    "Cross-entropy without decay to t = e^1000: margins, their limit, and the memory of the start",
    "Lyu and Li 2020, Ji et al. 2022 (arXiv 2110.02796); the exact time on the ray and the memory are derived here",
    run,
    draw,
    checks,
)

"""Imbalance: the angles of classifier and features against the ratio of the counts, at t = e^800 and in the limit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import initial
from ..methods.flow import Flow
from ..model.ufm import UFM
from ..simulation import simulate
from ..theory import max_margin
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

SMALL, P, END = 2, 4, 800.0
RATIOS = (1, 3, 10, 30)
FINE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
PAIRS = {"large": (0, 1), "between": (0, 2), "small": (2, 3)}


def model(ratio: int) -> UFM:
    """Two classes with `ratio` times the samples of the two others."""
    counts = (ratio * SMALL, ratio * SMALL, SMALL, SMALL)
    return UFM(num_classes=4, samples_per_class=counts, num_features=P, use_bias=False, loss="cross-entropy")


def cosines(state) -> np.ndarray:
    """The cosines of the pairs, of the rows of W and of the class means."""
    found = []
    for vectors in (np.asarray(state.W), np.asarray(state.B).T):
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found.append([units[i] @ units[j] for i, j in PAIRS.values()])
    return np.array(found)


def run(progress: bool) -> "xr.Dataset":
    import xarray as xr

    from ..results.provenance import provenance

    flow, measured, margins = Flow(rtol=1e-9, clock="log", t1=END), [], []
    for ratio in RATIOS:
        start = initial.class_means(model(ratio), 0.5, key=jax.random.key(0))
        path = simulate(model(ratio), start, flow, [END], metrics="normalised_margin")
        measured.append(cosines(path.final))
        margins.append(float(path.metrics["normalised_margin"][-1]))
    limits = [float(max_margin.margin(model(ratio))) for ratio in RATIOS]
    curve = [cosines(max_margin.seli(model(ratio))) for ratio in FINE]
    about, over = {"units": "1"}, ("ratio", "of", "pair")
    return xr.Dataset(
        {
            "cosine": (over, measured, about | {"long_name": "cosine at t = e^800"}),
            "limit": (("fine_ratio", *over[1:]), curve, about | {"long_name": "cosine in the limit, theory"}),
            "normalised_margin": ("ratio", margins, about | {"long_name": "normalised margin at t = e^800"}),
            "largest_margin": ("ratio", limits, about | {"long_name": "normalised margin in the limit, theory"}),
        },
        {"ratio": list(RATIOS), "fine_ratio": list(FINE), "of": ["classifier", "class means"], "pair": list(PAIRS)},
        provenance(model(RATIOS[0]), flow, title="imbalance"),
    )


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import LEGEND, OKABE_ITO, log_scale, panels

    labels = {"large": "two large classes", "between": "a large and a small class", "small": "two small classes"}
    with panels(None, 2, (8.4, 3.3)) as axes:
        for ax, of in zip(axes, data["of"].values, strict=True):
            for color, pair in zip(OKABE_ITO, data["pair"].values, strict=False):
                ax.plot(data["fine_ratio"], data["limit"].sel(of=of, pair=pair), color=color, lw=1.3)
                ax.plot(data["ratio"], data["cosine"].sel(of=of, pair=pair), "o", color=color, ms=5, label=labels[pair])
            ax.axhline(-1 / 3, color="0.6", lw=0.8, ls=":")
            ax.set_title(f"{of} (lines: limit)", loc="left")
            ax.set_xlabel("samples of a large class over those of a small one")
            ax.set_ylabel("cosine")
            log_scale(ax, "x")
        axes[0].legend(**LEGEND)
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    """Runs at t = e^800 differ from their limits by about 1/800, more so with larger ratios."""
    rows = []
    for ratio in data["ratio"].values:
        lane = data.sel(ratio=ratio)
        limit = data["limit"].sel(fine_ratio=ratio)
        expected, measured = float(lane["largest_margin"]), float(lane["normalised_margin"])
        rows.append(Check(f"normalised margin at ratio {ratio}", expected, measured, 0.01))
        for of in data["of"].values:
            pair = {"of": of, "pair": "small"}
            expected, measured = (float(np.degrees(np.arccos(one.sel(pair)))) for one in (limit, lane["cosine"]))
            law = f"angle of the small classes, {of}, ratio {ratio}, degrees"
            rows.append(Check(law, expected, measured, 0.01))
    return rows


PICTURE = Picture(
    "Imbalance: the angles of cross-entropy's largest margin, reached by runs to t = e^800",
    "Thrampoulidis et al. 2022 (arXiv 2208.05512); Fang et al. 2021",
    run,
    draw,
    checks,
)

"""The order of learning: with unequal counts, the flow learns one class after the other at predicted times."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from .. import initial
from ..methods.flow import Flow
from ..model.ufm import UFM
from ..simulation import simulate
from ..theory import imbalance
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

COUNTS, P, EPS, SAVES = (64, 36, 16, 4), 6, 1e-3, 601


def run(progress: bool) -> "xr.Dataset":
    model = UFM(num_classes=len(COUNTS), samples_per_class=COUNTS, num_features=P, use_bias=False)
    start = initial.sphere(model, EPS, key=jax.random.key(0))
    times = imbalance.learning_times(model, start)
    end = 1.5 * float(np.max(times))
    path = simulate(model, start, Flow(rtol=1e-10), np.linspace(0, end, SAVES), save_states=True, metrics="risk")
    assert path.states is not None
    sizes = np.sum(np.asarray(path.states.W) ** 2, axis=-1)
    about, over = {"units": "1"}, ("time", "class")
    found = {
        "classifier_square": (over, sizes, about | {"long_name": "squared norm of the class' row of W"}),
        "predicted_time": ("class", np.asarray(times), about | {"long_name": "time of half the final size, theory"}),
    }
    counts = ("class", list(COUNTS), about | {"long_name": "samples of the class"})
    return path.to_xarray().drop_vars(["H", "W", "b"]).assign(found).assign_coords(count=counts)


def half_times(data: "xr.Dataset") -> np.ndarray:
    """The times at which the squared norms reach half of `sqrt n`, by interpolation between the saves."""
    t, found = data["time"].values, []
    sizes = data["classifier_square"].transpose("class", "time").values
    for values, n in zip(sizes, data["count"].values, strict=True):
        share = values / np.sqrt(n)
        i = int(np.argmax(share >= 0.5))
        ends = share[i - 1 : i + 1]
        odds = np.log(ends / np.maximum(1 - ends, 1e-12))  # a logistic curve is straight
        found.append(float(np.interp(0.0, odds, t[i - 1 : i + 1])))
    return np.array(found)


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import LEGEND, palette, panels

    with panels(None, 1, (5.6, 3.2)) as axes:
        (ax,) = axes
        for color, k in zip(palette(data.sizes["class"]), range(data.sizes["class"]), strict=True):
            n = int(data["count"][k])
            share = data["classifier_square"].isel({"class": k}) / n**0.5
            ax.plot(data["time"], share, color=color, lw=1.6, label=f"$n = {n}$")
            ax.axvline(float(data["predicted_time"][k]), color=color, lw=0.9, ls=(0, (5, 2)))
        ax.axhline(0.5, color="0.6", lw=0.8, ls=":")
        ax.set_xlabel("time $t$ (dashed: predicted from the start)")
        ax.set_ylabel(r"$\|w_k\|^2 / \sqrt{n_k}$")
        ax.set_xlim(0, float(data["time"][-1]))
        ax.legend(**LEGEND)
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    # The prediction is the leading order in eps; two classes whose sizes are near each other interact.
    times = zip(data["count"].values, data["predicted_time"].values, half_times(data), strict=True)
    return [Check(f"time at which n = {n} has half of its final size", float(t), u, 0.01) for n, t, u in times]


PICTURE = Picture(
    "The order of learning: classes of 64, 36, 16 and 4 samples are learned one after the other",
    "derived here; the reduction of imbalanced squared error, Dang et al. 2023 (arXiv 2301.00437)",
    run,
    draw,
    checks,
)

"""Minority collapse: the phase diagram of cross-entropy with two sizes of classes, from a sweep, with the threshold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from .. import initial
from ..methods.flow import Flow
from ..model.ufm import UFM
from ..programs import QUICK
from ..results.labels import verdict_attributes
from ..simulation import simulate
from ..theory import imbalance
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

LARGE, SMALL, P, SEEDS = 16, (1, 3, 6, 12), 5, 2
DECAYS = tuple(np.round(np.geomspace(0.4, 3.8, 14), 4))


def model(small: int, decay: float = 1.0) -> UFM:
    """Two classes of 16 samples and two small ones."""
    counts = (LARGE, LARGE, small, small)
    return UFM(num_classes=4, samples_per_class=counts, num_features=P, weight_decay=decay, loss="cross-entropy")


def run(progress: bool) -> "xr.Dataset":
    import xarray as xr

    from ..results.provenance import provenance

    flow = Flow(rtol=1e-8)
    runs = [_ends(model(small), flow) for small in tqdm(SMALL, disable=not progress)]
    apart, codes = (np.stack(parts) for parts in zip(*runs, strict=True))
    thresholds = [float(imbalance.class_thresholds(model(small))[-1]) for small in SMALL]
    about, over = {"units": "1"}, ("count", "weight_decay", "seed")
    return xr.Dataset(
        {
            "apart": (over, apart, about | {"long_name": "distance of the small classes' rows of W over its norm"}),
            "verdict": (over, codes, verdict_attributes()),
            "threshold": ("count", thresholds, about | {"long_name": "decay that merges the small classes, theory"}),
        },
        {
            "count": ("count", list(SMALL), about | {"long_name": "samples of a small class"}),
            "weight_decay": ("weight_decay", list(DECAYS), about | {"long_name": "L2 decay of W, H and b"}),
            "seed": list(range(SEEDS)),
        },
        provenance(model(SMALL[0]), flow),
    )


def _ends(of_count: UFM, flow: Flow) -> tuple[np.ndarray, np.ndarray]:
    """How far apart the small classes end, and the verdicts: for each decay and seed, in one compiled batch."""

    def one(decay, seed):
        start = initial.class_means(of_count, 0.5, key=jax.random.key(seed))
        path = simulate(of_count.with_numbers({"weight_decay": decay}), start, flow, 1, metrics=())
        W = path.final.W
        return jnp.linalg.norm(W[2] - W[3]) / jnp.linalg.norm(W), path.code

    run = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)), compiler_options=QUICK)
    apart, codes = run(jnp.asarray(DECAYS), jnp.arange(SEEDS))
    return np.asarray(apart), np.asarray(codes)


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import log_scale, panels

    with panels(None, 1, (5.4, 3.6)) as axes:
        (ax,) = axes
        apart = data["apart"].median("seed").transpose("count", "weight_decay")
        grid = np.meshgrid(data["count"], data["weight_decay"], indexing="ij")
        dots = ax.scatter(*grid, c=apart.values, cmap="viridis", s=55, vmin=0)
        ax.get_figure().colorbar(dots, ax=ax, label=r"$\|w_3 - w_4\| \,/\, \|W\|_F$")
        fine = np.linspace(0.7, 13, 200)
        ax.plot(fine, np.sqrt(fine), color="black", lw=1.2)
        ax.annotate(r"$\mu = \sqrt{n_B}$", (1.8, 1.8**0.5), (1.55, 0.75), arrowprops={"arrowstyle": "-", "lw": 0.6})
        ax.set_xlabel("samples of a small class, $n_B$ (large: 16)")
        ax.set_ylabel(r"weight decay $\mu$")
        log_scale(ax, "x")
        log_scale(ax, "y")
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    """Between the largest decay at which the small classes differ and the smallest at which they do not."""
    rows = []
    for i, n in enumerate(data["count"].values):
        apart, decay = data["apart"].isel(count=i).max("seed").values, data["weight_decay"].values
        differ = decay[apart > 1e-3]
        together = decay[apart <= 1e-3]
        edge = float(np.sqrt(differ.max() * together.min()))
        spacing = float(together.min() / differ.max()) ** 0.5 - 1  # half a step of the grid
        rows.append(Check(f"threshold for n_B = {n}: sqrt(n_B)", float(data["threshold"][i]), edge, 1.01 * spacing))
    return rows


PICTURE = Picture(
    "Minority collapse: with decay above sqrt(n_B), small classes of n_B samples are no longer told apart",
    "Fang et al. 2021; exact threshold, Hong and Ling 2023 (arXiv 2309.09725); the law in each group is derived here",
    run,
    draw,
    checks,
)

"""Cross-entropy with weight decay: runs against the global minimum, and the transition to zero at `mu = s`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..methods.flow import Flow
from ..model.ufm import UFM
from ..sweeps.sweep import sweep
from ..theory import minimiser
from .base import Check, Picture

if TYPE_CHECKING:
    import xarray as xr

C, N, P = 4, 9, 6
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2)
"""The decays, as shares of `s = sqrt N`."""

SEEDS = 8

FINE = 120
"""The number of decays on the curves of theory."""


def model(decay: Any) -> UFM:
    return UFM(num_classes=C, samples_per_class=N, num_features=P, weight_decay=decay, loss="cross-entropy")


def run(progress: bool) -> "xr.Dataset":
    s = N**0.5
    decays = [s * share for share in SHARES]
    kept: dict[str, Any] = {"ts": 2, "metrics": ["risk", "margin", "residual_norm"], "progress": progress}
    data = sweep(model(0.1), Flow(rtol=1e-10), eps=[0.1], seeds=SEEDS, weight_decay=decays, **kept).isel(
        eps=0, time=-1, drop=True
    )
    minima = [minimiser(model(decay)) for decay in decays]
    fine = np.linspace(0.01, 1.2, FINE)
    curves = [minimiser(model(s * share)) for share in fine]
    about = {"units": "1"}
    found = {
        "minimum_rho": ("weight_decay", [float(one.rho) for one in minima], about | {"long_name": "rho, theory"}),
        "minimum_risk": ("weight_decay", [float(one.risk) for one in minima], about | {"long_name": "risk, theory"}),
        "curve_rho": ("share", [float(one.rho) for one in curves], about | {"long_name": "rho, theory"}),
        "curve_risk": ("share", [float(one.risk) for one in curves], about | {"long_name": "risk, theory"}),
        "threshold": ((), float(minima[0].threshold), about | {"long_name": "mu from which the origin is best"}),
    }
    coords = {"share": ("share", fine, about | {"long_name": "mu / s"})}
    return data.assign(found).assign_coords(coords)


def draw(data: "xr.Dataset") -> np.ndarray:
    from ..plot._style import LEGEND, OKABE_ITO, panels

    s = N**0.5
    with panels(None, 3, (9.6, 3.0)) as axes:
        logits, risk, residual = axes
        share = data["weight_decay"].values / s
        for ax, name, curve, label in (
            (logits, "margin", "curve_rho", r"margin, $\rho$"),
            (risk, "risk", "curve_risk", "risk"),
        ):
            ax.plot(data["share"], data[curve], color=OKABE_ITO[4], lw=1.2, label="global minimum (theory)")
            for values in data[name].transpose("seed", ...).values:
                ax.plot(share, values, "o", ms=3.5, mfc="none", mec=OKABE_ITO[1])
            ax.plot([], [], "o", ms=3.5, mfc="none", mec=OKABE_ITO[1], label=f"{data.sizes['seed']} runs each")
            ax.set_ylabel(label)
        for values in (data["residual_norm"] / data["weight_decay"]).transpose("seed", ...).values:
            residual.plot(share, values, "o", ms=3.5, mfc="none", mec=OKABE_ITO[1])
        residual.plot(data["share"], np.minimum(1, 1 / data["share"]), color=OKABE_ITO[4], lw=1.2)
        residual.set_ylabel(r"certificate $\|G\|_{\mathrm{op}} / \mu$")
        for ax in axes:
            ax.axvline(1, color="0.6", lw=0.8, ls=":")
            ax.set_xlabel(r"weight decay $\mu / \sqrt{N}$")
        logits.legend(**LEGEND)
        logits.set_title("collapse, or zero", loc="left")
    return axes


def checks(data: "xr.Dataset") -> Sequence[Check]:
    s, rows = N**0.5, []
    for share in (0.01, 0.1, 0.5, 0.98):
        lane = data.sel(weight_decay=s * share, method="nearest")
        worst = lane["risk"].values[np.argmax(np.abs(lane["risk"].values - float(lane["minimum_risk"])))]
        rows.append(Check(f"risk at mu = {share:g} s", float(lane["minimum_risk"]), float(worst), 1e-9))
        margins = lane["margin"].values
        worst = margins[np.argmax(np.abs(margins - float(lane["minimum_rho"])))]
        rows.append(Check(f"margin at mu = {share:g} s: ln(1 + C (s/mu - 1))", float(lane["minimum_rho"]), worst, 1e-4))
    above = data.sel(weight_decay=1.02 * s, method="nearest")
    rows.append(Check("margin at mu = 1.02 s: zero", 0.0, float(np.max(np.abs(above["margin"]))), 1e-6))
    ratio = float((data["residual_norm"] / data["weight_decay"]).where(data["weight_decay"] < s).max())
    rows.append(Check("certificate below mu = s: ||G||_op / mu", 1.0, ratio, 1e-4))
    rows.append(Check("threshold of the origin over s", 1.0, float(data["threshold"]) / s, 1e-12))
    return rows


PICTURE = Picture(
    "Cross-entropy with weight decay: every run ends at the global minimum, which vanishes at mu = sqrt N",
    "Zhu et al. 2021 (arXiv 2105.02375); the explicit forms and the transition are derived here",
    run,
    draw,
    checks,
)

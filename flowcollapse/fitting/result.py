"""The result of a fit: estimates with intervals, how well they explain the curves, and the curves themselves."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._errors import UsageError
from ..metrics.registry import asked_names
from ..results.views import table
from ..theory.bias import checked_times
from .closed_forms import Setting, predicted


class Estimate(NamedTuple):
    """An estimate: its `value`, and the ends `low` and `high` of its interval.

    Example:
        >>> from flowcollapse.fitting.result import Estimate
        >>> print(Estimate(0.05, 0.049, 0.051))
        0.05 (0.049 to 0.051)
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        width = max(self.high - self.low, 1e-12 * abs(self.value))
        digits = 3 + max(0, round(math.log10(abs(self.value) / width))) if 0 < width < math.inf and self.value else 3
        return f"{self.value:.{digits}g} ({self.low:.{digits}g} to {self.high:.{digits}g})"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """The model that explains measured curves, as far as one does.

    - `explains`: whether the model explains the curves, by the criterion of `fc.fit`; `reason` says why, in a sentence.
    - `scale`: model time per unit of the measured time, an `Estimate` with `value`, `low` and `high`. The clock of the
      model is that of the summed risk.
    - `eps`: the norm of `V0 = P (W0 + B0^T)/2`, the growing part of the start; for a start on S, the norm of W0.
    - `decay`: the weight decay in units of the summed risk, as in `fc.UFM(weight_decay=...)`.
    - `level`: the factor of the summed risk in the measured one; fitted only with `reduction="free"`.
    - `modes`: the eigenvalues of `V0 V0^T`, largest first. Only what the curves depend on is determined: their sum, and
      roughly their spread.
    - `sphere_eps`: the eps at which `fc.initial.sphere` has this growing part on average.
    - `metrics`: the fitted metrics; `fixed` holds the names of estimates that were not fitted.
    - `r_squared`, `misfit`, `systematic`: for each metric with a curve, the coefficient of determination, the root mean
      square of the residuals over the range of the curve, and the part of it that neighbouring residuals share.
    - `undetermined`: the names of estimates that the curves leave open.
    - `confidence`, `profiled`: that of the intervals, and the names of those that are profiles.
    - `num_points`: the number of times; `axis`: the name of the time axis.
    - `setting`, `coordinates`: the known parts of the model, and the fitted coordinates behind `predict`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> fc.enable_x64()
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.on_subspace(model, eps=1e-3, key=jax.random.key(0))
        >>> fit = fc.fit(fc.simulate(model, start, fc.Flow(), metrics="risk"))
        >>> fit.explains, round(fit.scale.value, 3), float(fit.predict([0.0])["risk"][0].round(3))
        (True, 1.0, 4.5)
    """

    explains: bool
    reason: str
    scale: Estimate
    eps: Estimate
    decay: Estimate
    level: Estimate
    modes: Float[np.ndarray, " k"]
    metrics: tuple[str, ...]
    fixed: tuple[str, ...]
    r_squared: dict[str, float]
    misfit: dict[str, float]
    systematic: dict[str, float]
    undetermined: tuple[str, ...]
    confidence: float
    profiled: tuple[str, ...]
    num_points: int
    axis: str
    setting: Setting
    coordinates: Float[np.ndarray, " q"]

    @property
    def sphere_eps(self) -> float:
        return self.eps.value / math.sqrt(growing_share(self.setting))

    def predict(self, ts: Any, metrics: Any = None) -> dict[str, Float[np.ndarray, " time"]]:
        """The model's curves at measured times `ts`, shape (time,): those with the given names, or all that it has.

        Raises:
            UsageError: for times below 0, and for metrics without a closed form.
        """
        times = checked_times(ts, jnp.asarray(self.coordinates).dtype)
        names = self.setting.names if metrics is None else asked_names(metrics)
        for name in names:
            if name not in self.setting.names:
                raise UsageError(
                    f"metric {name!r} has no closed form here: choose from {', '.join(self.setting.names)}."
                )
        rows = np.asarray(predicted(self.setting, names, jnp.asarray(self.coordinates), times))
        return dict(zip(names, rows, strict=True))

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(["Fit", *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        """The same table, for notebooks."""
        return table("Fit", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        setting, percent = self.setting, f"{self.confidence:.0%}"
        kinds = f"{percent} intervals, {'profiles: ' + ', '.join(self.profiled) if self.profiled else 'linear'}"
        spread = math.sqrt(self.modes.max() / self.modes.min()) if self.modes.min() > 0 else math.inf
        rows = [
            ("explains", f"{'yes' if self.explains else 'no'}: {self.reason}"),
            ("model", f"C={setting.num_classes}, N={setting.samples:g}{'' if setting.use_bias else ', no bias'}"),
            ("scale", f"{self._told('scale')} model time per {self.axis if self.axis == 'epoch' else 'unit of time'}"),
            ("eps", f"{self._told('eps')}, the norm of the growing part; sphere eps {self.sphere_eps:.4g}"),
            ("modes", f"{len(self.modes)}, the largest {spread:.3g} times as long as the smallest"),
            ("decay", f"{self._told('decay')}, of the summed risk"),
            *([("level", self._told("level"))] if "level" not in self.fixed else []),
            ("intervals", kinds),
            *(
                (name, f"misfit {100 * self.misfit[name]:.2g} % of the range, R^2 {self.r_squared[name]:.6g}, {how}")
                for name in self.misfit
                for how in ["fitted" if name in self.metrics else "predicted"]
            ),
            ("points", f"{self.num_points}"),
        ]
        return rows

    def _told(self, name: str) -> str:
        estimate = getattr(self, name)
        if name in self.fixed:
            return f"{estimate.value:.4g}, given"
        return f"{estimate}{', not determined' if name in self.undetermined else ''}"


def growing_share(setting: Setting) -> float:
    """The mean of `||V0||^2 / eps^2` over the starts of `fc.initial.sphere`.

    W0 and B0 have the mean squares `eps^2` and `eps^2 / N`, of which P keeps the share `(C - 1)/C` (derived here).
    """
    C = setting.num_classes
    return (1 + 1 / setting.samples) / 4 * ((C - 1) / C if setting.use_bias else 1.0)

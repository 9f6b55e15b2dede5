"""The result of a run: times, metrics, states and verdict, printed as a table or exported as an xarray Dataset."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import is_traced
from .._errors import UsageError
from .._files import Labelled
from ..endings.verdict import Verdict
from ..metrics.registry import METRICS
from ..model.coordinates import Frame
from ..model.problem import Point
from ..model.state import State
from ..model.ufm import UFM
from .labels import STATE_VARIABLES, STATS, verdict_attributes
from .views import spark, table

if TYPE_CHECKING:
    import xarray as xr


class Trajectory(eqx.Module):
    """One run, or a batch of runs under `jax.vmap` (every array then has the lanes as leading axes).

    - `model`, `method`: those of the run, with their numbers as arrays.
    - `ts`: times of the saves; for descent, the time of a step is the sum of the step sizes up to it. In a flow with
      `clock="log"`, all times are `ln(1 + t)`.
    - `metrics`: a mapping from names to values at `ts`, see `fc.metrics`.
    - `final`: the `State` at the end, at time `t_end`; its `H` is computed only on request.
    - `states`: the `State` at every time in `ts`, or None unless `save_states=True`.
    - `result`: the `Verdict`, which has a `message`; under jit, vmap or in a batch, the array of codes.
    - `stats`: steps accepted and rejected, and evaluations of the vector field if the solver counts them.
    - `coordinates`: the coordinates (columns and rows) in which the run was integrated.

    `code`, `frame`, `end` and `points` are the raw form of `result`, `coordinates`, `final` and `states`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> path = fc.simulate(model, start, fc.Descent("sgd", 10, learning_rate=0.05), ts=3, metrics="risk")
        >>> path.ts.round(2).tolist(), path.final.W.shape, path.result.name
        ([0.0, 0.25, 0.5], (3, 15), 'step_limit')
    """

    ts: Float[Array, "*lanes time"]
    metrics: dict[str, Float[Array, "*lanes time"]]
    t_end: Float[Array, "*lanes"]
    code: Int[Array, "*lanes"]
    stats: dict[str, Int[Array, "*lanes"]]
    model: UFM
    method: Any
    frame: Frame
    end: Point
    points: Point | None

    @property
    def final(self) -> State:
        return self.frame.leave(self.end)

    @property
    def states(self) -> State | None:
        return None if self.points is None else self.frame.leave(self.points)

    @property
    def coordinates(self) -> str:
        return self.frame.name

    @property
    def result(self) -> Verdict | Array:
        if is_traced(self.code) or jnp.ndim(self.code) > 0:
            return self.code
        return Verdict(int(self.code))

    def __repr__(self) -> str:
        if not self._is_known:
            return f"Trajectory({self.model!r}, traced)"
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(["Trajectory", *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _repr_html_(self) -> str | None:
        """The same table with a small curve of each metric, for notebooks."""
        if not self._is_known:
            return None
        last = [(name, _span(values[..., -1]), spark(self.ts, values)) for name, values in self.metrics.items()]
        return table("Trajectory", [*self._rows(), *last])

    @property
    def _is_known(self) -> bool:
        return all(eqx.is_array(x) and not is_traced(x) for x in (self.ts, self.code, self.t_end))

    def _rows(self) -> list[tuple[str, str]]:
        model, lanes, time = self.model, self.code.shape, self.method.time_name.replace("time", "t")
        decay = "" if _is_zero(model.weight_decay) else f", decay {_numbers(model.weight_decay)}"
        bias = "" if model.use_bias else ", no bias"
        loss = "" if model.loss.squared_error else f", {_loss(model)}"
        loss += "" if model.reduction == "sum" else ", mean"
        steps = ", ".join(f"{_span(self.stats[name])} {name}" for name in STATS if name in self.stats)
        rows = [
            ("model", f"C={model.num_classes}, N={model.samples_per_class}, p={model.num_features}{bias}{decay}{loss}"),
            ("method", f"{self.method.label}, {self.ts.dtype}"),
            ("coordinates", self.coordinates),
            ("steps", steps),
            ("ended at", f"{time} = {_span(self.t_end)}"),
        ]
        if lanes:
            shares = ", ".join(
                f"{n} {Verdict(c).name}" for c, n in zip(*np.unique(self.code, return_counts=True), strict=True)
            )
            rows.insert(0, ("lanes", " x ".join(map(str, lanes))))
            rows.append(("verdicts", shares))
        else:
            rows.append(("verdict", Verdict(int(self.code)).message))
        shown = [name for name in ("snc1", "snc2", "snc3", "distance", "margin", "risk") if name in self.metrics]
        if shown:
            values = ", ".join(f"{name} {_span(self.metrics[name][..., -1])}" for name in shown)
            rows.append((f"at {time} = {_span(self.ts[..., -1])}", values))
        if self.ts.dtype == jnp.float32:
            rows.append(
                ("precision", "float32 resolves b - 1/C, B - W^T and SNC1 to about 1e-6: use float64 for eps <= 1e-2")
            )
        return rows

    def to_xarray(self) -> "xr.Dataset":
        """The run as an `xarray.Dataset` with dimension `time` (and `lane` for a batch), attributes and provenance.

        Raises:
            UsageError: for more than one axis of lanes, and inside jit.
        """
        return self.labelled().to_xarray()

    def labelled(self) -> Labelled:
        """The arrays of `to_xarray`, without xarray."""
        from .provenance import provenance

        if is_traced(self.ts):
            raise UsageError("to_xarray needs values, and inside jit there are none yet: return the trajectory first.")
        if self.ts.ndim > 2:
            raise UsageError(
                f"the trajectory has axes of lanes {self.ts.shape[:-1]} and to_xarray takes one: flatten them first, "
                "with jax.tree.map and reshape."
            )
        lanes, time = ("lane",) * (self.ts.ndim - 1), self.method.time_name
        data: dict[str, Any] = {
            name: ((*lanes, "time"), np.asarray(values), {"long_name": METRICS[name].long_name, "units": "1"})
            for name, values in self.metrics.items()
        }
        data["verdict"] = (lanes, np.asarray(self.code), verdict_attributes())
        data["t_end"] = (lanes, np.asarray(self.t_end), {"long_name": f"{time} at the end", "units": "1"})
        for name, value in self.stats.items():
            data[f"steps_{name}"] = (lanes, np.asarray(value), {"long_name": f"{name} of the solver", "units": "1"})
        states = self.states
        if states is not None:
            for name, axes, what in STATE_VARIABLES:
                values = np.asarray(getattr(states, name))
                data[name] = ((*lanes, "time", *axes), values, {"long_name": what, "units": "1"})
        times = {"long_name": time, "units": "1"}
        coords = {"t" if lanes else "time": ((*lanes, "time"), np.asarray(self.ts), times)}
        return Labelled(data, coords, provenance(self.model, self.method) | {"coordinates_used": self.coordinates})


def _loss(model: UFM) -> str:
    """The loss with its numbers in short form."""
    numbers = {name: getattr(model.loss, name) for name in model.loss.numbers}
    known = [f"{name}={_numbers(value)}" for name, value in numbers.items() if value is not None]
    return " ".join([model.loss.name, *known])


def _numbers(decay) -> str:
    return ", ".join(f"{float(x):g}" for leaf in jax.tree.leaves(decay) for x in np.ravel(leaf))


def _is_zero(decay) -> bool:
    return all(bool(np.all(np.asarray(x) == 0)) for x in jax.tree.leaves(decay))


def _span(values) -> str:
    """One number, or the range of several."""
    values = np.asarray(values)
    form = (lambda x: f"{x}") if np.issubdtype(values.dtype, np.integer) else (lambda x: f"{x:.4g}")
    low, high = values.min(), values.max()
    return form(low) if low == high or np.isnan(low) else f"{form(low)}..{form(high)}"

"""The gradient flow, integrated by diffrax in the coordinates where it is cheap and not stiff."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._errors import UsageError
from .coordinates import COORDINATES, from_mean_residual, mean_residual_field, to_mean_residual
from .model import Point, Problem
from .solvers import BlockControl, solver_of, splits_stiff_part
from .stopping import Verdict, plateau_time

PACK_UP_TO = 4096
"""States of at most this many numbers are one flat vector inside the solver; larger ones keep their matrices."""

SAVED_AT_ONCE = 2**22
"""Up to this many saved numbers, states are saved and observed in one batch; above, one by one as they pass."""


class Run(NamedTuple):
    """What a method hands back: observations at `ts`, the end, and how it went."""

    ts: Float[Array, " time"]
    observed: PyTree
    end: Point
    t_end: Float[Array, ""]
    steps_ran_out: Bool[Array, ""]
    stats: dict[str, Int[Array, ""]]


class Flow(eqx.Module):
    """The gradient flow `z' = -grad R(z)`, integrated with adaptive steps.

    Args:
        solver: a name (`"exponential"`, `"tsit5"`, `"dopri5"`, `"dopri8"`, `"kvaerno5"`, `"kencarp5"`) or a diffrax
            solver with an error estimate. The default treats the stiff mean residual exactly and takes eighth-order
            steps in the rest; its cost depends neither on the samples per class nor on the stiffness.
        rtol: relative tolerance of each block (W, class means, within-class part, bias) in its own norm; in float32 at
            least 4e-6 is used.
        atol: absolute tolerance of each block's norm. Default: `rtol` times the block's norm at the start, so that it
            follows eps.
        t1: where to end. Default: the plateau time of the start, or the last of `ts`.
        max_steps: accepted and rejected steps together.
        coordinates: `"auto"` (class means where exact, compressed rows where it pays), `"class-mean"`, `"sample"`.

    Raises:
        UsageError: for an unknown solver or coordinates, tolerances or a t1 that are not positive.

    Source: the paper's gradient flow; the coordinates and the default solver are derived here.
    """

    rtol: float | Array = 1e-8
    atol: float | Array | None = None
    t1: float | Array | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="exponential")
    max_steps: int = eqx.field(static=True, default=65_536)
    coordinates: str = eqx.field(static=True, default="auto")

    name = "flow"

    def __init__(self, solver="exponential", *, rtol=1e-8, atol=None, t1=None, max_steps=65_536, coordinates="auto"):
        solver_of(solver)
        for name, value in (("rtol", rtol), ("atol", atol), ("t1", t1)):
            check_positive(name, value)
        if coordinates not in COORDINATES:
            raise UsageError(f"coordinates {coordinates!r} is not known: choose one of {COORDINATES}.")
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise UsageError(f"max_steps must be a positive integer, got {max_steps!r}.")
        self.rtol, self.atol, self.t1 = rtol, atol, t1
        self.solver, self.max_steps, self.coordinates = solver, max_steps, coordinates

    @property
    def label(self) -> str:
        """What tables call this method."""
        name = self.solver if isinstance(self.solver, str) else type(self.solver).__name__
        return f"flow ({name})"

    def run(self, problem: Problem, start: Point, ts, num_points: int, observe: Callable[[Point], Any]) -> Run:
        """Integrate from `start` and observe at `ts`, or at `num_points` equal times up to the end."""
        solver, dtype = solver_of(self.solver), start.X.dtype
        t1 = self._end(problem, start, ts).astype(dtype)
        ts = t1 * jnp.linspace(0, 1, num_points, dtype=dtype) if ts is None else ts.astype(dtype)

        layout = Layout(*start.W.shape, start.X.shape[1], splits_stiff_part(solver))
        y0 = layout.state(problem, start)
        a = problem.model.num_samples if problem.model.use_bias else 0
        at_once = len(ts) * sum(x.size for x in start) <= SAVED_AT_ONCE

        def save(t, y, args):
            return y if at_once else args[1](layout.point(args[0], y))

        solution = dfx.diffeqsolve(
            layout.terms(),
            solver,
            t0=jnp.zeros((), dtype),
            t1=t1,
            dt0=first_step(problem, a, self._rtol(dtype), solver),
            y0=y0,
            args=(problem, observe),
            saveat=dfx.SaveAt(subs=[dfx.SubSaveAt(ts=ts, fn=save), dfx.SubSaveAt(t1=True)]),
            stepsize_controller=self._control(layout, problem, y0, dtype),
            max_steps=self.max_steps,
            throw=False,
        )
        saved, last = solution.ys
        observed = jax.vmap(lambda y: observe(layout.point(problem, y)))(saved) if at_once else saved
        end = layout.point(problem, jax.tree.map(lambda leaf: leaf[-1], last))
        steps = {"accepted": solution.stats["num_accepted_steps"], "rejected": solution.stats["num_rejected_steps"]}
        per_step = getattr(solver, "evaluations_per_step", None)
        if per_step is not None:
            steps["evaluations"] = per_step * (steps["accepted"] + steps["rejected"]) + 1
        ran_out = solution.result == dfx.RESULTS.max_steps_reached
        return Run(ts, observed, end, t1, ran_out, steps)

    limit = Verdict.time_limit

    def _end(self, problem: Problem, start: Point, ts) -> Float[Array, ""]:
        if self.t1 is not None:
            return jnp.asarray(self.t1)
        return plateau_time(problem, start) if ts is None else ts[-1]

    def _rtol(self, dtype) -> Float[Array, ""]:
        return jnp.maximum(jnp.asarray(self.rtol, dtype), 32 * jnp.finfo(dtype).eps)

    def _control(self, layout: "Layout", problem: Problem, y0: PyTree, dtype) -> BlockControl:
        initial = jax.lax.stop_gradient(layout.block_norms(problem, y0))
        rtol = self._rtol(dtype)
        if self.atol is None:
            atol = rtol * layout.block_scales(initial)
        else:
            atol = jnp.broadcast_to(jnp.asarray(self.atol, dtype), initial.shape)
        split_only = Problem(problem.model, problem.columns.without_arrays())
        return BlockControl(rtol, atol, lambda y: layout.block_norms(split_only, y), layout.block_scales)


def first_step(problem: Problem, a: int, rtol: Array, solver: dfx.AbstractSolver) -> Float[Array, ""]:
    """A first step that resolves the transient of the mean residual, which decays at the rate `n_tot`."""
    order = solver.order(None)
    _, lam_H, lam_b = problem.decays(rtol.dtype)
    return rtol ** (1 / order) / (a + lam_b + lam_H + max(problem.model.counts) ** 0.5)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a point is laid out inside the solver: `(slow, e)` or `(slow, b)`, with slow packed flat if it is small."""

    C: int
    p: int
    n: int
    mean_residual: bool

    @property
    def packed(self) -> bool:
        return self.p * (self.C + self.n) <= PACK_UP_TO

    def pack(self, W: Array, X: Array) -> PyTree:
        return jnp.concatenate([W.ravel(), X.T.ravel()]) if self.packed else (W, X)

    def unpack(self, slow: PyTree) -> tuple[Array, Array]:
        if not self.packed:
            return slow
        cut = self.C * self.p
        return slow[:cut].reshape(self.C, self.p), slow[cut:].reshape(self.n, self.p).T

    def state(self, problem: Problem, point: Point) -> PyTree:
        last = to_mean_residual(problem, point) if self.mean_residual else point.b
        return self.pack(point.W, point.X), last

    def point(self, problem: Problem, y: PyTree) -> Point:
        W, X = self.unpack(y[0])
        return from_mean_residual(problem, W, X, y[1]) if self.mean_residual else Point(W, X, y[1])

    def terms(self) -> dfx.AbstractTerm:
        """The flow's vector field, split into forcing and relaxation for the solvers that take them apart."""

        def forcing(t, y, args):
            W_velocity, X_velocity, g = mean_residual_field(args[0], *self.unpack(y[0]), y[1])
            return self.pack(W_velocity, X_velocity), g

        def relaxation(t, y, args):
            a = args[0].model.num_samples if args[0].model.use_bias else 0
            return jax.tree.map(jnp.zeros_like, y[0]), -(a + args[0].decays(y[1].dtype)[2]) * y[1]

        def whole(t, y, args):
            W, X, b = args[0].field(Point(*self.unpack(y[0]), y[1]))
            return self.pack(W, X), b

        if self.mean_residual:
            return dfx.MultiTerm(dfx.ODETerm(forcing), dfx.ODETerm(relaxation))
        return dfx.ODETerm(whole)

    def block_norms(self, problem: Problem, y: PyTree) -> Float[Array, "4"]:
        """The norms of W, B, L and of the mean residual or bias."""
        W, X = self.unpack(y[0])
        return jnp.sqrt(jnp.stack([jnp.sum(block**2) for block in (W, *problem.split(X), y[1])]))

    def block_scales(self, norms: Float[Array, "4"]) -> Float[Array, "4"]:
        """What the error of each block is measured against: its own size; B's for the mean residual and the bias."""
        last = norms[1] if self.mean_residual else norms[1] + norms[3]
        return norms.at[3].set(last)


def check_positive(name: str, value) -> None:
    """Raise `UsageError` unless `value` is None, traced, or positive and finite."""
    if value is None or isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, bool | str) or not jnp.all((jnp.asarray(value) > 0) & jnp.isfinite(jnp.asarray(value))):
        raise UsageError(f"{name} must be positive and finite, got {value!r}.")

"""The gradient flow, integrated by diffrax in the coordinates where it is cheap and not stiff."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from ._checks import Number, check_integer, check_positive
from ._errors import UsageError
from .coordinates import check_coordinates, from_mean_residual, mean_residual_field, to_mean_residual
from .model import Point, Problem
from .solvers import BlockControl, solver_of, splits_stiff_part
from .stopping import Run, Verdict, plateau_time, target_modes

PACK_UP_TO = 4096
"""States of at most this many numbers are one flat vector inside the solver; larger ones keep their matrices."""

FIRST_STEP = 3.0
"""The first step times the fastest rate, over `rtol^(1/order)`. Of 1, 2, 3 and 5, 3 took the fewest steps."""

SAVED_AT_ONCE = 2**22
"""Up to this many saved numbers, states are saved and observed in one batch; above, one by one as they pass."""


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
        mesh: a `jax.sharding.Mesh` over whose devices the columns of the features are spread, for one large problem.

    Raises:
        UsageError: for an unknown solver or coordinates, tolerances or a t1 that are not positive, or a mesh whose size
            does not divide the columns.

    Source: the paper's gradient flow; the coordinates and the default solver are derived here.
    """

    rtol: Number = 1e-8
    atol: Number | None = None
    t1: Number | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="exponential")
    max_steps: int = eqx.field(static=True, default=65_536)
    coordinates: str = eqx.field(static=True, default="auto")
    mesh: Mesh | None = eqx.field(static=True, default=None)

    name = "flow"

    def __init__(
        self,
        solver: str | dfx.AbstractSolver = "exponential",
        *,
        rtol: Number = 1e-8,
        atol: Number | None = None,
        t1: Number | None = None,
        max_steps: int = 65_536,
        coordinates: str = "auto",
        mesh: Mesh | None = None,
    ):
        solver_of(solver)
        for name, value in (("rtol", rtol), ("atol", atol), ("t1", t1)):
            check_positive(name, value)
        check_coordinates(coordinates)
        check_integer("max_steps", max_steps)
        self.rtol, self.atol, self.t1 = rtol, atol, t1
        self.solver, self.max_steps, self.coordinates, self.mesh = solver, max_steps, coordinates, mesh

    @property
    def label(self) -> str:
        """What tables call this method."""
        name = self.solver if isinstance(self.solver, str) else type(self.solver).__name__
        return f"flow ({name})"

    numbers = ("rtol", "atol", "t1")

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Flow":
        """The same flow with some of its `numbers` replaced."""
        fields = {name: getattr(self, name) for name in (*self.numbers, "max_steps", "coordinates", "mesh")}
        return Flow(self.solver, **(fields | dict(numbers)))

    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any]) -> Run:
        """Integrate from `start` and observe at `ts`, or at that many equal times up to the end."""
        solver, dtype = solver_of(self.solver), start.X.dtype
        t1 = self.t1 if self.t1 is not None else plateau_time(problem, start) if isinstance(ts, int) else ts[-1]
        t1 = jnp.asarray(t1, dtype)
        ts = t1 * jnp.linspace(1, 0, ts, dtype=dtype)[::-1] if isinstance(ts, int) else ts.astype(dtype)

        if splits_stiff_part(solver) and not problem.loss.separates_columns:
            raise UsageError(
                f"{self.label} takes the mean residual of the squared error apart, but the loss is "
                f'{problem.model.loss!r}: use solver="tsit5".'
            )
        packed = self.mesh is None and start.W.size + start.X.size <= PACK_UP_TO
        (C, p), n = start.W.shape, start.X.shape[1]
        layout = Layout(C, p, n, splits_stiff_part(solver), packed)
        start = start if self.mesh is None else start._replace(X=spread_columns(start.X, self.mesh))
        y0 = layout.state(problem, start)
        at_once = len(ts) * sum(x.size for x in start) <= SAVED_AT_ONCE

        def save(t, y, args):
            return y if at_once else args[1](layout.point(args[0], y))

        # Where nothing is observed, nothing is saved, and the solver's output costs nothing.
        observing = bool(jax.tree.leaves(jax.eval_shape(observe, start)))
        output = [dfx.SubSaveAt(ts=ts, fn=save)] if observing else []
        solution = dfx.diffeqsolve(
            layout.terms(),
            solver,
            t0=jnp.zeros((), dtype),
            t1=t1,
            dt0=first_step(problem, self._rtol(dtype), solver),
            y0=y0,
            args=(problem, observe),
            saveat=dfx.SaveAt(subs=[*output, dfx.SubSaveAt(t1=True)]),
            stepsize_controller=self._control(layout, problem, y0, dtype),
            max_steps=self.max_steps,
            throw=False,
        )
        saves = cast(list, solution.ys)
        end = layout.point(problem, jax.tree.map(lambda leaf: leaf[-1], saves[-1]))
        if not observing:
            observed = observe(end)
        elif at_once:
            observed = jax.vmap(lambda y: observe(layout.point(problem, y)))(saves[0])
        else:
            observed = saves[0]
        ran_out = solution.result == dfx.RESULTS.max_steps_reached
        return Run(ts, observed, end, t1, ran_out, _stats(solution, solver, observing))

    limit = Verdict.time_limit

    def _rtol(self, dtype) -> Float[Array, ""]:
        return jnp.maximum(jnp.asarray(self.rtol, dtype), 32 * jnp.finfo(dtype).eps)

    def _control(self, layout: "Layout", problem: Problem, y0: PyTree, dtype) -> BlockControl:
        scales = jax.lax.stop_gradient(layout.block_scales(layout.block_norms(problem, y0)))
        rtol = self._rtol(dtype)
        atol = rtol * scales if self.atol is None else jnp.broadcast_to(jnp.asarray(self.atol, dtype), scales.shape)
        block_norms = functools.partial(layout.block_norms, problem)
        return BlockControl(  # pyright: ignore[reportCallIssue]: diffrax's abstract fields atol and norm are properties
            rtol=rtol,
            block_atol=atol,
            block_norms=block_norms,
            block_scales=layout.block_scales,
            longest=longest_step(problem, solver_of(self.solver), dtype),
        )


def _stats(solution: dfx.Solution, solver: dfx.AbstractSolver, output: bool) -> dict[str, Int[Array, ""]]:
    """Steps, and evaluations of the field where the solver tells how many a step takes, with and without output."""
    accepted, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    stats = {"accepted": accepted, "rejected": rejected}
    per_step = getattr(solver, "evaluations_per_step", None)
    if per_step is not None:
        per_step += getattr(solver, "evaluations_for_output", 0) if output else 0
        stats["evaluations"] = per_step * (accepted + rejected) + 1
    return stats


def spread_columns(X: Float[Array, "p n"], mesh: Mesh) -> Float[Array, "p n"]:
    """The columns of X spread over the devices of a mesh; the compiler carries that through the whole solve.

    Raises:
        UsageError: if the number of columns is not a multiple of the number of devices.
    """
    if X.shape[1] % mesh.size != 0:
        fitting = [k for k in range(1, X.shape[1] + 1) if X.shape[1] % k == 0]
        raise UsageError(
            f"mesh has {mesh.size} devices, which do not divide the {X.shape[1]} columns of the features: "
            f"use a mesh of {', '.join(map(str, fitting[:8]))} devices."
        )
    columns = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(None, mesh.axis_names))
    return jax.lax.with_sharding_constraint(X, columns)


def first_step(problem: Problem, rtol: Float[Array, ""], solver: dfx.AbstractSolver) -> Float[Array, ""]:
    """A first step that resolves the transient of the mean residual: one much larger would be rejected."""
    order = solver.order(cast(Any, None)) or 1
    _, lam_H, _ = problem.decays(rtol.dtype)
    fastest = stiff_rate(problem, rtol.dtype) + lam_H + max(problem.model.counts) ** 0.5
    return FIRST_STEP * rtol ** (1 / order) / fastest


def stiff_rate(problem: Problem, dtype) -> Float[Array, ""]:
    """The rate `n_tot + lam_b` at which the mean residual decays; without a bias there is none to decay."""
    return (problem.model.num_samples if problem.model.use_bias else 0) + problem.decays(dtype)[2]


def longest_step(problem: Problem, solver: dfx.AbstractSolver, dtype) -> Float[Array, ""] | None:
    """The longest step in which the solver is stable, if it says how far it is and takes the mean residual apart.

    Without that one the fastest decay near a critical point is `2 s` with the largest singular value s of the targets,
    `sqrt N` for balanced classes, plus what weight decay adds (derived here from the Hessian's spectrum).
    """
    stable = getattr(solver, "real_stability", None)
    if stable is None:
        return None
    lam_W, lam_H, _ = problem.decays(dtype)
    fastest = 2 * float(target_modes(problem.model)[1][0])
    return stable / (fastest + jnp.maximum(lam_W, lam_H))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a point is laid out inside the solver: `(slow, e)` or `(slow, b)`, with slow packed flat if it is small."""

    C: int
    p: int
    n: int
    mean_residual: bool
    packed: bool

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
            return jax.tree.map(jnp.zeros_like, y[0]), -stiff_rate(args[0], y[1].dtype) * y[1]

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

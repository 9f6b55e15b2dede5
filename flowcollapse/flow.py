"""The gradient flow, integrated by diffrax in the coordinates where it is cheap and not stiff."""

import abc
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
from .coordinates import check_coordinates
from .layout import Layout, SecondOrder, stiff_rate
from .method import Method
from .model import Point, Problem
from .solvers import BlockControl, solver_of, splits_stiff_part
from .stopping import Run, Verdict, plateau_time, target_modes

PACK_UP_TO = 4096
"""States of at most this many numbers are one flat vector inside the solver; larger ones keep their matrices."""

FIRST_STEP = 3.0
"""The first step times the fastest rate, over `rtol^(1/order)`. Of 1, 2, 3 and 5, 3 took the fewest steps."""

SAVED_AT_ONCE = 2**22
"""Up to this many saved numbers, states are saved and observed in one batch; above, one by one as they pass."""


class AbstractFlow(Method):
    """A flow, integrated with adaptive steps: what its kinds have in common. Each has a `velocity` of its own."""

    rtol: Number = 1e-8
    atol: Number | None = None
    t1: Number | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="exponential")
    max_steps: int = eqx.field(static=True, default=65_536)
    coordinates: str = eqx.field(static=True, default="auto")
    mesh: Mesh | None = eqx.field(static=True, default=None)

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

    @abc.abstractmethod
    def velocity(self, problem: Problem, point: Point) -> Point:
        """The right-hand side at a point."""

    @property
    def label(self) -> str:
        """What tables call this method."""
        solver = self.solver if isinstance(self.solver, str) else type(self.solver).__name__
        return f"{self.name.replace('-', ' ')} ({solver})"

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its numbers, which vary without a new compilation."""
        return tuple(field.name for field in dataclasses.fields(self) if not field.metadata.get("static", False))

    def with_numbers(self, numbers: Mapping[str, Any]) -> "AbstractFlow":
        """The same flow with some of its `numbers` replaced."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**(fields | dict(numbers)))

    @property
    def limit(self) -> Verdict:
        """The verdict of a run that ended before the plateau, as it was told to."""
        return Verdict.time_limit

    def layout(self, start: Point) -> Layout | SecondOrder:
        """How the solver holds the state of the flow."""
        return self.layout_of_point(start)

    def layout_of_point(self, start: Point) -> Layout:
        """How the solver holds a point."""
        (C, p), n = start.W.shape, start.X.shape[1]
        packed = self.mesh is None and start.W.size + start.X.size <= PACK_UP_TO
        return Layout(C, p, n, splits_stiff_part(solver_of(self.solver)), packed)

    def initial(self, problem: Problem, start: Point) -> PyTree:
        """The state that the flow begins with, in its layout."""
        return self.layout_of_point(start).state(problem, start)

    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any]) -> Run:
        """Integrate from `start` and observe at `ts`, or at that many equal times up to the end."""
        solver, dtype = solver_of(self.solver), start.X.dtype
        t1 = self.t1 if self.t1 is not None else plateau_time(problem, start) if isinstance(ts, int) else ts[-1]
        t1 = jnp.asarray(t1, dtype)
        ts = t1 * jnp.linspace(1, 0, ts, dtype=dtype)[::-1] if isinstance(ts, int) else ts.astype(dtype)

        if splits_stiff_part(solver) and not problem.loss.squared_error:
            raise UsageError(
                f"{self.label} takes the mean residual of the squared error apart, but the loss is "
                f'{problem.model.loss!r}: use solver="tsit5".'
            )
        start = start if self.mesh is None else start._replace(X=spread_columns(start.X, self.mesh))
        layout, y0 = self.layout(start), self.initial(problem, start)
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
            args=(problem, observe, self),
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

    def _rtol(self, dtype) -> Float[Array, ""]:
        return jnp.maximum(jnp.asarray(self.rtol, dtype), 32 * jnp.finfo(dtype).eps)

    def _control(self, layout: Layout | SecondOrder, problem: Problem, y0: PyTree, dtype) -> BlockControl:
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


class Flow(AbstractFlow):
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

    name = "flow"
    __init__ = AbstractFlow.__init__  # which type checkers do not see inherited

    def velocity(self, problem: Problem, point: Point) -> Point:
        """`-grad R`."""
        return problem.field(point)


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

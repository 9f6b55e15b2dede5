"""The integrations of a flow: explicit steps from the start, implicit steps once every mode has escaped.

Weight decay, and the flow along a minimum that is not a point, are slow. Explicit steps would take millions, because
stability limits them to a few over `sqrt N`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._registry import Registry
from ..endings.choice import ending_of
from ..model.problem import Point, Problem
from .layouts import Arguments, Layout, SecondOrder
from .solvers.control import BlockControl
from .solvers.extended_bdf import ExtendedBDF
from .solvers.lean import lean_diffrax
from .solvers.registry import solver_of, suited
from .stiff_part import first_step, longest_step

REST = 10.0
"""A flow is at rest if it has less than this times rtol left to go."""

LINEAR = 1e-2
"""The linear systems of the implicit steps are solved to this times rtol."""

ADJOINTS: Registry[Callable[[], dfx.AbstractAdjoint]] = Registry(
    "adjoint",
    {"reverse": dfx.RecursiveCheckpointAdjoint, "forward": dfx.ForwardMode},
    instead="pass an adjoint of diffrax",
)
"""The ways to differentiate a run, by name."""


def adjoint_of(adjoint: Any) -> dfx.AbstractAdjoint:
    """The adjoint of a name, or the given adjoint of diffrax.

    Raises:
        UsageError: for anything else.
    """
    return adjoint if isinstance(adjoint, dfx.AbstractAdjoint) else ADJOINTS.make(adjoint)


class Integrable(Protocol):
    """The part of a flow that the integrations use."""

    rtol: Any
    atol: Any
    solver: Any
    max_steps: int
    until: Any
    adjoint: Any

    def layout(self, problem: Problem) -> Layout | SecondOrder: ...

    def initial(self, problem: Problem, start: Point) -> PyTree: ...


class Outcome(NamedTuple):
    """The result of one integration: its saves, the end and its time, and how the integration went."""

    saved: PyTree
    end: Point
    t_end: Float[Array, ""]
    ran_out: Bool[Array, ""]
    at_rest: Bool[Array, ""]
    stats: dict[str, Int[Array, ""]]


class Legs(NamedTuple):
    """The integrations of a run.

    `ts` holds the save times of the run, or is None if nothing is saved. A save is the point, or `observe(point)`.
    """

    flow: Integrable
    problem: Problem
    start: Point
    ts: Float[Array, " time"] | None
    observe: Callable[[Point], PyTree] | None

    def explicit(self, t1: Float[Array, ""]) -> Outcome:
        """Integrate from the start to `t1` with the solver of the flow."""
        solver, layout = suited(solver_of(self.flow.solver), self.ts is not None), self.flow.layout(self.problem)
        begin, longest = first_step(self.problem, self.rtol, solver), longest_step(self.problem, solver, t1)
        y0 = self.flow.initial(self.problem, self.start)
        return self._integrate(solver, layout, y0, y0, jnp.zeros_like(t1), t1, begin, longest)

    def implicit(self, point: Point, t0: Float[Array, ""], t1: Float[Array, ""]) -> Outcome:
        """Integrate from a point at `t0` to `t1` with implicit steps, which only their error limits."""
        solver = ExtendedBDF(jnp.maximum(LINEAR * self.rtol, 4 * jnp.finfo(t0.dtype).eps))
        layout = Layout(mean_residual=False)
        y0, scale = layout.state(self.problem, point), layout.state(self.problem, self.start)
        fastest = ending_of(self.problem).fastest_rate(t0)
        assert fastest is not None  # otherwise the flow stays explicit
        begin = jnp.sqrt(self.rtol) / fastest
        begin = jnp.maximum(begin, 256 * jnp.finfo(t0.dtype).eps * t0)
        return self._integrate(solver, layout, y0, scale, t0, t1, begin, None)

    @property
    def rtol(self) -> Float[Array, ""]:
        """The relative tolerance of the flow, but at least 32 roundings."""
        dtype = self.start.X.dtype
        return jnp.maximum(jnp.asarray(self.flow.rtol, dtype), 32 * jnp.finfo(dtype).eps)

    def _integrate(self, solver, layout: Layout | SecondOrder, y0, scale, t0, t1, begin, longest) -> Outcome:
        problem, observe = self.problem, self.observe

        def save(t, y, args):
            return y if observe is None else args.observe(layout.point(args.problem, y))

        # If nothing is observed, nothing is saved, and the solver need not prepare output.
        saves = [] if self.ts is None else [dfx.SubSaveAt(ts=jnp.clip(self.ts, t0, t1), fn=save)]
        with lean_diffrax():
            solution = dfx.diffeqsolve(
                layout.terms(),
                solver,
                t0=t0,
                t1=t1,
                dt0=begin,
                y0=y0,
                args=Arguments(problem, observe, self.flow),
                saveat=dfx.SaveAt(subs=[*saves, dfx.SubSaveAt(t1=True)]),
                stepsize_controller=self._control(layout, scale, longest),
                max_steps=self.flow.max_steps,
                adjoint=adjoint_of(self.flow.adjoint),
                event=self._event(layout),
                throw=False,
            )
        *saved, last = cast(list, solution.ys)
        end = layout.point(problem, jax.tree.map(lambda leaf: leaf[-1], last))
        if saved and observe is None:
            saved = jax.vmap(lambda y: layout.point(problem, y))(saved[0])
        elif saved:
            saved = saved[0]
        resting = solution.result == dfx.RESULTS.event_occurred
        ran_out = ~resting & (solution.result != dfx.RESULTS.successful)
        stats = _stats(solution, solver, self.ts is not None)
        return Outcome(saved, end, cast(list, solution.ts)[-1][-1], ran_out, resting, stats)

    def _control(self, layout: Layout | SecondOrder, scale: PyTree, longest) -> BlockControl:
        scales = jax.lax.stop_gradient(layout.block_scales(layout.block_norms(self.problem, scale)))
        atol = self.rtol * scales if self.flow.atol is None else jnp.asarray(self.flow.atol, scales.dtype)
        atol = jnp.maximum(jnp.broadcast_to(atol, scales.shape), layout.rounding(scales.dtype))
        return BlockControl(  # pyright: ignore[reportCallIssue]: diffrax's abstract fields atol and norm are properties
            rtol=self.rtol,
            block_atol=atol,
            block_norms=functools.partial(layout.block_norms, self.problem),
            block_scales=layout.block_scales,
            longest=longest,
        )

    def _event(self, layout: Layout | SecondOrder) -> dfx.Event | None:
        if self.flow.until is None:
            return None
        problem, start, tolerance = self.problem, self.start, REST * self.rtol
        ending = ending_of(problem)
        return dfx.Event(lambda t, y, args, **_: ending.at_rest(start, layout.point(problem, y), tolerance))


def _stats(solution: dfx.Solution, solver: dfx.AbstractSolver, output: bool) -> dict[str, Int[Array, ""]]:
    """The numbers of steps, and of evaluations of the field if the solver says how many a step takes."""
    accepted, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    stats = {"accepted": accepted, "rejected": rejected}
    per_step = getattr(solver, "evaluations_per_step", None)
    if per_step is not None:
        per_step += getattr(solver, "evaluations_for_output", 0) if output else 0
        stats["evaluations"] = per_step * (accepted + rejected) + 1
    return stats

"""The integrations that a flow is made of: explicit steps from the start, implicit ones once every mode has escaped.

Weight decay, and the flow along a minimum that is not a point, are slow: explicit steps, capped at their stability of
a few over `sqrt N`, would be counted in millions.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._checks import shown
from ._errors import UsageError
from ._lean import lean_diffrax
from .extended_bdf import ExtendedBDF
from .layout import Layout, SecondOrder, stiff_rate
from .model import Point, Problem
from .solvers import BlockControl, solver_of, suited
from .stopping import at_rest, target_modes

FIRST_STEP = 3.0
"""The first step times the fastest rate, over `rtol^(1/order)`. Of 1, 2, 3 and 5, 3 took the fewest steps."""

REST = 10.0
"""A flow is at rest when it has less than this times rtol to go."""

LINEAR = 1e-2
"""The linear systems of the implicit steps are solved to this times rtol."""

ADJOINTS: dict[str, Callable[[], dfx.AbstractAdjoint]] = {
    "reverse": dfx.RecursiveCheckpointAdjoint,
    "forward": dfx.ForwardMode,
}
"""How a run is differentiated, by name."""


def adjoint_of(adjoint: Any) -> dfx.AbstractAdjoint:
    """The adjoint of a name, or the one of diffrax that is given.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(adjoint, str) and adjoint.lower() in ADJOINTS:
        return ADJOINTS[adjoint.lower()]()
    if not isinstance(adjoint, dfx.AbstractAdjoint):
        known = " or ".join(map(repr, ADJOINTS))
        raise UsageError(f"adjoint must be {known}, or an adjoint of diffrax, got {shown(adjoint)}.")
    return adjoint


class Integrable(Protocol):
    """The part of a flow that the integrations use."""

    rtol: Any
    atol: Any
    solver: Any
    max_steps: int
    until: Any
    adjoint: Any

    @property
    def layout(self) -> Layout | SecondOrder: ...

    def initial(self, problem: Problem, start: Point) -> PyTree: ...


class Outcome(NamedTuple):
    """The result of a leg: its saves, the end and the time of it, and how it went."""

    saved: PyTree
    end: Point
    t_end: Float[Array, ""]
    ran_out: Bool[Array, ""]
    at_rest: Bool[Array, ""]
    stats: dict[str, Int[Array, ""]]


class Legs(NamedTuple):
    """The integrations that a run is made of.

    `ts` are the save times of the run, or None where nothing is saved. A save is the point, or with `observe` what that
    makes of it.
    """

    flow: Integrable
    problem: Problem
    start: Point
    ts: Float[Array, " time"] | None
    observe: Callable[[Point], PyTree] | None

    def explicit(self, t1: Float[Array, ""]) -> Outcome:
        """From the start to `t1` with the flow's own solver."""
        solver, layout = suited(solver_of(self.flow.solver), self.ts is not None), self.flow.layout
        begin, longest = first_step(self.problem, self.rtol, solver), longest_step(self.problem, solver, t1)
        y0 = self.flow.initial(self.problem, self.start)
        return self._integrate(solver, layout, y0, y0, jnp.zeros_like(t1), t1, begin, longest)

    def implicit(self, point: Point, t0: Float[Array, ""], t1: Float[Array, ""]) -> Outcome:
        """From a point at `t0` to `t1` with implicit steps, which nothing but their error limits."""
        solver = ExtendedBDF(jnp.maximum(LINEAR * self.rtol, 4 * jnp.finfo(t0.dtype).eps))
        layout = Layout(mean_residual=False)
        y0, scale = layout.state(self.problem, point), layout.state(self.problem, self.start)
        begin = jnp.sqrt(self.rtol) / fastest_at_rest(self.problem, t0)
        begin = jnp.maximum(begin, 256 * jnp.finfo(t0.dtype).eps * t0)
        return self._integrate(solver, layout, y0, scale, t0, t1, begin, None)

    @property
    def rtol(self) -> Float[Array, ""]:
        """The flow's relative tolerance, as far as the precision allows it."""
        dtype = self.start.X.dtype
        return jnp.maximum(jnp.asarray(self.flow.rtol, dtype), 32 * jnp.finfo(dtype).eps)

    def _integrate(self, solver, layout: Layout | SecondOrder, y0, scale, t0, t1, begin, longest) -> Outcome:
        problem, observe = self.problem, self.observe

        def save(t, y, args):
            return y if observe is None else args[1](layout.point(args[0], y))

        # Where nothing is observed, nothing is saved, and the solver's output costs nothing.
        saves = [] if self.ts is None else [dfx.SubSaveAt(ts=jnp.clip(self.ts, t0, t1), fn=save)]
        with lean_diffrax():
            solution = dfx.diffeqsolve(
                layout.terms(),
                solver,
                t0=t0,
                t1=t1,
                dt0=begin,
                y0=y0,
                args=(problem, observe, self.flow),
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
        return BlockControl(  # pyright: ignore[reportCallIssue]: diffrax's abstract fields atol and norm are properties
            rtol=self.rtol,
            block_atol=jnp.broadcast_to(atol, scales.shape),
            block_norms=functools.partial(layout.block_norms, self.problem),
            block_scales=layout.block_scales,
            longest=longest,
        )

    def _event(self, layout: Layout | SecondOrder) -> dfx.Event | None:
        if self.flow.until is None:
            return None
        problem, start, tolerance = self.problem, self.start, REST * self.rtol
        return dfx.Event(lambda t, y, args, **_: at_rest(problem, start, layout.point(problem, y), tolerance))


def _stats(solution: dfx.Solution, solver: dfx.AbstractSolver, output: bool) -> dict[str, Int[Array, ""]]:
    """Steps, and evaluations of the field where the solver tells how many a step takes, with and without output."""
    accepted, rejected = solution.stats["num_accepted_steps"], solution.stats["num_rejected_steps"]
    stats = {"accepted": accepted, "rejected": rejected}
    per_step = getattr(solver, "evaluations_per_step", None)
    if per_step is not None:
        per_step += getattr(solver, "evaluations_for_output", 0) if output else 0
        stats["evaluations"] = per_step * (accepted + rejected) + 1
    return stats


def first_step(problem: Problem, rtol: Float[Array, ""], solver: dfx.AbstractSolver) -> Float[Array, ""]:
    """A first step that resolves the transient of the mean residual: one much larger would be rejected."""
    order = solver.order(cast(Any, None)) or 1
    _, lam_H, _ = problem.decays(rtol.dtype)
    fastest = stiff_rate(problem, rtol.dtype) + lam_H + max(problem.model.counts) ** 0.5
    return FIRST_STEP * rtol ** (1 / order) / fastest


def longest_step(problem: Problem, solver: dfx.AbstractSolver, t1: Float[Array, ""]) -> Float[Array, ""] | None:
    """The longest step in which the solver is stable up to t1, if it says how far it is and splits the residual."""
    stable = getattr(solver, "real_stability", None)
    return None if stable is None else stable / fastest_at_rest(problem, t1)


def fastest_at_rest(problem: Problem, t: Float[Array, ""]) -> Float[Array, ""]:
    """The fastest decay near a critical point up to the time t, but for the mean residual's.

    It is `s (r + 1/r)` with the largest singular value s of the targets, `sqrt N` for balanced classes, plus what
    weight decay adds. The ratio r is 1 where W and the features are balanced. Decays that differ take it to the root of
    their quotient, and with the larger decay lam no faster than `sqrt(1 + 4 lam t)` (derived here from the Hessian's
    spectrum, and from `(r - 1/r)' <= 2 lam / r` for the imbalance).
    """
    lam_W, lam_H, _ = jax.lax.stop_gradient(problem.decays(t.dtype))
    lam, least = jnp.maximum(lam_W, lam_H), jnp.minimum(lam_W, lam_H)
    end = lam / jnp.where(least > 0, least, jnp.finfo(t.dtype).tiny)
    ratio = jnp.sqrt(jnp.clip(end, 1.0, 1 + 4 * lam * jax.lax.stop_gradient(t)))
    return float(target_modes(problem.model)[1][0]) * (ratio + 1 / ratio) + lam

"""The gradient flow, integrated by diffrax in coordinates in which it is cheap and not stiff."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, PyTree

from .._checks import Number, check_choice, check_integer, check_positive, is_traced, shown
from .._errors import UsageError
from .._registry import fields_of, numbers_of
from ..endings.choice import ending_of
from ..endings.plateau import default_times
from ..endings.verdict import Verdict
from ..model.coordinates import check_coordinates
from ..model.problem import Point, Problem
from ..model.ufm import UFM
from .base import Method, Run
from .integration import Legs, adjoint_of
from .layouts import Layout, SecondOrder, layout_of
from .log_clock import CLOCKS, check_range, clock_for, from_solver, is_logarithmic, to_solver
from .solvers.registry import solver_of

APPROACHES = ("auto", "explicit", "implicit")

EXPLICIT_UP_TO = 6000.0
"""Up to this time, in units of the fastest decay at rest, about a thousand explicit steps suffice."""

LONGEST_UNTIL_REST = 1e3
"""A run until rest ends after this many plateau times at the latest."""


RTOL, MAX_STEPS = 1e-8, 65_536
"""The defaults of every flow."""


class AbstractFlow(Method):
    """A flow, integrated with adaptive steps: the base class of all flows. Each defines its `velocity`."""

    rtol: eqx.AbstractVar[Number]
    atol: eqx.AbstractVar[Number | None]
    t1: eqx.AbstractVar[Number | None]
    solver: eqx.AbstractVar[str | dfx.AbstractSolver]
    max_steps: eqx.AbstractVar[int]
    mesh: eqx.AbstractVar[Mesh | None]
    until: eqx.AbstractVar[str | None]
    approach: eqx.AbstractVar[str]
    adjoint: eqx.AbstractVar[str | dfx.AbstractAdjoint]
    clock: eqx.AbstractVar[str]

    symmetric: ClassVar[bool] = True
    """Whether the field has a symmetric Jacobian, as in a gradient flow."""

    rescales: ClassVar[bool] = False
    """Whether another clock only rescales the field, as in a gradient flow."""

    lanes_last: ClassVar[bool] = False
    """Whether `velocity` also takes points with lanes as the last axis, and one number of the flow for each lane."""

    def __init__(
        self,
        solver: str | dfx.AbstractSolver = "exponential",
        *,
        rtol: Number = RTOL,
        atol: Number | None = None,
        t1: Number | None = None,
        max_steps: int = MAX_STEPS,
        coordinates: str = "auto",
        mesh: Any = None,
        until: Any = None,
        approach: Any = "auto",
        adjoint: Any = "reverse",
        clock: Any = "auto",
    ):
        method = solver_of(solver)
        for name, value in (("rtol", rtol), ("atol", atol), ("t1", t1)):
            check_positive(name, value)
        check_coordinates(coordinates)
        check_integer("max_steps", max_steps)
        if until is not None:
            check_choice("until", until, ("rest",))
        check_choice("approach", approach, APPROACHES)
        check_choice("clock", clock, CLOCKS)
        if mesh is not None and not isinstance(mesh, Mesh):
            raise UsageError(f"mesh must be a jax.sharding.Mesh, got {shown(mesh)}: make one with jax.make_mesh.")
        adjoint_of(adjoint)
        self.rtol, self.atol, self.t1 = rtol, atol, t1
        self.solver, self.max_steps, self.coordinates, self.mesh = solver, max_steps, coordinates, mesh
        self.until, self.approach, self.adjoint, self.clock = until, approach, adjoint, clock
        if not self.symmetric and getattr(method, "symmetric_jacobian", False):
            raise UsageError(
                f"solver {solver!r} rests on a symmetric Jacobian, which the {self.name} has not: use another solver."
            )
        if is_logarithmic(clock) and not self.rescales:
            raise UsageError(f'clock is {clock!r}, which is for fc.Flow, and this is a {self.name}: use clock="time".')
        if is_logarithmic(clock) and (until is not None or approach == "implicit"):
            fault = f"until={until!r}" if until is not None else f"approach={approach!r}"
            raise UsageError(f"clock is {clock!r}, in which a flow never comes to rest, with {fault}: leave one out.")
        if approach == "implicit" and not self._can_be_implicit:
            raise UsageError(
                f'approach="implicit" changes from an explicit solver to an implicit one, which a {self.name} with '
                f"the solver {solver!r} cannot: leave it out."
            )

    @abc.abstractmethod
    def velocity(self, problem: Problem, point: Point) -> Point:
        """The right-hand side at a point."""

    @property
    def label(self) -> str:
        """The name of this method in tables."""
        solver = self.solver if isinstance(self.solver, str) else type(self.solver).__name__
        return f"{self.name.replace('-', ' ')} ({solver})"

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the flow's numbers, which can vary without a new compilation."""
        return numbers_of(self)

    def with_numbers(self, numbers: Mapping[str, Any]) -> "AbstractFlow":
        """The same flow with some of its `numbers` replaced."""
        return self._with(**numbers)

    def _with(self, **changed: Any) -> "AbstractFlow":
        return type(self)(**(fields_of(self) | changed))

    @property
    def time_name(self) -> str:
        return "ln(1 + t)" if self.clock == "log" else super().time_name

    @property
    def limit(self) -> Verdict:
        """The verdict of a run that stopped before the plateau, as requested."""
        return Verdict.time_limit

    def layout(self, problem: Problem) -> Layout | SecondOrder:
        """The layout of the state of the flow in the solver."""
        return layout_of(problem, solver_of(self.solver), self.lanes_last, is_logarithmic(self.clock))

    def initial(self, problem: Problem, start: Point) -> PyTree:
        """The initial state of the flow, in its layout."""
        return layout_of(problem, solver_of(self.solver), self.lanes_last).state(problem, start)

    def check_fits(self, model: UFM) -> None:
        clock_for(self.clock, model)
        check_range("t1", self.t1, self.clock, model.loss)

    def prepared(self, model: UFM, ts: Any) -> "AbstractFlow":
        """The same flow with approach and clock `"auto"` resolved from the numbers known outside of a program."""
        self.check_fits(model)
        if not isinstance(ts, int):
            check_range("ts", ts, self.clock, model.loss)
        clock = clock_for(self.clock, model) if self.rescales and self.approach != "implicit" else "time"
        if self.until is not None and is_logarithmic(clock):
            raise UsageError(
                f"until={self.until!r}, but without decay the loss {model.loss.text!r} has no minimum, so the flow "
                "never comes to rest: give t1."
            )
        if self.approach != "auto":
            return self._with(clock=clock)
        # Implicit steps begin once every mode has escaped, if the loss has a minimum. Otherwise rates fall with time.
        explicit = not (self._can_be_implicit and model.loss.attained)
        explicit = explicit or (self.until is None and _few_steps_at_rest(model, self.t1, ts))
        return self._with(approach="explicit" if explicit else "implicit", clock=clock)

    @property
    def factorises(self) -> bool:
        """Whether the solver is implicit, with Newton's method."""
        return isinstance(solver_of(self.solver), dfx.AbstractImplicitSolver)

    @property
    def _can_be_implicit(self) -> bool:
        return self.symmetric and not self.factorises

    def run(self, problem: Problem, start: Point, ts: Array | int, observe: Callable[[Point], Any] | None) -> Run:
        """Integrate from `start` and observe at `ts`, or at `ts` many times that show the run up to its end."""
        dtype = start.X.dtype
        if self.until is not None and isinstance(ts, int):
            # The time of rest is not known beforehand: a first run finds it, and a second run spreads the saves.
            found = self.run(problem, start, jnp.zeros(1, dtype), lambda _: ())
            known = self._with(until=None, t1=found.t_end)
            return known.run(problem, start, ts, observe)._replace(
                steps_ran_out=found.steps_ran_out, at_rest=found.at_rest
            )
        start = start if self.mesh is None else start._replace(X=spread_columns(start.X, self.mesh))
        ending = ending_of(problem)
        escape, t1 = ending.escape_time(start), self._end(problem, start, ts)
        if isinstance(ts, int):
            ts = default_times(ts, t1 if self.clock == "log" else escape, t1)
        times, end_time = to_solver(self.clock, ts.astype(dtype)), to_solver(self.clock, t1)
        observing = observe is None or bool(jax.tree.leaves(jax.eval_shape(observe, start)))
        legs = Legs(self, problem, start, times if observing else None, observe)

        known = ending.fastest_rate(t1) is not None and not is_logarithmic(self.clock)
        if self.approach == "implicit" and not known:
            raise UsageError(
                'approach="implicit" needs the fastest rate at rest, which is not known for the loss '
                f"{problem.loss.text!r}: leave it out."
            )
        if self.approach == "implicit" or (self.approach == "auto" and self._can_be_implicit and known):
            # The mean mode can take hundreds of times longer than the other modes. The explicit steps, which are short
            # compared with its growth time, carry it through its growth; implicit steps do its decay to rest.
            escaped = ending.escape_time(start, mean_decay=0.0)
            first = legs.explicit(jnp.minimum(escaped, t1))
            over = first.ran_out | first.at_rest
            last = legs.implicit(first.end, first.t_end, jnp.where(over, first.t_end, t1))
            last = last._replace(
                saved=jax.tree.map(lambda x, y: choose(times <= first.t_end, x, y), first.saved, last.saved),
                ran_out=first.ran_out | last.ran_out,
                at_rest=first.at_rest | last.at_rest,
                stats={name: first.stats[name] + last.stats[name] for name in last.stats},
            )
        else:
            last = legs.explicit(end_time)
        saved = last.saved if observing or observe is None else observe(last.end)
        observed = jax.tree.map(lambda x: choose(times <= last.t_end, x, jnp.nan), saved)
        t_end = jnp.where(last.t_end == end_time, t1, from_solver(self.clock, last.t_end))
        return Run(ts, observed, last.end, t_end, last.ran_out, last.stats, last.at_rest)

    def _end(self, problem: Problem, start: Point, ts: Array | int) -> Float[Array, ""]:
        """The end of the run: t1, the last of `ts`, the plateau time, or far beyond it for a run until rest."""
        if self.t1 is not None:
            end = self.t1
        elif self.until is not None:
            end = LONGEST_UNTIL_REST * ending_of(problem).end_time(start)
        else:
            ending = ending_of(problem)
            known = ending.log_end_time(start) if self.clock == "log" else ending.end_time(start)
            end = known if isinstance(ts, int) else ts[-1]
        return jnp.asarray(end, start.X.dtype)


class Flow(AbstractFlow):
    """The gradient flow `z' = -grad R(z)`, integrated with adaptive steps.

    Args:
        solver: a name (`"exponential"`, `"tsit5"`, `"dopri5"`, `"dopri8"`, `"kvaerno5"`, `"kencarp5"`) or a diffrax
            solver with an error estimate. The default treats the stiff mean residual exactly and takes eighth-order
            steps in the rest; its cost depends neither on the samples per class nor on the stiffness.
        rtol: relative tolerance of each block (W, class means, within-class part, bias) in the norm of the block; in
            float32 at least 4e-6 is used.
        atol: absolute tolerance of each block's norm. Default: `rtol` times the block's norm at the start, so it scales
            with eps.
        t1: the end time. Default: the plateau time of the start, or the last of `ts`.
        max_steps: the most steps, accepted and rejected together; the implicit steps of the approach are counted
            separately. A run that needs more ends early: its verdict says so, `t_end` is the time reached, and later
            saves are NaN.
        coordinates: `"auto"` (class means if exact, compressed rows if they save work), `"class-mean"`, `"sample"`.
        mesh: a `jax.sharding.Mesh`; the columns of the features are spread over its devices, for one large problem.
        until: `"rest"` ends the run when the flow has come to rest: every mode in the start has escaped, and W, the
            features and b each have less than `10 rtol` of their norm left to go. Then `t1` is the latest end.
        approach: the steps after every mode has escaped. `"implicit"` changes to implicit steps (backward
            differentiation with conjugate gradients), which cover the slow approach under weight decay in a few hundred
            steps. `"explicit"` keeps the solver to the end, with steps limited by its stability. `"auto"` is
            `"implicit"` if there is weight decay or the end is far, unless the solver is already implicit.
        clock: `"time"` or `"log"`. In the log clock all times (`t1`, `ts` and those of the result) are `l = ln(1 + t)`,
            and the flow of a loss without minimum, such as cross-entropy without decay, reaches `t = e^1000` in a few
            hundred steps. `"log-steps"` steps in l but keeps times t. The default, `"auto"`, is `"log-steps"` for a
            loss without minimum if nothing decays, and `"time"` otherwise.
        adjoint: how the run is differentiated: `"reverse"` (for `jax.grad`, with checkpoints: the memory grows with the
            square root of `max_steps`, so lower it where memory is short), `"forward"` (for `jax.jvp`, `jax.jacfwd` and
            nested uses of them, as in second derivatives: it keeps no earlier steps), or an adjoint of diffrax.

    The times that `fc.simulate` saves by default are equally spaced up to the escape, and logarithmic after it.

    Raises:
        UsageError: for an unknown solver, coordinates, approach, clock or adjoint, tolerances or a t1 that are not
            positive, or a mesh whose size does not divide the columns. A run refuses a log clock if something decays or
            the loss has a minimum.

    Source: the paper's gradient flow; the coordinates and the default solver are derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> fc.simulate(model, start, fc.Flow("tsit5", rtol=1e-4, t1=2.0), metrics=()).result.name
        'time_limit'
    """

    rtol: Number = RTOL
    atol: Number | None = None
    t1: Number | None = None
    solver: str | dfx.AbstractSolver = eqx.field(static=True, default="exponential")
    max_steps: int = eqx.field(static=True, default=MAX_STEPS)
    coordinates: str = eqx.field(static=True, default="auto")
    mesh: Mesh | None = eqx.field(static=True, default=None)
    until: str | None = eqx.field(static=True, default=None)
    approach: str = eqx.field(static=True, default="auto")
    adjoint: str | dfx.AbstractAdjoint = eqx.field(static=True, default="reverse")
    clock: str = eqx.field(static=True, default="auto")

    name = "flow"
    rescales = True
    lanes_last = True
    __init__ = AbstractFlow.__init__  # type checkers do not see the inherited one

    def velocity(self, problem: Problem, point: Point) -> Point:
        """`-grad R`."""
        return problem.field(point)


def spread_columns(X: Float[Array, "p n"], mesh: Mesh) -> Float[Array, "p n"]:
    """X with its columns spread over the devices of a mesh. The compiler keeps this layout through the whole solve.

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


def _few_steps_at_rest(model: UFM, t1: Any, ts: Any) -> bool:
    """Whether few explicit steps, limited by their stability, reach the end. False if numbers are traced."""
    decays = jax.tree.leaves(model.weight_decay)
    end = t1 if t1 is not None else None if isinstance(ts, int) else ts[-1]
    if any(is_traced(x) for x in (*decays, end)):
        return False
    decay = max(float(np.max(np.asarray(x))) for x in decays)
    if end is None:
        return decay == 0
    return float(np.max(np.asarray(end))) * (2 * model.scale * max(model.counts) ** 0.5 + decay) <= EXPLICIT_UP_TO


def choose(which: Bool[Array, " time"], x, y) -> Array:
    """`x` where `which` is true and `y` elsewhere, along the first axis."""
    return jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y)

"""The layout of a point, or of a point and its velocity, in the solver, and the field and norms in this layout."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._linalg.algebra import sum_of_squares
from ..model.problem import Point, Problem
from ..programs import lanes_last
from .solvers.exponential import Relaxation
from .solvers.registry import splits_stiff_part
from .stiff_part import from_mean_residual, mean_residual_field, stiff_rate, to_mean_residual


class Arguments(NamedTuple):
    """The arguments of the fields and saves of an integration: the problem, the observer if any, and the flow."""

    problem: Problem
    observe: Callable[[Point], PyTree] | None
    flow: Any


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field in a layout. Equal layouts give equal fields, so JAX traces a step of them once for all programs."""

    layout: "Layout | SecondOrder"
    function: Callable

    def __call__(self, t, y: PyTree, args: Arguments) -> PyTree:
        return self.function(self.layout, t, y, args)


class LanesLastTerm(dfx.ODETerm):
    """A term whose field allows lanes as the last axis of the state. It uses the problem without its samples, and the
    flow if `uses_flow`."""

    uses_flow: bool = eqx.field(static=True, default=False)

    def reads(self, args: Arguments) -> Arguments:
        """The part of the arguments that the field reads."""
        model, columns = args.problem
        # Always three decays, because a single decay with three lanes would look like three decays.
        problem = Problem(eqx.tree_at(lambda m: m.weight_decay, model, model.decays), columns.without_arrays())
        return Arguments(problem, None, args.flow if self.uses_flow else None)

    def vf(self, t, y, args):
        return super().vf(t, y, self.reads(args))


def _squares(blocks: tuple[Array, ...]) -> Float[Array, "blocks *lanes"]:
    """The sums of the squares of the blocks. The last block is a vector for each lane."""
    lanes = blocks[-1].ndim - 1
    return jnp.stack([sum_of_squares([block], lanes) for block in blocks])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of a point in the solver: `((W, X), e)` with the mean residual, or `((W, X), b)`.

    `splits` says whether the solver takes two terms. With `log_clock` the time of the solver is `l = ln(1 + t)`.
    `lanes_last` says whether the loss and the flow allow lanes as the last axis.
    """

    mean_residual: bool
    splits: bool = False
    log_clock: bool = False
    lanes_last: bool = False

    def state(self, problem: Problem, point: Point) -> PyTree:
        last = to_mean_residual(problem, point) if self.mean_residual else point.b
        return (point.W, point.X), last

    def point(self, problem: Problem, y: PyTree) -> Point:
        (W, X), last = y
        return from_mean_residual(problem, W, X, last) if self.mean_residual else Point(W, X, last)

    def terms(self) -> dfx.AbstractTerm:
        """The vector field of the flow. For solvers that need it, it is split into forcing and relaxation.

        Such solvers, and the log clock, are for the gradient flow. Otherwise the field is the flow's `velocity`.
        """
        if self.mean_residual:
            return dfx.MultiTerm(LanesLastTerm(_Field(self, _forcing)), Relaxation(_rate))
        if not (self.splits or self.log_clock):
            return self.term(_Field(self, _whole), uses_flow=True)
        term = self.term(_Field(self, _gradient))
        return dfx.MultiTerm(term, Relaxation(None)) if self.splits else term

    def term(self, field: Callable, uses_flow: bool = False) -> dfx.ODETerm:
        """The term of a field."""
        return LanesLastTerm(field, uses_flow) if self.lanes_last else dfx.ODETerm(field)

    def block_norms(self, problem: Problem, y: PyTree) -> Float[Array, "4"]:
        """The norms of W, B, L and of the mean residual or bias."""
        (W, X), last = y
        return jnp.sqrt(lanes_last(_squares)((W, *problem.split(X), last)))

    def block_scales(self, norms: Float[Array, "4"]) -> Float[Array, "4"]:
        """The error scales: each block's norm, but B's for the mean residual, and the sum of B's and b's for b."""
        last = norms[1] if self.mean_residual else norms[1] + norms[3]
        return norms.at[3].set(last)

    def rounding(self, dtype) -> Float[np.ndarray, "4"]:
        """The rounding of the blocks: the force on b sums residuals of order one, and zero may leave a rounding."""
        return np.array([0.0, 0.0, 0.0, 0.0 if self.mean_residual else jnp.finfo(dtype).eps], dtype)


@dataclasses.dataclass(frozen=True)
class SecondOrder:
    """The layout of a point with a velocity: z, and `u = z + m z'`, the place it would drift to in the time m.

    Then `m z'' + z' = f(z)` becomes `z' = (u - z) / m`, `u' = f(z)`, and both parts have the scales of a point.
    """

    of_point: Layout

    def state(self, problem: Problem, point: Point, drifted: Point) -> PyTree:
        return self.of_point.state(problem, point), self.of_point.state(problem, drifted)

    def point(self, problem: Problem, y: PyTree) -> Point:
        return self.of_point.point(problem, y[0])

    def terms(self) -> dfx.AbstractTerm:
        """The field of both parts, for a flow that also has a `mass`."""
        return self.of_point.term(_Field(self, _drifting), uses_flow=True)

    def block_norms(self, problem: Problem, y: PyTree) -> Float[Array, "8"]:
        """The norms of W, B, L and the bias, first of the point and then of the place it would drift to."""
        return jnp.concatenate([self.of_point.block_norms(problem, part) for part in y])

    def block_scales(self, norms: Float[Array, "8"]) -> Float[Array, "8"]:
        return jnp.concatenate([self.of_point.block_scales(part) for part in jnp.split(norms, 2)])

    def rounding(self, dtype) -> Float[np.ndarray, "8"]:
        return np.tile(self.of_point.rounding(dtype), 2)


def _forcing(layout: Layout, t, y, args: Arguments) -> PyTree:
    """The field of `((W, X), e)` without the relaxation of e."""
    (W, X), e = y
    W_velocity, X_velocity, g = mean_residual_field(args.problem, W, X, e)
    return (W_velocity, X_velocity), g


def _rate(args: Arguments, dtype) -> Float[Array, ""]:
    return stiff_rate(args.problem, dtype)


def _gradient(layout: Layout, t, y, args: Arguments) -> PyTree:
    """The gradient flow, in the time of the solver."""
    problem, point = args.problem, layout.point(args.problem, y)
    # t = e^l - 1, so dt/dl = e^l
    return layout.state(problem, problem.scaled_field(point, t) if layout.log_clock else problem.field(point))


def _whole(layout: Layout, t, y, args: Arguments) -> PyTree:
    """The velocity of the flow."""
    return layout.state(args.problem, args.flow.velocity(args.problem, layout.point(args.problem, y)))


def _drifting(layout: SecondOrder, t, y, args: Arguments) -> PyTree:
    """The field of a point and the place it would drift to."""
    velocity = jax.tree.map(lambda z, u: (u - z) / args.flow.mass, *y)
    return velocity, _whole(layout.of_point, t, y[0], args)


def layout_of(problem: Problem, solver: dfx.AbstractSolver, lanes_last: bool, log_clock: bool = False) -> Layout:
    """The layout of a point that a solver works on. `lanes_last` says whether the flow allows lanes as the last axis.

    A solver that treats the stiff part separately gets the mean residual of the squared error. Other losses have no
    stiff linear part.
    """
    loss, splits = problem.model.loss, splits_stiff_part(solver)
    return Layout(splits and loss.squared_error and not log_clock, splits, log_clock, lanes_last and loss.lanes_last)

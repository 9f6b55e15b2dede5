"""Laws of strong collapse, of the invariant subspace S, and of the field of the flow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ... import metrics
from ...methods.stiff_part import mean_residual_field, to_mean_residual
from ...model.coordinates import to_class_means
from ...model.problem import problem_of, risk, velocity
from ...model.state import State
from .. import subspace
from . import lab as lab_module
from .lab import EPS, Lab, as_point, as_state, gap, on_subspace, random_on_subspace, sphere
from .registry import DERIVED, ON_THE_PAPER, PAPER, Comparisons, law

ROUNDED = 1e4 * EPS
DECAY = (0.3, 0.2, 0.1)


@law("snc-implies-nc", "SNC1-SNC3 imply NC1-NC4 and risk 0", f"{PAPER}, Lemma 1")
def snc_implies_nc(lab: Lab) -> Comparisons:
    """Use random orthogonal frames, made with NumPy."""
    for system in lab_module.REACHED:
        model = system.model()
        U, _, Vt = lab_module.modes(system, sphere(system, 1.0, seed=3))
        state = as_state(on_subspace(system, np.sqrt(system.s) * U @ Vt, 1 / system.C))
        for name, value in metrics.evaluate(model, state).items():
            yield value, ROUNDED * (system.N if name == "risk" else 1.0)


@law("field", "the field is minus the gradient of the risk, with decay, bias and any counts", f"{PAPER}, the flow")
def field(lab: Lab) -> Comparisons:
    """Compare the hand-written field with automatic differentiation of the risk."""
    for system in (*lab_module.ABOVE[:2], lab_module.NO_BIAS[0], lab_module.IMBALANCED[0]):
        model = system.model(DECAY)
        state = as_state(sphere(system, 1.0, seed=1, b=0.2 if system.use_bias else 0.0))
        both = lab.program(
            lambda one, model=model: (jax.grad(partial(risk, model))(one), velocity(model, one)), "field", system
        )
        gradient, moving = map(as_point, both(state))
        negative = [-part if system.use_bias or part.ndim > 1 else 0 * part for part in gradient]
        yield gap(moving, negative), ROUNDED


@law("reduced-field", "H = (B/s) (x) 1^T + L Q^T: the field in class-mean columns is that of the samples", DERIVED)
def reduced_field(lab: Lab) -> Comparisons:
    """Compare the two ways to map the field, at random states."""
    for system in (*lab_module.ABOVE, lab_module.IMBALANCED[0]):
        model, state = system.model(DECAY), as_state(sphere(system, 1.0, seed=1, b=0.2))

        def both(state: State, model=model):
            reduced = velocity(model, to_class_means(model, state))
            return State(H=reduced.H, W=reduced.W, b=reduced.b), velocity(model, state)

        yield gap(*map(as_point, lab.program(both, "reduced field", system)(state))), ROUNDED


@law("mean-residual", "b moves as the mean residual e: e' = -(n_tot + lam_b) e plus a mild forcing", DERIVED)
def mean_residual(lab: Lab) -> Comparisons:
    """Compare the field in the default solver's coordinates with the field transformed by the chain rule."""
    for system in (*lab_module.ABOVE, lab_module.IMBALANCED[0]):
        model, state = system.model(DECAY), as_state(sphere(system, 1.0, seed=1, b=0.2))

        def both(state: State, model=model):
            problem, point = problem_of(model, to_class_means(model, state))
            field = problem.field(point)
            e, velocity_of_e = jax.jvp(partial(to_mean_residual, problem), (point,), (field,))
            W, X, forcing = mean_residual_field(problem, point.W, point.X, e)
            return (W, X, forcing - (model.num_samples + DECAY[2]) * e), (field.W, field.X, velocity_of_e)

        yield gap(*lab.program(both, "mean residual", system)(state)), ROUNDED


@law("subspace-projection", "Pi_S is the orthogonal projector on S, of rank p (C - 1) + 1", ON_THE_PAPER)
def subspace_projection(lab: Lab) -> Comparisons:
    """The matrix of the projection, column by column: symmetric, idempotent, and the identity on points of S."""
    for system in lab_module.EVERY:
        model, start = system.model(), sphere(system, 1.0, seed=1, b=0.3)
        flat, unravel = ravel_pytree(tuple(map(jnp.asarray, start)))
        columns = State(*jax.vmap(unravel)(jnp.asarray(np.eye(flat.size))))
        matrix = np.concatenate([np.asarray(part).reshape(flat.size, -1) for part in _project(system, columns)], axis=1)
        yield np.linalg.norm(matrix - matrix.T), ROUNDED
        yield np.linalg.norm(matrix @ matrix - matrix), ROUNDED
        yield abs(np.trace(matrix) - subspace.dimension(model)), ROUNDED
        inside = random_on_subspace(system, 1.0, seed=2, beta=0.3)
        yield gap(_project(system, as_state(inside)), inside), ROUNDED
        off = [np.asarray(z) - p for z, p in zip(start, _project(system, as_state(start)), strict=True)]
        length = np.sqrt(sum(np.sum(part**2) for part in off))
        yield abs(metrics.evaluate(model, as_state(start), ("distance",))["distance"] / length - 1), ROUNDED


def _project(system, state: State):
    """The nearest points of S, for one state or many."""
    return as_point(subspace.project(system.model(), state))


@law("risk-on-subspace", "on S, R = 1/2 ||W W^T - s P||^2 + C N/2 ||b - 1/C||^2", PAPER)
def risk_on_subspace(lab: Lab) -> Comparisons:
    """Compare with the risk itself at random points of S, also with equal decay."""
    for system in lab_module.EVERY:
        for decay in ((0.0, 0.0, 0.0), (0.3, 0.3, 0.1)):
            model, state = system.model(decay), as_state(random_on_subspace(system, 1.5, seed=2, beta=0.7))
            yield abs(sum(subspace.risk_parts(model, state)) / risk(model, state) - 1), ROUNDED


@law("subspace-flow-stays", "S is invariant under the flow, with equal decay of W and H too", PAPER)
def subspace_flow_stays(lab: Lab) -> Comparisons:
    """Compare the states of a run with their projections."""
    for system in lab_module.EVERY:
        starts = [random_on_subspace(system, size, seed=4, beta=0.0) for size in (1e-2, 1.0, 1.0)]
        decays = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.4, 0.4, 0.1)]
        paths = lab.flow(system, starts, np.linspace(0, 12 / system.s, lab_module.TIMES), decays=decays)
        yield _off_subspace(system, paths), ROUNDED


@law("subspace-descent-stays", "S is invariant under gradient descent, at large step sizes too", PAPER)
def subspace_descent_stays(lab: Lab) -> Comparisons:
    """Use step sizes below and above the stability threshold of collapse."""
    for system in lab_module.EVERY:
        threshold = 2 / (system.C * system.N + system.s)
        rates = [0.1 * threshold, 0.9 * threshold, 1.1 * threshold]
        paths = lab.descent(system, [random_on_subspace(system, 0.3, seed=4)] * 3, np.arange(lab_module.TIMES), rates)
        yield _off_subspace(system, paths), ROUNDED


def _off_subspace(system, paths) -> float:
    projected = _project(system, State(*map(jnp.asarray, paths.states)))
    return max(
        gap([part[lane, time] for part in projected], paths.at(lane, time))
        for lane in range(len(paths.states.W))
        for time in range(lab_module.TIMES)
    )

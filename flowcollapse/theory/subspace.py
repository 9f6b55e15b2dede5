"""The invariant subspace S: projection, distance, membership, and the risk on it.

For classes of N samples each, with `s = sqrt N`,

    S = { H = (W (x) 1_N)^T / s,  1^T W = 0,  b in span(1) }

is invariant under the gradient flow and under descent at any step size (Mixon, Parshall and Pi, arXiv 2011.11619), also
if W and H have equal decay. In class-mean columns S is `L = 0`, `B = W^T`. Without a bias, S does not require
`1^T W = 0`. All lengths are in the energy norm, `||(H, W, b)||^2 = ||H||_F^2 + ||W||_F^2 + ||b||^2`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._checks import Number, check_number, is_traced
from .._errors import UsageError
from ..metrics.evaluation import evaluate, observe
from ..metrics.view import View
from ..model.batch import of_states
from ..model.columns import root_counts
from ..model.problem import Point, Problem, problem_of
from ..model.requirements import check_state, require
from ..model.state import State
from ..model.ufm import UFM

__all__ = ["RiskParts", "contains", "dimension", "distance", "project", "relative_distance", "risk_parts"]

EQUAL_COUNTS = "the subspace S is defined for equal counts: use equal counts"


class RiskParts(NamedTuple):
    """The risk on S in two parts that do not interact: that of the `classifier` and that of the `bias`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> parts = fc.theory.subspace.risk_parts(model, fc.initial.collapsed(model, key=jax.random.key(0)))
        >>> bool(parts.classifier + parts.bias < 1e-8)
        True
    """

    classifier: Float[Array, "*batch"]
    bias: Float[Array, "*batch"]


def dimension(model: UFM) -> int:
    """The dimension of S: `p (C - 1) + 1`, and `p C` without a bias.

    Args:
        model: the model, with balanced classes.

    Raises:
        UsageError: if the classes are not balanced.

    Source: the paper's invariant subspace.

    Example:
        >>> import flowcollapse as fc
        >>> fc.theory.subspace.dimension(fc.UFM(num_classes=3, samples_per_class=3, num_features=15))
        31
    """
    require(model, balanced=EQUAL_COUNTS)
    C, p = model.num_classes, model.num_features
    return p * (C - 1) + 1 if model.use_bias else p * C


def project(model: UFM, state: State) -> State:
    """The nearest point of S: its classifier is `P (W + B^T) / 2`, its bias the mean of b.

    Args:
        model: the model, with balanced classes.
        state: a state of it in any columns, with any leading axes (time, lanes).

    Returns:
        A state of the same shapes in the same columns.

    Raises:
        UsageError: if the classes are not balanced or the state's shapes do not fit the model.

    Source: the orthogonal projection on the paper's subspace, derived here; `B` holds the class means times `sqrt N`,
    and `P = I - 1 1^T / C`, or the identity without a bias.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.sphere(model, eps=1.0, key=jax.random.key(0))
        >>> bool(fc.theory.subspace.contains(model, fc.theory.subspace.project(model, state)))
        True
    """
    check_state(model, state)
    require(model, balanced=EQUAL_COUNTS)
    W, X, b = of_states(_project, model, state)
    return State(X=X, W=W, b=b, columns=state.columns)


def _project(model: UFM, state: State) -> Point:
    problem, point = problem_of(model, state)
    view = View(problem, point, *problem.split(point.X), None)
    W = view.centre((point.W + view.B.T) / 2)
    return point_with(problem, W, jnp.full_like(point.b, jnp.mean(point.b)), point.X.shape[-1])


def point_with(problem: Problem, W: Float[Array, "C p"], b: Float[Array, " C"], n: int) -> Point:
    """The point with `n` columns whose class means, times `sqrt N`, are the rows of W; on S if W and b are.

    The targets `T` repeat the column of a class once per sample, so `X = Hbar T` in every kind of columns.
    """
    means = W.T / root_counts(problem.model.counts, W.dtype)
    return Point(W, means @ problem.columns.targets(n, W.dtype), b)


def distance(model: UFM, state: State) -> Float[Array, "*batch"]:
    """The distance `||z - Pi_S z||` of a state to S: the metric `distance`, one number for each leading index.

    Args:
        model: the model, with balanced classes.
        state: a state of it in any columns, with any leading axes.

    Raises:
        UsageError: if the classes are not balanced or the state's shapes do not fit the model.

    Source: the paper. The squared distance is computed without the projection, to keep its digits close to S (derived
    here): `||L||^2 + 1/2 ||P (W - B^T)||^2 + (||W^T 1||^2 + ||B 1||^2) / C + ||P b||^2`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.on_subspace(model, eps=1.0, key=jax.random.key(0))
        >>> bool(fc.theory.subspace.distance(model, state) < 1e-6)
        True
    """
    return evaluate(model, state, ("distance",))["distance"]


def relative_distance(model: UFM, state: State) -> Float[Array, "*batch"]:
    """The distance to S divided by the norm of the state, as in the paper's Figure 2; NaN at the origin.

    Args:
        model: the model, with balanced classes.
        state: a state of it in any columns, with any leading axes.

    Raises:
        UsageError: if the classes are not balanced or the state's shapes do not fit the model.

    Source: the paper, Figure 2.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.sphere(model, eps=1.0, key=jax.random.key(0))
        >>> bool(0.5 < fc.theory.subspace.relative_distance(model, state) < 1)
        True
    """
    return evaluate(model, state, ("relative_distance",))["relative_distance"]


def contains(model: UFM, state: State, rtol: Number | None = None) -> Bool[Array, "*batch"]:
    """Whether a state is on S, up to rounding or up to `rtol`.

    Args:
        model: the model, with balanced classes.
        state: a state of it in any columns, with any leading axes.
        rtol: how far the state may be off S. `(H, W)` is compared with its own norm, so that a small start is judged by
            its own size, and b with its norm or that of the vector 1/C, whichever is larger. Default: a thousand times
            the rounding of the state's precision.

    Raises:
        UsageError: if the classes are not balanced or the state's shapes do not fit the model.

    Source: the paper's invariant subspace.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> bool(fc.theory.subspace.contains(model, fc.initial.collapsed(model, key=jax.random.key(0))))
        True
        >>> bool(fc.theory.subspace.contains(model, fc.initial.sphere(model, eps=1e-9, key=jax.random.key(0))))
        False
    """
    require(model, balanced=EQUAL_COUNTS)
    check_state(model, state)
    check_rtol(rtol)
    return of_states(_contains, model, state, jnp.asarray(default_rtol(state) if rtol is None else rtol))


def _contains(model: UFM, state: State, allowed: Float[Array, ""]) -> Bool[Array, ""]:
    problem, point = problem_of(model, state)
    off = observe(problem, point._replace(b=jnp.zeros_like(point.b)), ("distance",), None)["distance"]
    size = jnp.sqrt(jnp.sum(state.W**2) + jnp.sum(state.X**2))
    uneven = jnp.linalg.norm(state.b - jnp.mean(state.b))
    bias_size = jnp.maximum(jnp.linalg.norm(state.b), model.num_classes**-0.5)
    return (off <= allowed * size) & (uneven <= allowed * bias_size)


def risk_parts(model: UFM, state: State, rtol: Number | None = None) -> RiskParts:
    """The risk on S as a sum: `1/2 ||W W^T - s P||_F^2` of the classifier and `(C N / 2) ||b - 1/C||^2` of the bias.

    Args:
        model: the model, with balanced classes; each decay term is added to the part that decays.
        state: a state on S in any columns, with any leading axes.
        rtol: how far it may be off S, see `contains`.

    Returns:
        `RiskParts(classifier, bias)`, each with one number per leading index; their sum is `fc.risk`.

    Raises:
        UsageError: if a state is off S, the classes are not balanced or the shapes do not fit the model.

    Source: the paper; on S the residual is `W W^T - s P` plus a multiple of `1 1^T`, which are orthogonal.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.on_subspace(model, eps=1e-4, key=jax.random.key(0))
        >>> [round(float(part), 4) for part in fc.theory.subspace.risk_parts(model, state)]
        [3.0, 1.5]
    """
    require(model)
    check_state(model, state)
    check_on_subspace(model, state, rtol)
    return of_states(_risk_parts, model, state)


def _risk_parts(model: UFM, state: State) -> RiskParts:
    problem, point = problem_of(model, state)
    lam_W, lam_H, lam_b = problem.decays(state.W.dtype)
    values = observe(problem, point, ("snc1", "snc3"), None)
    classifier = values["snc1"] ** 2 + (lam_W + lam_H) * jnp.sum(state.W**2)
    bias = model.num_samples * values["snc3"] ** 2 + lam_b * jnp.sum(state.b**2)
    return RiskParts(classifier / 2, bias / 2)


def default_rtol(state: State) -> float:
    """The default tolerance for equalities between the parts of a state: a thousand times rounding."""
    return 1e3 * float(jnp.finfo(jnp.result_type(state.W, jnp.float32)).eps)


def check_rtol(rtol: Number | None) -> None:
    """Raise `UsageError` unless `rtol` is None or a positive number."""
    if rtol is not None:
        check_number("rtol", rtol)


def check_on_subspace(model: UFM, state: State, rtol: Number | None) -> None:
    """Raise `UsageError` if the state is known and off S."""
    require(model, balanced=EQUAL_COUNTS)
    check_rtol(rtol)
    on = contains(model, state, rtol)
    if not is_traced(on) and not bool(jnp.all(on)):
        raise UsageError(
            f"state is off the invariant subspace S, at the distance {distance(model, state)}: project it first, with "
            "fc.theory.subspace.project(model, state)."
        )

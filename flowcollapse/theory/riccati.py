"""Flows that solve a matrix Riccati equation: from balanced starts, and in the slow phase after the means fit."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._checks import Number, is_traced
from .._errors import UsageError
from .._linalg.algebra import triangular_turn
from ..endings.modes import target_modes
from ..model.batch import is_small
from ..model.coordinates import to_class_means
from ..model.problem import problem_of
from ..model.requirements import known_decays, require
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program, full_precision
from ..simulation import as_arrays, checked_start
from .bias import Times, bias, checked_times, integral, least
from .subspace import check_rtol, default_rtol

__all__ = ["balanced_flow", "second_phase"]


def balanced_flow(model: UFM, start: State, ts: Times, *, rtol: Number | None = None) -> State:
    """The gradient flow from a balanced start, `W^T W - H H^T = lam I`, by the solution of a matrix Riccati equation.

    Args:
        model: the model; classes may be imbalanced. Decay of W and H must be equal, and zero unless `lam = 0`.
        start: a balanced state, without leading axes, in any columns. If the model has a bias, the bias must not
            interact: `H 1 = 0`, and either `b = n / n_tot` without decay of b (where it stays), or `1^T W = 0` and
            `b - n / n_tot` in `span(1)` (with decay of b only for balanced classes).
        ts: times of at least 0, shape (time,).
        rtol: how far the start may be from these equalities, relative to its norm. Default: a thousand times rounding.

    Returns:
        The states, with a leading axis of times, in the start's columns, each up to a rotation of its features:
        `W W^T`, `W H`, `H^T H` and `b` equal those of the flow, and so do the risk and all metrics. At time 0 the
        rotation is the identity; later it has no closed form.

    Raises:
        UsageError: for a start outside these sets, decay that breaks them, or negative times.

    Source: Fukumizu 1998 and Braun et al. 2022 (`lam = 0`), Domine et al. 2024 (`lam` of either sign): with
    `Q = [W; H^T]`, `Q Q^T (t) = e^{Ft} Q [I + Q^T (int_0^t e^{2 F x} dx) Q]^-1 Q^T e^{Ft}`,
    `F = [[lam/2, A], [A^T, -lam/2]]`, and `A = Y` without a bias. Derived here: with a bias, `A = Y (I - 1 1^T /
    n_tot)`, and decay is subtracted from F. Such starts exist for every p if `lam = 0`. `lam > 0` gives W rank p, so it
    needs `p <= C`; `lam < 0` gives H rank p, so it needs `p <= n_tot`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5, use_bias=False)
        >>> start = fc.initial.balanced(model, eps=0.1, key=jax.random.key(0))
        >>> bool(fc.risk(model, fc.theory.exact.balanced_flow(model, start, [0.0, 1e3]))[1] < 1e-8)
        True
    """
    start = checked_start(model, start)
    ts = checked_times(ts, start.W.dtype)
    check_rtol(rtol)
    _check_balanced_start(model, start, rtol)
    return _balanced_flow(as_arrays(model, ts.dtype), start, ts, quick=is_small(start))


@Program
def _balanced_flow(model: UFM, start: State, ts: Float[Array, " time"]) -> State:
    means = to_class_means(model, start)
    problem, (W, X, b) = problem_of(model, means)
    lam = _imbalance(W, X)
    U, s, V = (jnp.asarray(x, W.dtype) for x in target_modes(model))
    C, k = U.shape
    # F in its eigenvectors: each mode of the target has a growing and a decaying one; the rest has no target.
    U = jnp.concatenate([U, jnp.full((C, C - k), C**-0.5, s.dtype)], axis=1)
    V = jnp.concatenate([V, jnp.zeros((C, C - k), s.dtype)], axis=1)
    omega = jnp.concatenate([jnp.hypot(s, lam / 2), jnp.full(C - k, lam / 2)])
    angle = jnp.concatenate([jnp.arctan2(s, lam / 2) / 2, jnp.zeros(C - k, s.dtype)])[:, None]
    a, c = U.T @ W, V.T @ X[:, :C].T
    grow, fall = jnp.cos(angle) * a + jnp.sin(angle) * c, jnp.cos(angle) * c - jnp.sin(angle) * a
    rest = X.T.at[:C].add(-V @ c)
    rates = jnp.concatenate([omega, -omega, jnp.full(len(rest), -lam / 2)]) - problem.decays(W.dtype)[0]
    Q = _riccati(jnp.concatenate([grow, fall, rest]), rates, ts)
    grow, fall, rest = Q[:, :C], Q[:, C : 2 * C], Q[:, 2 * C :]
    W = U @ (jnp.cos(angle) * grow - jnp.sin(angle) * fall)
    X = rest.at[:, :C].add(V @ (jnp.sin(angle) * grow + jnp.cos(angle) * fall))
    return _in_columns_of(start, means, W, jnp.swapaxes(X, 1, 2), bias(model, b, ts))


def second_phase(model: UFM, start: State, ts: Times, *, rtol: Number | None = None) -> State:
    """The slow flow after the class means are fitted, in which the mean mode of W and L reduce each other.

    Args:
        model: the model, with a bias and without decay; classes may be imbalanced.
        start: a state, without leading axes, whose class means are fitted exactly (`W mu_c + b` is the target of class
            c), whose within-class part L is orthogonal to them (`B^T L = 0`) and has the same image under all rows of W
            (`P W L = 0`), and whose bias has `1^T b = 1`. An example is strong collapse with `1 u^T / sqrt C` added to
            W and L added to the features, where `u` and L are orthogonal to the frame. Such a state moves only if
            `p > C - 1` and some class has several samples.
        ts: times of at least 0, shape (time,). If u and L are of size eps, they change over times of order `1 / eps^2`.
        rtol: how far the start may be from these equalities, relative to its norm. Default: a thousand times rounding.

    Returns:
        The states, with a leading axis of times, in the start's columns. L equals that of the flow up to a rotation of
        the samples, so every metric except NC4 and CDNV equals that of the flow. At time 0 the rotation is the
        identity.

    Raises:
        UsageError: for a start outside this set, a model with decay or without bias, or negative times.

    Source: derived here. The set is invariant, `P W`, B and b are at rest, and `u = W^T 1 / sqrt C` and L obey
    `u' = -L L^T u`, `L' = -u u^T L`, with risk `1/2 ||L^T u||^2`. As `D = u u^T - L L^T` is conserved,
    `u(t) = e^{Dt} u / sqrt(1 + 2 u^T (int_0^t e^{2 D x} dx) u)`; `L L^T` also solves a Riccati equation.

    Example:
        >>> import jax, jax.numpy as jnp, flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2)
        >>> W = 2**-0.25 * jnp.array([[1.0, 0.3], [-1.0, 0.3]])
        >>> H = 2**-0.75 * jnp.array([[1.0, 1.0, -1.0, -1.0], [0.1, -0.1, 0.1, -0.1]])
        >>> start = fc.State(H=H, W=W, b=jnp.full(2, 0.5))
        >>> risks = fc.risk(model, fc.theory.exact.second_phase(model, start, [0.0, 1e4]))
        >>> round(float(risks[0]), 6), bool(risks[1] < 1e-10)
        (0.0009, True)
    """
    start = checked_start(model, start)
    ts = checked_times(ts, start.W.dtype)
    check_rtol(rtol)
    _check_second_phase(model, start, rtol)
    return _second_phase(as_arrays(model, ts.dtype), start, ts, quick=is_small(start))


@Program
def _second_phase(model: UFM, start: State, ts: Float[Array, " time"]) -> State:
    means = to_class_means(model, start)
    C, B, L = model.num_classes, means.B, means.L
    u = jnp.sum(start.W, axis=0) / C**0.5
    rates, V = jnp.linalg.eigh(jnp.outer(u, u) - L @ L.T)
    # 2 u u^T solves the Riccati equation of D, and 2 L L^T solves that of -D.
    root = 2**0.5
    u = _riccati(root * (V.T @ u)[:, None], rates, ts)[..., 0] @ V.T / root
    turned = V @ _riccati(root * V.T @ L, -rates, ts) / root
    # Of the possible rotations of the samples, take the one that brings L closest to the start's L (Procrustes).
    left, _, right = jnp.linalg.svd(jnp.swapaxes(turned, -1, -2) @ L)
    L = turned @ left @ right
    W = start.W - jnp.mean(start.W, axis=0) + u[:, None, :] / C**0.5
    X = jnp.concatenate([jnp.broadcast_to(B, (len(ts), *B.shape)), L], axis=2)
    return _in_columns_of(start, means, W, X, jnp.broadcast_to(start.b, (len(ts), C)))


def _riccati(Q: Float[Array, "m p"], rates: Float[Array, " m"], ts: Float[Array, " time"]) -> Float[Array, "time m p"]:
    """`Q(t)`, up to a rotation from the right, with `(Q Q^T)' = F Q Q^T + Q Q^T F - (Q Q^T)^2` and `F = diag(rates)`.

    In the formula `Q Q^T (t) = e^{Ft} Q K^-1 Q^T e^{Ft}`, `K = I + Q^T (int e^{2F x} dx) Q`, the growing rows of
    `e^{Ft} Q` would overflow, and long before that they would swamp the other rows. With the rows sorted by their rates
    and the columns rotated so that Q is lower triangular, no entry of `e^{Ft} Q e^{-Ft}` grows. The remaining growth of
    the columns cancels between K and the other factors, so only its inverse is formed (derived here).
    """
    m, p = Q.shape
    order = jnp.argsort(-rates)
    rates = rates[order]
    turn, lower = _triangular(Q[order])

    def at(t):
        growth = jnp.maximum(rates, 0.0) * t
        of_columns = jnp.pad(growth, (0, max(p - m, 0)))[:p]
        scaled = lower * jnp.exp(jnp.minimum(growth[:, None] - of_columns, 0.0))
        # A zero column of Q leaves only its inverse growth here, which must not underflow to zero.
        shrunk = jnp.maximum(jnp.exp(-of_columns), least(Q.dtype))
        root_K = _root_of_sum(shrunk, integral(2 * jnp.abs(rates), t), scaled)
        solved = solve_triangular(root_K, scaled.T, trans="T").T
        return jnp.exp(jnp.minimum(rates, 0.0) * t)[:, None] * solved

    return (jax.vmap(at)(ts) @ turn.T)[:, jnp.argsort(order)]


@jax.custom_jvp
def _triangular(Q: Float[Array, "m p"]) -> tuple[Float[Array, "p p"], Float[Array, "m p"]]:
    """A rotation T, and `Q T`, which is lower triangular.

    The derivative also exists for a Q whose columns are dependent, as in a balanced start with `p > C`, if it does not
    raise the rank: `T' = T Omega` with the antisymmetric Omega that keeps `Q T` triangular (derived here).
    """
    turn, R = jnp.linalg.qr(Q.T, mode="complete")
    return turn, R.T


@_triangular.defjvp
@full_precision
def _(primals, tangents):
    turn, lower = _triangular(*primals)
    change = tangents[0] @ turn
    omega = triangular_turn(lower, change)
    return (turn, lower), (turn @ omega, change + lower @ omega)


@jax.custom_jvp
def _root_of_sum(
    shrunk: Float[Array, " p"], weights: Float[Array, " m"], scaled: Float[Array, "m p"]
) -> Float[Array, "p p"]:
    """The upper triangular R with `R^T R = diag(shrunk)^2 + scaled^T diag(weights) scaled` and a positive diagonal.

    It is found without forming the sum, by QR of the square roots. These have no derivative where a weight is 0, as at
    time 0, but the sum has, so the derivative is that of its Cholesky factor: `R' = Phi(R^-T K' R^-1) R`, where Phi
    takes the upper triangle and half of the diagonal.
    """
    R = jnp.linalg.qr(jnp.concatenate([jnp.diag(shrunk), jnp.sqrt(weights)[:, None] * scaled]), mode="r")
    return R * jnp.where(jnp.diagonal(R) < 0, -1.0, 1.0)[:, None]


@_root_of_sum.defjvp
@full_precision
def _(primals, tangents):
    (shrunk, weights, scaled), (of_shrunk, of_weights, of_scaled) = primals, tangents
    R = _root_of_sum(*primals)
    half = scaled.T @ (weights[:, None] * of_scaled)
    change = jnp.diag(2 * shrunk * of_shrunk) + scaled.T @ (of_weights[:, None] * scaled) + half + half.T
    inner = solve_triangular(R, solve_triangular(R, change, trans="T").T, trans="T")
    return R, (jnp.triu(inner) - jnp.diag(jnp.diagonal(inner)) / 2) @ R


def _in_columns_of(start: State, means: State, W, X, b) -> State:
    """States in the columns of the start, from states in class-mean columns."""
    if means.columns.reduced and not start.columns.reduced:
        return State(H=means.columns.lift(X), W=W, b=b)
    return State(X=X, W=W, b=b, columns=start.columns)


def _imbalance(W: Float[Array, "C p"], X: Float[Array, "p n"]) -> Float[Array, ""]:
    """The lam of `W^T W - H H^T = lam I`."""
    return (jnp.sum(W**2) - jnp.sum(X**2)) / W.shape[1]


@Program
def _balance_defects(model: UFM, start: State) -> dict[str, Float[Array, ""]]:
    """The quantities that `balanced_flow` needs to vanish, each divided by its reference size, and `lam` itself."""
    problem, (W, X, b) = problem_of(model, start)
    lam, offset = _imbalance(W, X), b - jnp.asarray(model.counts, b.dtype) / model.num_samples
    size = jnp.sqrt(jnp.sum(W**2) + jnp.sum(X**2))
    off = W.T @ W - X @ X.T - lam * jnp.eye(model.num_features, dtype=W.dtype)
    defects = {
        "off": jnp.linalg.norm(off) / size**2,
        "lam": jnp.abs(lam) * model.num_features / size**2,
        "H 1": jnp.linalg.norm(problem.columns.times_ones(X)) / size / model.num_samples**0.5,
        "1^T W": jnp.linalg.norm(jnp.sum(W, axis=0)) / size,
    }
    # The origin satisfies all conditions.
    defects = {name: jnp.where(size > 0, defect, 0.0) for name, defect in defects.items()}
    return defects | {
        "b": jnp.linalg.norm(offset),
        "P b": jnp.linalg.norm(offset - jnp.mean(offset)) / (1 + jnp.linalg.norm(b)),
    }


def _check_balanced_start(model: UFM, start: State, rtol: Number | None) -> None:
    """Raise `UsageError` if `balanced_flow` does not apply."""
    require(model, equal_decay="W^T W - H H^T = lam I needs equal decay: make them equal")
    defects = _balance_defects(as_arrays(model, start.W.dtype), start, quick=is_small(start))
    decays = known_decays(model)
    if decays is None or any(is_traced(x) for x in jax.tree.leaves((defects, rtol))):
        return
    allowed = _allowed(start, rtol)
    defect = {name: float(value) for name, value in defects.items()}
    lam_W, _, lam_b = decays
    if not defect["off"] <= allowed:
        raise UsageError(
            f"start has W^T W - H H^T off every multiple of I, by {defect['off']:.3g} of its squared norm (a positive "
            "multiple takes p <= C, a negative one p <= n_tot): balance it, as fc.initial.balanced does."
        )
    if lam_W > 0 and not defect["lam"] <= allowed:
        raise UsageError(
            f"weight_decay is {lam_W:g}, and start has W^T W - H H^T = lam I with lam of {defect['lam']:.3g} of its "
            "squared norm, which decays: leave out the decay, or start from W^T W = H H^T."
        )
    if not model.use_bias:
        return
    if not defect["H 1"] <= allowed:
        raise UsageError(
            f"start has H 1 = 0 off by {defect['H 1']:.3g} of its norm, and through H 1 the bias acts on W: make it 0, "
            "or use_bias=False."
        )
    settled = defect["b"] <= allowed and lam_b == 0
    apart = max(defect["1^T W"], defect["P b"]) <= allowed and (model.balanced or lam_b == 0)
    if not settled and not apart:
        raise UsageError(
            f"start.b is {start.b} with weight_decay {lam_b:g}, and acts on H: set it to n / n_tot without decay; or "
            "make 1^T W = 0 and b - n / n_tot uniform, and let b decay only if the classes are balanced."
        )


@Program
def _second_phase_defects(model: UFM, start: State) -> dict[str, Float[Array, ""]]:
    """The quantities that `second_phase` needs to vanish, divided by the size of the start."""
    means = to_class_means(model, start)
    problem, point = problem_of(model, means)
    C, G = model.num_classes, problem.residual(point)
    defects = {
        "class means that miss their targets": G[:, :C],
        "B^T L": means.B.T @ means.L,
        "P W L": G[:, C:] - jnp.mean(G[:, C:], axis=0),
        "1^T b - 1": jnp.sum(point.b) - 1,
    }
    size = jnp.sqrt(jnp.sum(point.W**2) + jnp.sum(point.X**2) + model.num_samples)
    return {name: jnp.linalg.norm(defect) / size for name, defect in defects.items()}


def _check_second_phase(model: UFM, start: State, rtol: Number | None) -> None:
    """Raise `UsageError` if `second_phase` does not apply."""
    require(
        model,
        bias="without a bias there is no second phase: use a model with a bias",
        no_decay="the second phase has none: set it to 0",
    )
    defects = _second_phase_defects(as_arrays(model, start.W.dtype), start, quick=is_small(start))
    if any(is_traced(x) for x in jax.tree.leaves((defects, rtol))):
        return
    for name, defect in defects.items():
        if not defect <= _allowed(start, rtol):
            raise UsageError(
                f"start is off the second phase by its {name}: {defect:.3g} of its norm instead of 0. Start from "
                "strong collapse with 1 u^T added to W and L to the features, u and L orthogonal to the rows of W."
            )


def _allowed(start: State, rtol: Number | None) -> float:
    """The relative defect that a start may have."""
    return default_rtol(start) if rtol is None else float(np.asarray(rtol))

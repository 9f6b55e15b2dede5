"""When a run has done its work, and what may be said of where it ended.

Near the origin every mode of `(W + B^T)/2` along the targets' singular vectors grows, at the rate of its singular value
(`sqrt N` for balanced classes). A run is over when all modes have escaped and what decays has fallen by e^-20: the
plateau time. A run that ends before that, or cannot do it, says so: its verdict never calls a saddle converged.
"""

import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .model import UFM, Point, Problem

DECAY = 20.0
"""What decays has fallen to e^-20 = 2e-9 at the plateau time."""

ENOUGH_DECAY = 10.0
"""A run that ended with what decays at e^-10 = 5e-5 or less has reached the plateau."""


class Verdict(enum.IntEnum):
    """How a run ended."""

    plateau = 0
    saddle = 1
    time_limit = 2
    step_limit = 3
    non_finite = 4

    @property
    def message(self) -> str:
        """One sentence for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Verdict.plateau: "plateau reached: every mode has escaped, collapse holds up to what the start decides",
    Verdict.saddle: "stopped at a saddle: the start lacks a mode, and what is missing never grows",
    Verdict.time_limit: "time limit: ended before the plateau; raise t1",
    Verdict.step_limit: "step limit: ended before the plateau; raise max_steps or num_steps, or loosen rtol",
    Verdict.non_finite: "not finite: the start or an iterate holds NaN or infinity",
}


def target_modes(model: UFM) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values `(U, s, V)` of the targets that the bias leaves, `diag(sqrt n)(I - u u^T / n_tot)`.

    For balanced classes: C - 1 times `sqrt N`. Without a bias nothing is projected out and there are C modes.
    """
    n = np.array(model.counts, dtype=np.float64)
    Z = np.diag(np.sqrt(n))
    if model.use_bias:
        Z = Z @ (np.eye(len(n)) - np.outer(np.sqrt(n), np.sqrt(n)) / n.sum())
    U, s, Vt = np.linalg.svd(Z)
    k = len(n) - 1 if model.use_bias else len(n)
    return U[:, :k], s[:k], Vt[:k].T


def growing_part(problem: Problem, point: Point) -> Float[Array, "p k"]:
    """`V0^T = (W^T U + B V) / 2`: the modes that grow, one column a mode; `P (W + B^T) / 2` for balanced classes."""
    U, _, V = target_modes(problem.model)
    dtype = point.X.dtype
    B, _ = problem.split(point.X)
    return (point.W.T @ jnp.asarray(U, dtype) + B @ jnp.asarray(V, dtype)) / 2


def growth_values(problem: Problem, point: Point) -> Float[Array, " modes"]:
    """The min(C-1, p) largest singular values of `growing_part`, largest first; zero where the start lacks a mode.

    What is below the rounding of W and B is lacking: where the two cancel, only rounding is left of their sum.
    """
    part = growing_part(problem, point)
    scale = (jnp.linalg.norm(point.W) + jnp.linalg.norm(problem.split(point.X)[0])) / 2
    values, scale = jnp.linalg.svd(jax.lax.stop_gradient(part), compute_uv=False), jax.lax.stop_gradient(scale)
    tolerance = 16 * jnp.finfo(values.dtype).eps * max(problem.model.num_classes, point.X.shape[0])
    return jnp.where(values > tolerance * scale, values, 0.0)


def plateau_time(problem: Problem, point: Point, decay: float = DECAY) -> Float[Array, ""]:
    """The time at which every mode that the start has is at the plateau.

    `T = (ln(sqrt s / sigma_min) + 20) / s` with the slowest growth rate s (`sqrt N`, less the decay) and the smallest
    growing singular value of the start that is not zero; with weight decay, 20 over the smallest decay is added;
    `decay` replaces the 20. Derived here.
    """
    _, s, _ = target_modes(problem.model)
    lam_W, lam_H, lam_b = jax.lax.stop_gradient(problem.decays(point.X.dtype))
    values = growth_values(problem, point)
    smallest = jnp.min(jnp.where(values > 0, values, jnp.inf))
    rate = jnp.sqrt(((lam_W - lam_H) / 2) ** 2 + s[-1] ** 2) - (lam_W + lam_H) / 2
    slowest = jnp.min(jnp.stack([jnp.where(lam > 0, lam, jnp.inf) for lam in (lam_W, lam_H, lam_b)]))
    growth = jnp.where(jnp.isfinite(smallest), jnp.log(math.sqrt(s[0]) / smallest), 0.0)
    rate = jnp.where(jnp.abs(rate) > 1e-3 * s[-1], jnp.abs(rate), 1e-3 * s[-1])
    return (jnp.maximum(growth, 0.0) + decay) / rate + decay / slowest


def verdict(
    problem: Problem,
    start: Point,
    end: Point,
    t_end: Float[Array, ""],
    steps_ran_out: Bool[Array, ""],
    limit: Verdict,
) -> Int[Array, ""]:
    """The verdict's code, int8.

    At a critical point a mode can still grow if and only if the residual G has a singular value above
    `sqrt(lam_W lam_H)` and the features have room for it, that is a direction that no escaped mode uses: those are
    counted in the spectrum of `W B`. So the modes that have not escaped are counted in the spectrum of `G G^T`, up to
    the room. They make a saddle if the start lacked as many modes, and otherwise show a run that ended early (derived
    here).
    """
    start, end = jax.lax.stop_gradient((start, end))
    _, s, _ = target_modes(problem.model)
    lam_W, lam_H, _ = jax.lax.stop_gradient(problem.decays(end.X.dtype))
    floor = jnp.sqrt(lam_W * lam_H)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in end]))
    end = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), end)
    G = problem.residual(end)
    spectrum = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(G @ G.T)[::-1], 0.0))
    excess = spectrum - floor
    gap = jnp.maximum(s[-1] - floor, 1e-2 * s[-1])
    escaped = jnp.sum(jnp.linalg.svd(end.W @ problem.split(end.X)[0], compute_uv=False) > 0.5 * gap)
    room = problem.model.num_features - escaped
    # The largest belong to the modes that have not escaped. Without room for them it does not matter how large.
    rest = jnp.arange(len(spectrum)) < len(spectrum) - escaped
    waiting = jnp.minimum(jnp.sum(rest & (excess > 0.5 * gap)), room)
    settled = jnp.all((excess < 0.05 * gap) | (rest & ((excess > 0.95 * gap) | (room == 0))))
    settled &= ~steps_ran_out & (t_end >= plateau_time(problem, start, ENOUGH_DECAY))
    lacking = jnp.sum(growth_values(problem, start) == 0)

    early = jnp.where(steps_ran_out, jnp.int8(Verdict.step_limit), jnp.int8(limit))
    code = jnp.where(
        settled & (waiting == 0),
        jnp.int8(Verdict.plateau),
        jnp.where(settled & (waiting == lacking), jnp.int8(Verdict.saddle), early),
    )
    return jnp.where(finite, code, jnp.int8(Verdict.non_finite))

"""How a small start leaves the origin, in closed form: which parts grow, decay or stay.

Classes are balanced and there is no weight decay. With `s = sqrt N`, `B = s Hbar` (class means) and `P = I - 11^T/C`, a
start splits into

    W = A + 1 u^T / sqrt C,    B = D^T + v 1^T / sqrt C,    H - Hbar (x) 1^T = L Q^T,
    V = (A + D)/2,             Y = (A - D)/2,

with `1^T A = 1^T D = 0`. Only V grows; its singular vectors `V0 = sum sigma_i o_i r_i^T` are the modes. All other parts
stay of the start's size eps and change until the modes have escaped (derived here, relative error O(eps^2 ln 1/eps)):

- mode:       `sigma_i^2 = s x_i`, `x_i = x0_i / (e^{-2st} (1 + k_i t) + x0_i (1 - e^{-2st}))`. Without k_i this is the
              flow on S, `mu' = 2 mu (s - mu)`; `k_i = |L^T r_i|^2 + (u r_i)^2 + (v r_i)^2 / (C s + 1)` is how much the
              rest of the start slows the growth.
- L and u:    the part along r_i is divided by `sqrt(1 + x0_i (e^{2st} - 1))`; the part orthogonal to all modes stays.
- v:          the part along r_i obeys Gauss's equation in x and is multiplied by `F(x_i)/F(x0_i)`,
              `F(x) = 2F1(1/2, -1/2; (1 + C s)/2; x)`, `kappa = F(1)`; the part orthogonal to all modes stays.
- b:          `P b = (q - A v) / (s sqrt C)`, where q lags behind v by `-2 (1 - x) F'(x)`;
              `mean b = 1/C + (beta0 - 1/C) e^{-CNt}` minus `u v / (s C)`. While it relaxes, u and v turn
              hyperbolically by `(1 - C beta0) / (C s)`.
- Y:          decays as `e^{-st}` until the conserved `W^T W - B B^T - L L^T` holds it at O(eps^2).

Without a bias, `P = I`, there are C modes, and u, v and b do not exist.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import is_traced, shown
from ..._errors import UsageError
from ...endings.modes import Growth
from ...endings.plateau import plateau_time
from ...model.batch import floating, is_small
from ...model.columns import Columns, within_class_basis
from ...model.coordinates import to_class_means
from ...model.problem import Point, problem_of
from ...model.requirements import check_one, check_state, require
from ...model.state import State
from ...model.ufm import UFM
from ...programs import Program
from ..bias import _elapsed, checked_times

SMALL = 1 / 32
"""A start is small if `(||H0||^2 + ||W0||^2)/(2 sqrt N)` is at most this."""

FAINT = 100.0
"""The rest of the start seeds growing modes, at order eps^3. For a mode fainter than the start by this factor, that
seed matters as much as the other errors (measured)."""

LATE = 30.0
"""The decay exponent after which every metric, including NC1, is at its plateau. Predictions always hold until then."""

DRIFT = 0.3
"""The drift of u and L, to first order in `t eps^2`, is used up to this value, where its relative error is a tenth."""


class Modes(NamedTuple):
    """The progress of each mode, one number per mode.

    `x` is its fraction of its limit. `fade` is the remaining fraction of L and u along it, `kept` that of v, and
    `drive` is q over `sigma v`. `shrink` is `sigma(0) / sigma(t)`. `fade_lag` and `kept_lag` are `(1 - fade) / sigma`
    and `(1 - kept) / sigma`, written so that a mode that the start lacks does not give 0/0.
    """

    x: Float[Array, " k"]
    sigma: Float[Array, " k"]
    shrink: Float[Array, " k"]
    fade: Float[Array, " k"]
    fade_lag: Float[Array, " k"]
    kept: Float[Array, " k"]
    kept_lag: Float[Array, " k"]
    drive: Float[Array, " k"]


class Parts(NamedTuple):
    """A predicted point and its parts: `A = V + Y`, `D = V - Y`, where `Y_off` is the part of Y off the modes."""

    sigma: Float[Array, " k"]
    Y: Float[Array, "k k"]
    Y_off: Float[Array, "k p"]
    u: Float[Array, " p"]
    v: Float[Array, " p"]
    L: Float[Array, "p r"]
    point: Point


class Escape(eqx.Module):
    """The decomposition of a small start: `sigma`, `left` (o_i as columns) and `right` (r_i as rows) are its modes."""

    model: UFM
    columns: Columns | None
    basis: Float[Array, "C K"]
    ones: Float[Array, " C"]
    sigma: Float[Array, " k"]
    left: Float[Array, "K k"]
    right: Float[Array, "k p"]
    A: Float[Array, "K p"]
    D: Float[Array, "K p"]
    u: Float[Array, " p"]
    v: Float[Array, " p"]
    L: Float[Array, "p r"]
    b: Float[Array, " C"]

    @classmethod
    def of(cls, model: UFM, start: State) -> "Escape":
        """The decomposition of a start, which is first converted to class-mean columns."""
        start = to_class_means(model, start)
        C, dtype = model.num_classes, start.X.dtype
        basis = within_class_basis((C,), dtype) if model.use_bias else jnp.eye(C, dtype=dtype)
        ones = jnp.full(C, C**-0.5, dtype) if model.use_bias else jnp.zeros(C, dtype)
        A, D = basis.T @ start.W, (start.B @ basis).T
        left, sigma, right = jnp.linalg.svd((A + D) / 2, full_matrices=False)
        sigma = jnp.where(Growth.of(*problem_of(model, start)).values > 0, sigma, 0.0)
        u, v = start.W.T @ ones, start.B @ ones
        return cls(model, start.columns, basis, ones, sigma, left, right, A, D, u, v, start.L, start.b)

    @property
    def Y(self) -> Float[Array, "K p"]:
        """`(A - D)/2` at the start."""
        return (self.A - self.D) / 2

    @property
    def s(self) -> float:
        """`sqrt N`, the rate at which the modes grow."""
        return math.sqrt(self.model.counts[0])

    @property
    def Cs(self) -> float:
        """`C sqrt N`, the ratio of the bias's rate to that of the modes."""
        return self.model.num_classes * self.s

    @property
    def beta(self) -> Float[Array, ""]:
        """The mean of the bias at the start; without a bias 1/C, its resting value."""
        return jnp.mean(self.b) if self.model.use_bias else jnp.asarray(1 / self.model.num_classes, self.b.dtype)

    def mean_modes(self, fast) -> tuple[Float[Array, " p"], Float[Array, " p"]]:
        """`(u, v)` before the escape, when `e^{-CNt}` has fallen to `fast`: they turn while the bias relaxes."""
        angle = (1 - self.model.num_classes * self.beta) / self.Cs * (1 - fast)
        cosh, sinh = jnp.cosh(angle), jnp.sinh(angle)
        return self.u * cosh + self.v * sinh, self.v * cosh + self.u * sinh

    def modes(self, t: Float[Array, ""], corrected: bool = True) -> Modes:
        """The modes at time t; `corrected` includes how the rest of the start slows their growth."""
        s, dtype = self.s, self.sigma.dtype
        u, v = (self.right @ mode for mode in self.mean_modes(0.0))
        cost = jnp.sum((self.right @ self.L) ** 2, axis=1) + u**2 + v**2 / (self.Cs + 1)
        slowed = 1 + cost * t if corrected else jnp.ones_like(cost)
        # Kept above zero, so that a mode that the start lacks is 0 divided by a positive number at all times.
        young = jnp.maximum(jnp.exp(-2 * s * t), jnp.finfo(dtype).tiny)
        old, x0 = -jnp.expm1(-2 * s * t), self.sigma**2 / s
        total = young * slowed + x0 * old
        x, rest, fade = x0 / total, young * (slowed - x0) / total, jnp.sqrt(young * slowed / total)
        shrink, root, root0 = jnp.sqrt(total), jnp.sqrt(x / s), jnp.sqrt(x0 / s)
        lag, drive = mean_mode_average(self.Cs, x, rest)
        lag0, _ = mean_mode_average(self.Cs, x0, 1 - x0)
        F, F0 = 1 - x * lag, 1 - x0 * lag0
        kept_lag = (root * lag - root0 * shrink * lag0) / F0
        return Modes(x, s * root, shrink, fade, root * old / (1 + fade), F / F0, kept_lag, rest * drive)

    def at(self, t: Float[Array, ""], drift: bool = True) -> Parts:
        """The parts of the start at time t, and the point they form.

        With `drift`, u and L keep moving at the rate eps^2 once they are orthogonal to all modes: `u' = -L L^T u`,
        `L' = -u u^T L`, to first order and bounded.
        """
        s, N, C = self.s, self.model.counts[0], self.model.num_classes
        fast, slow = jnp.exp(-C * N * t), jnp.exp(-s * t)
        modes, (u, v) = self.modes(t), self.mean_modes(fast)
        sigma, right = modes.sigma, self.right

        # u and L fade alike, but enter the conserved quantity with opposite signs. The losses are divided by sigma.
        resting, signs = jnp.column_stack([u, self.L]), jnp.ones(1 + self.L.shape[1], u.dtype).at[0].set(-1)
        inside, v_inside = right @ resting, right @ v
        outside, v_off = resting - right.T @ inside, v - right.T @ v_inside
        faded, v_kept = modes.fade[:, None] * inside, modes.kept * v_inside
        lost, v_lost = modes.fade_lag[:, None] * inside * signs, modes.kept_lag * v_inside

        # W^T W - B B^T - L L^T = 2 (V^T Y + Y^T V) + u u^T - v v^T - L L^T determines Y except for one free part.
        Y0, Y0_off = self._in_modes(self.Y)
        change = sigma[:, None] * (lost @ faded.T + jnp.outer(v_lost, v_kept))
        change += (inside @ lost.T + jnp.outer(v_inside, v_lost)) * sigma
        held = self.sigma[:, None] * Y0 + (self.sigma[:, None] * Y0).T - change / 2
        free = (Y0 * self.sigma - (Y0 * self.sigma).T) * jnp.outer(modes.fade, modes.fade)
        squares = sigma[:, None] ** 2 + sigma**2
        Y = (sigma[:, None] * held + sigma * free) / jnp.where(squares > 0, squares, 1.0)
        Y = jnp.where(squares > 0, Y, slow * Y0)
        Y_off = modes.shrink[:, None] * Y0_off - (lost @ outside.T + jnp.outer(v_lost, v_off)) / 2
        Y_dying = slow * ((self.Y - self.left @ (self.left.T @ self.Y)) @ right.T * modes.fade) @ right

        # The modes turn by Y_off on the way, in opposite directions for A and D: L ends orthogonal to A, and u to D.
        faded -= modes.fade_lag[:, None] * (Y_off @ outside) * signs
        if drift:
            outside = _drifted(outside, t)
        u, L = jnp.split(outside + right.T @ faded, [1], axis=1)
        u, v = u[:, 0], v_off + right.T @ v_kept

        V, Y_all = (self.left * sigma) @ right, self.left @ (Y @ right + Y_off) + Y_dying
        A, D = V + Y_all, V - Y_all
        W, B = self.basis @ A + jnp.outer(self.ones, u), D.T @ self.basis.T + jnp.outer(v, self.ones)
        b = self._bias(modes, fast, slow, A, u, v) if self.model.use_bias else jnp.zeros_like(self.b)
        return Parts(sigma, Y, Y_off, u, v, L, Point(W, jnp.concatenate([B, L], axis=1), b))

    def _in_modes(self, Y: Float[Array, "K p"]) -> tuple[Float[Array, "k k"], Float[Array, "k p"]]:
        """`(o_i Y r_j)`, and the rows `o_i Y` minus their parts along the r_j."""
        rows = self.left.T @ Y
        inside = rows @ self.right.T
        return inside, rows - inside @ self.right

    def _bias(self, modes: Modes, fast, slow, A, u, v) -> Float[Array, " C"]:
        """b from the residual along the mean, `P G 1 = q` and `1^T G 1 / C`, which both vanish after the escape."""
        C, s, first = self.model.num_classes, self.s, self.modes(jnp.zeros_like(fast))

        def lagging(modes: Modes, v, size):
            return self.left @ (modes.sigma * modes.drive * (self.right @ v)) - size * (self.Y @ v) / (self.Cs - 1)

        q0 = self.A @ self.v + s * C**0.5 * self.basis.T @ self.b
        q = lagging(modes, self.mean_modes(fast)[1], slow) + (q0 - lagging(first, self.v, 1.0)) * fast
        gamma = (s * (C * self.beta - 1) + self.u @ self.v) * fast
        return self.basis @ (q - A @ v) / (s * C**0.5) + 1 / C + (gamma - u @ v) / self.Cs

    def state(self, point: Point) -> State:
        """The point as a state in class-mean columns."""
        return State(X=point.X, W=point.W, b=point.b, columns=self.columns)


def _drifted(outside: Float[Array, "p n"], t: Float[Array, ""]) -> Float[Array, "p n"]:
    """`[u, L]` after a time t of `u' = -L L^T u`, `L' = -u u^T L`, to first order in t, and bounded."""
    u, L = outside[:, 0], outside[:, 1:]
    g = L.T @ u
    Lg, gg = L @ g, g @ g
    rate = (Lg @ Lg) / jnp.where(gg > 0, gg, 1.0)
    return jnp.column_stack([u - _elapsed(rate, t) * Lg, L - _elapsed(u @ u, t) * jnp.outer(u, g)])


def mean_mode_average(
    Cs: float, x: Float[Array, " k"], rest: Float[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """`((1 - F(x)) / x, -2 F'(x))` for `F(x) = 2F1(1/2, -1/2; (1 + C s)/2; x)`, from x and `rest = 1 - x`.

    F is an average, `F(x) = <sqrt(1 - x tanh^2 z)>` with the weight `sech(z)^{C s}` on the real line (Euler's integral
    with `t = tanh^2 z`), where the trapezoidal rule converges exponentially at every x in [0, 1] (derived here).
    """
    t, one_minus_t, weights = (jnp.asarray(array, x.dtype) for array in mean_mode_nodes(Cs))
    # For x above 1 (a mode larger than its limit) the value at 1 is used: no small start has such a mode.
    root = jnp.sqrt(jnp.maximum(rest[:, None] + x[:, None] * one_minus_t, one_minus_t))
    return (t / (1 + root)) @ weights, (t / root) @ weights


@functools.cache
def mean_mode_nodes(Cs: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(tanh^2 z, sech^2 z, weights)` of the trapezoidal rule, to double precision for `C s >= 2`.

    The step resolves both the strip |Im z| < pi/2 and the width 1/sqrt(C s). The range ends where the largest
    integrand, `sech^{C s - 1}`, has fallen to e^-40.
    """
    step = min(0.19, 0.5 / math.sqrt(Cs))
    z = step * np.arange(math.ceil(math.acosh(math.exp(40 / (Cs - 1))) / step) + 1)
    weights = np.cosh(z) ** -Cs
    weights[0] /= 2
    return np.tanh(z) ** 2, np.cosh(z) ** -2.0, weights / np.sum(weights)


@Program
def _reach(model: UFM, start: State) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The smallness of a start (0 on S), the last time at which its drift is known, and the unevenness of its bias."""
    escape, norm = Escape.of(model, start), jnp.linalg.norm
    turned = [
        norm(jnp.stack(mode), axis=1).max() for mode in zip((escape.u, escape.v), escape.mean_modes(0.0), strict=True)
    ]
    others = norm(jnp.stack([norm(escape.Y), norm(escape.L), *turned]))
    size = norm(jnp.stack([norm(escape.A), norm(escape.D), norm(escape.L), *turned])) / 2**0.5
    smallest = jnp.min(jnp.where(escape.sigma > 0, escape.sigma, jnp.inf))
    smallness = size**2 / escape.s * jnp.maximum(1.0, size / smallest / FAINT)
    rounding = 1e3 * jnp.finfo(size.dtype).eps
    resting = jnp.column_stack([escape.mean_modes(0.0)[0], escape.L])
    u, L = jnp.split(resting - escape.right.T @ (escape.right @ resting), [1], axis=1)
    rate = jnp.maximum(jnp.sum(u**2), norm(L @ (L.T @ u)) / jnp.maximum(norm(u), jnp.finfo(size.dtype).tiny))
    latest = jnp.maximum(plateau_time(*problem_of(model, start), LATE), DRIFT / rate)
    return jnp.where(others <= rounding * size, 0.0, smallness), latest, norm(start.b - jnp.mean(start.b)) / size**2


def require_plain(model: UFM) -> None:
    """Raise `UsageError` unless the classes are balanced, the loss is the squared error and nothing decays."""
    require(
        model,
        balanced="the theory of small starts knows the limits of W W^T and b alone there: use "
        "fc.theory.limits.imbalanced_limit, or fc.simulate",
        no_decay="with decay the theory of small starts knows the limits of W W^T and b alone: use "
        "fc.theory.limits.decay_limit, or fc.simulate",
    )


def check_small_start(model: UFM, start: State, ts: Any = None) -> Any:
    """The times as an array, after making sure that the theory of small starts covers model, start and times.

    The theory needs equal counts, the squared error, no decay, `b0 = beta0 1` up to the order of the start squared, a
    start that is small or on S, and times that end while the drift of u and L is of first order. Inside jit and vmap
    the size of a start is not known, and the start passes.

    Raises:
        UsageError: if the theory does not apply.
    """
    require_plain(model)
    check_state(model, start)
    check_one(start)
    times = None if ts is None else checked_times(ts, start.X.dtype)
    if any(is_traced(x) for x in jax.tree.leaves((model, start))):
        return times
    if not all(np.all(np.isfinite(np.asarray(x))) for x in (start.W, start.X, start.b)):
        raise UsageError("start holds NaN or infinity, so nothing can be predicted: give finite numbers.")
    reach = _reach(*floating(model, start), quick=is_small(start))
    if any(is_traced(x) for x in reach):  # inside jit, even for a known start
        return times
    smallness, latest, uneven = (float(x) for x in reach)
    if model.use_bias and uneven > 2:
        raise UsageError(
            f"start.b is {start.b}, which differs between the classes by more than the start squared: the theory of "
            "small starts needs b0 = beta0 1, as fc.initial gives it; use fc.simulate."
        )
    if not smallness <= SMALL:
        raise UsageError(
            f"start is not small: (||H0||^2 + ||W0||^2)/(2 sqrt N), with what a faint mode or the bias adds, is "
            f"{smallness:.3g}, and predictions hold up to {SMALL:g}: use fc.simulate, or a start of a smaller eps."
        )
    if times is not None and not is_traced(times) and float(jnp.max(times)) > latest:
        raise UsageError(
            f"ts ends at {float(jnp.max(times)):.6g}, but the slow motion after the escape is predicted up to "
            f"{latest:.6g}: end earlier, or use fc.simulate."
        )
    return times


def check_small_eps(model: UFM, eps: Any) -> None:
    """Raise `UsageError` for a norm of H0 and W0, or several, at which starts are not small."""
    largest = math.sqrt(SMALL * math.sqrt(model.counts[0]))
    if not is_traced(eps) and np.any(np.asarray(eps) > largest):
        raise UsageError(
            f"eps is {shown(eps)}, and starts are small up to {largest:.3g} = sqrt({SMALL:g} sqrt N): lower it, or use "
            "fc.simulate."
        )

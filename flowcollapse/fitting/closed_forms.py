"""The curves that are fitted: risk and collapse metrics of the flow on S, as functions of a few numbers.

On S, with the decay lam on W, H and b, `r = s - lam` and `s = sqrt N`, the eigenvalues of `W W^T` and the mean of the
bias follow (see `fc.theory.exact`)

    mu_i(t) = r mu_i / (mu_i (1 - e^{-2rt}) + r e^{-2rt}),    beta(t) = N/(CN + lam) (1 - e^{-(CN + lam) t}),

and every curve below depends on these alone. The unknowns are numbers on a line, the coordinates of a fit: ln scale,
ln eps, the decay over `sqrt N`, ln level, and the shapes of the start's modes, `mu_i = eps^2 e^{w_i} / sum_j e^{w_j}`,
where w is a combination of orthogonal polynomials. The first shape is the square of the first coefficient, the variance
of `ln mu_i`: curves are even in the coefficient itself, and would have no slope at 0. With all polynomials, any modes
can be described. A small start off S follows the curve of its growing part
`V0 = P (W0 + B0^T)/2`, up to the order of the start squared (see `fc.theory.curves`).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._linalg.algebra import root
from ..programs import Program

NAMES = ("scale", "eps", "decay", "level")
"""The fitted numbers, in the order of their coordinates; after them come the coordinates of the modes' shares."""

FITTED = ("risk", "snc1", "snc3")
"""The metrics that can be fitted: their curves are those of the growing part from the start on."""

PREDICTED = (*FITTED, "nc2_etf_h", "nc2_etf_w")
"""All metrics with a curve. Those of NC2 hold from the escape on: before it, the rest of the start decides them."""

MOST_SHAPES = 4
"""The most numbers that describe how the modes share the start."""


class Setting(NamedTuple):
    """The known parts of the model: `factor` is that of the summed risk in the measured one.

    `samples` is N, the mean over the classes if their counts differ a little. `num_modes` of the modes can grow, and
    `missing` of them cannot, for lack of features; `few_features` says that there are less than two for each mode.
    `penalised` says whether the risk includes the decay.
    """

    num_classes: int
    samples: float
    num_modes: int
    missing: int
    few_features: bool
    factor: float
    use_bias: bool
    penalised: bool

    @property
    def s(self) -> float:
        """`sqrt N`, the limit of the eigenvalues of `W W^T` without decay, and half their rate."""
        return math.sqrt(self.samples)

    @property
    def plateau(self) -> float:
        """The measured risk on the plateau before the escape, when the bias has relaxed and there is no decay."""
        return self.factor * self.samples * (self.num_modes + self.missing) / 2

    @property
    def origin(self) -> float:
        """The measured risk at the origin, where a run from a small start begins."""
        return self.plateau + self.factor * self.samples / 2 * self.use_bias

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that have a curve: without a bias there is no SNC3, and NC2 depends on more than eigenvalues."""
        return PREDICTED if self.use_bias else ("risk", "snc1")

    @property
    def num_shapes(self) -> int:
        """How many numbers can describe the shares of the modes."""
        return min(self.num_modes - 1, MOST_SHAPES)


@functools.cache
def shapes_basis(num_modes: int, num_shapes: int) -> Float[np.ndarray, "k j"]:
    """Orthogonal polynomials on `num_modes` equidistant points, without the constant; each has the mean square 1."""
    points = np.linspace(-1.0, 1.0, num_modes) if num_modes > 1 else np.zeros(1)
    powers = np.vander(points, num_shapes + 1, increasing=True)
    return np.linalg.qr(powers)[0][:, 1:] * math.sqrt(num_modes)


def modes_of(setting: Setting, values: Float[Array | np.ndarray, " q"]) -> Float[Array, " k"]:
    """The eigenvalues of `W W^T` at the start."""
    shapes = jnp.asarray(values)[len(NAMES) :]
    shapes = shapes.at[:1].set(jnp.sqrt(shapes[:1]))
    exponents = jnp.asarray(shapes_basis(setting.num_modes, setting.num_shapes)) @ shapes
    return jnp.exp(2 * values[1]) * jax.nn.softmax(exponents)


def curves_of(
    setting: Setting, values: Float[Array, " q"], ts: Float[Array, " time"]
) -> dict[str, Float[Array, " time"]]:
    """Every curve of `setting.names` at the measured times."""
    C, N, s, missing = setting.num_classes, setting.samples, setting.s, setting.missing
    clock, lam, level = jnp.exp(values[0]) * ts, s * values[2], jnp.exp(values[3])
    r, start = s - lam, modes_of(setting, values)
    fallen, young = -jnp.expm1(-2 * r * clock)[:, None], jnp.exp(-2 * r * clock)[:, None]
    mu = r * start / (start * fallen + r * young)
    rate = C * N + lam
    beta = -N / rate * jnp.expm1(-rate * clock) if setting.use_bias else jnp.full_like(clock, 1 / C)
    lost = jnp.sum((mu - s) ** 2, axis=1) + N * missing
    risk = 0.5 * (lost + N * (1 - C * beta) ** 2)
    if setting.penalised:
        risk += lam * (jnp.sum(mu, axis=1) + (0.5 * C * beta**2 if setting.use_bias else 0.0))
    curves = {"risk": setting.factor * level * risk, "snc1": root(lost)}
    if setting.use_bias:
        share = mu / jnp.linalg.norm(mu, axis=1, keepdims=True)
        uneven = root(jnp.sum((share - (C - 1) ** -0.5) ** 2, axis=1) + missing / (C - 1))
        curves |= {"snc3": C**0.5 * jnp.abs(beta - 1 / C), "nc2_etf_h": uneven, "nc2_etf_w": uneven}
    return curves


def rows_of(setting: Setting, names: tuple[str, ...], values: Float[Array, " q"], ts: Float[Array, " time"]):
    """The curves with these names, as rows."""
    curves = curves_of(setting, values, ts)
    return jnp.stack([curves[name] for name in names])


predicted = Program(rows_of)
"""The curves with these names, as rows."""

slopes = Program(jax.jacfwd(rows_of, argnums=2))
"""Their derivatives in the coordinates, along the last axis."""

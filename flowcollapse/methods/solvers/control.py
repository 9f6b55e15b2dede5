"""Step size control that bounds the error of each block of the state separately."""

from collections.abc import Callable

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class BlockControl(dfx.AbstractAdaptiveStepSizeController):
    """Step control with one number per block, `||error|| / (atol + rtol ||now||)`, of which the largest counts.

    The blocks are W, B, L and the bias or mean residual. A norm over a block does not change under rotations of the
    features or the samples, so full, reduced and compressed runs take the same steps. Each block has its own scale, so
    small starts keep their relative accuracy. The controller is a plain integral controller. Derived here.
    `block_norms(y)` returns the norms of the blocks, and `block_scales(norms)` the scale for the error of each block.

    No step is longer than `longest`. At rest the error estimate gives no limit: steps would grow past the stability
    limit, rounding would grow to hundreds of rtol before the estimate sees it, and every second step would be rejected.
    """

    rtol: Float[Array, ""]
    block_atol: Float[Array, " blocks"]
    block_norms: Callable[[PyTree], Float[Array, " blocks"]]
    block_scales: Callable[[Float[Array, " blocks"]], Float[Array, " blocks"]]
    longest: Float[Array, ""] | None = None

    @property
    def atol(self) -> Float[Array, ""]:
        """The absolute tolerance per entry for the root finder of implicit solvers."""
        return jnp.max(self.block_atol)

    @property
    def norm(self) -> Callable[[PyTree], Float[Array, ""]]:
        """The norm for the root finder of implicit solvers."""
        return lambda y: jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(y)]))

    def _integral(self) -> dfx.PIDController:
        return dfx.PIDController(rtol=0.0, atol=1.0, norm=jnp.abs, dtmax=self.longest)

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return self._integral().init(terms, t0, t1, jnp.zeros_like(self.rtol), dt0, args, func, error_order)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        norms, error = jax.lax.stop_gradient((self.block_norms(y1_candidate), self.block_norms(y_error)))
        before = jax.lax.stop_gradient(self.block_norms(y0))
        scales = self.block_atol + self.rtol * self.block_scales(jnp.maximum(before, norms))
        scaled = jnp.max(error / jnp.where(scales > 0, scales, self.rtol))
        scaled = jnp.where(jnp.isfinite(scaled), scaled, jnp.inf)
        zero = jnp.zeros_like(scaled)
        return self._integral().adapt_step_size(t0, t1, zero, zero, args, scaled, error_order, controller_state)

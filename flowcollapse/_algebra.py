"""Norms and products of small matrices, written so that XLA compiles them to vector code on a CPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

WRITTEN_OUT_UP_TO = 256
"""Products of up to so many multiplications are faster as sums than as calls, in blocks of lanes by a factor 1.2 to 3
at 243 of them, and slower from about 500 on."""


def square_norm(A: Float[Array, "m n"]) -> Float[Array, ""]:
    """`||A||_F^2`: the rows are added up side by side first, where one sum over all would wait for each addition."""
    return jnp.sum(jax.lax.optimization_barrier(jnp.sum(A**2, axis=0)))  # else XLA makes one sum of the two


def product(A: Float[Array, "m k"], B: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """`A B`, for a result that is used once: XLA computes a small one anew wherever it is used."""
    if A.shape[0] * A.shape[1] * B.shape[1] > WRITTEN_OUT_UP_TO:
        return A @ B
    return jnp.sum(A[:, :, None] * B[None], axis=1)

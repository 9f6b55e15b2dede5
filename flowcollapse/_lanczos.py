"""The block Lanczos method, with full reorthogonalisation and through exhausted spaces."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Apply = Callable[[Float[Array, " size"]], Float[Array, " size"]]
"""A symmetric matrix A as a map of vectors."""


def krylov(
    apply: Apply, start: Float[Array, "size block"], iterations: int
) -> tuple[Float[Array, "size vectors"], Float[Array, "vectors vectors"]]:
    """An orthonormal basis Q of the block Krylov space of A, and `T = Q^T A Q`, of `iterations` blocks.

    At critical points a few products exhaust the space, and what is left is rounding. Normalised, it may lie in the
    span of Q again and bring eigenvalues that A does not have. So a block is made orthogonal to Q anew after it has
    been normalised, and the method goes on from a new direction; eigenvalues stay in the range of A's.

    Source: Lanczos 1950; blocks: Golub and Underwood 1977; orthogonalisation that is repeated: Giraud et al. 2005.
    """
    (size, block), dtype = start.shape, start.dtype

    def step(i, carry):
        Q, T, vectors = carry
        Q = jax.lax.dynamic_update_slice(Q, vectors, (0, i * block))
        images = jax.vmap(apply, 1, 1)(vectors)
        T = jax.lax.dynamic_update_slice(T, Q.T @ images, (0, i * block))
        for _ in range(3):
            images = jnp.linalg.qr(images - Q @ (Q.T @ images))[0]
        return Q, T, images

    Q, T = jnp.zeros((size, iterations * block), dtype), jnp.zeros((iterations * block,) * 2, dtype)
    Q, T, _ = jax.lax.fori_loop(0, iterations, step, (Q, T, jnp.linalg.qr(start)[0]))
    return Q, jnp.triu(T) + jnp.triu(T, 1).T

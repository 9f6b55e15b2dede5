"""The functions phi_k of exponential integrators, `phi_0 = exp` and `phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z`."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..programs import called

TAYLOR_TERMS = 20


def phi(z: Float[Array, "*shape"], count: int) -> list[Float[Array, "*shape"]]:
    """`phi_0(-z) ... phi_count(-z)` for `z >= 0`, with `phi_k(w) = sum_j w^j / (j + k)!`.

    Below z = 1, the last function comes from its Taylor series and the others from the downward recursion; above z = 1,
    all come from the upward recursion. Each recursion is used where it is stable. The relative accuracy is about 1e-13
    in float64.
    """
    one = jnp.ones_like(z)
    below, small, large = z < one, jax.lax.min(z, one), jax.lax.max(z, one)
    low = [_last_below_one(small, count)]
    for k in reversed(range(count)):
        low.insert(0, 1 / math.factorial(k) - small * low[0])
    decay, inverse = _decay_and_inverse(large)
    high = [decay]
    for k in range(count):
        high.append((1 / math.factorial(k) - high[-1]) * inverse)
    return [jax.lax.select(below, *both) for both in zip(low, high, strict=True)]


# Calls, because all functions use these, and XLA would compute them again for each.


@called
def _last_below_one(z: Float[Array, "*shape"], count: int) -> Float[Array, "*shape"]:
    last = jnp.full_like(z, 1 / math.factorial(TAYLOR_TERMS + count))
    for k in reversed(range(count, count + TAYLOR_TERMS)):
        last = 1 / math.factorial(k) - z * last
    return last


@called
def _decay_and_inverse(z: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    return jnp.exp(-z), 1 / z

"""The Hessian of the risk in plain NumPy, independent of the package, in the order (W, H, b)."""

import numpy as np
import systems
from jaxtyping import Float

STEP = 1e-30


def operator(point: systems.Arrays, counts, decay=(0.0, 0.0, 0.0), use_bias: bool = True):
    """A function that multiplies the Hessian with a flat direction, exact to rounding.

    The field is a polynomial, so its derivative along v is the imaginary part of the field at `z + i h v`, divided by h
    (complex step, without cancellation). The Hessian is minus this derivative.
    """
    H, W, b = point
    cuts = [W.size, W.size + H.size]

    def apply(v):
        W_part, H_part, b_part = np.split(np.ravel(v), cuts)
        moved = systems.Arrays(
            H + 1j * STEP * H_part.reshape(H.shape),
            W + 1j * STEP * W_part.reshape(W.shape),
            b + (1j * STEP * b_part if use_bias else 0.0),
        )
        H_image, W_image, b_image = systems.velocity(moved, counts, decay, use_bias)
        return -np.imag(flat(systems.Arrays(H_image, W_image, b_image), use_bias)) / STEP

    return apply


def flat(point: systems.Arrays, use_bias: bool = True) -> np.ndarray:
    """The parameters of a point as a flat vector, without b if the model has no bias."""
    H, W, b = point
    return np.concatenate([W.ravel(), H.ravel(), *([b] if use_bias else [])])


def matrix(point: systems.Arrays, counts, decay=(0.0, 0.0, 0.0), use_bias: bool = True) -> Float[np.ndarray, "n n"]:
    """The whole Hessian, column by column."""
    apply = operator(point, counts, decay, use_bias)
    return np.stack([apply(v) for v in np.eye(flat(point, use_bias).size)], axis=1)

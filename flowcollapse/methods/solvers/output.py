"""Output inside a step, from the stages of the step; and that of the exponential DOP853."""

import abc
from collections.abc import Iterable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._linalg.algebra import beside, total
from ...programs import LANES_LAST_UP_TO, called, lanes_last
from .weights import OUTPUT_ROWS, decay_and_moments, nested, output_coefficients

USED = tuple(int(j) for j in np.flatnonzero(OUTPUT_ROWS.any(axis=0)))
"""The stages that the output uses."""


class StepOutput(dfx.AbstractLocalInterpolation):
    """Output inside a step as a function of the fraction of the step that has passed."""

    @abc.abstractmethod
    def inside(self, x: Array, h: Array) -> PyTree:
        """The state at the fraction x of a step of size h."""

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            return jax.tree.map(lambda end, start: end - start, self.evaluate(t1), self.evaluate(t0))
        h = jnp.asarray(self.t1 - self.t0)
        return self.inside(jnp.asarray((t0 - self.t0) / jnp.where(h > 0, h, 1.0)), h)


class DenseOutput(StepOutput):
    """Output inside a step. The slow part uses DOP853's polynomial of order 7. The fast part uses the exact integral of
    a polynomial of degree 5 through the forcing, and Lawson's integral of the rest of the forcing. Without a fast part,
    z is None.

    `k` and `g` are the slopes of the slow part and the forcing of the fast part at all stages.
    """

    t0: Array
    t1: Array
    y0: PyTree
    k: PyTree
    g: Any = ()
    z: Array | None = None

    def inside(self, x, h):
        return lanes_last(_inside, up_to=STAGES_UP_TO)(x, h, self.z, self.y0, self.k, self.g)


STAGES_UP_TO = 10 * LANES_LAST_UP_TO
"""The most numbers per lane in the stages and the state of a step that are read with the lanes last. There are 17 of
these, and a step takes its lanes last if two of them have up to `LANES_LAST_UP_TO`."""


@called
def _output_weights(x: Float[Array, "*lanes"]) -> Float[Array, "stage *lanes"]:
    """The weight of each stage, over the step size, at the fraction x of a step."""
    return nested(x, beside(OUTPUT_ROWS, x))


def moved(weights: Float[Array, "stage *lanes"], used: Iterable[int], y0: PyTree, k: PyTree) -> PyTree:
    """The state `y0 + sum_j w_j k_j`, over the stages that are used."""

    def of_leaf(y, ks):
        # Without lanes, one product is a shorter program than a sum.
        return y + (total([weights[j] * ks[j] for j in used]) if weights.ndim > 1 else jnp.tensordot(weights, ks, 1))

    return jax.tree.map(of_leaf, y0, k)


def _inside(x, h, z, y0: PyTree, k: PyTree, g: Any) -> PyTree:
    weights = h * _output_weights(x)
    if z is None:
        return moved(weights, USED, y0, k)
    slow0, fast0 = y0
    return moved(weights, USED, slow0, k), _fast_inside(x, h, z, fast0, g)


def _fast_inside(x, h, z, fast0: Array, g: Array) -> Array:
    lawson, polynomial = output_coefficients(z, g)
    decay, moments = decay_and_moments(z, x)
    driven = total([moment * coefficient for moment, coefficient in zip(moments, polynomial, strict=True)])
    return decay * (fast0 + h * nested(x, lawson)) + h * driven

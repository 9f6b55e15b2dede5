"""Derivatives of losses of the softmax where logits tie: at the origin, and on the boundary between two classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

EPS = float(np.finfo(np.float64).eps)
TIES = {"origin": np.zeros((3, 3)), "two classes": np.array([[1.0, 1.0, -2.0], [1.0, 1.0, 0.5], [0.0, 0.0, 0.5]])}


@pytest.mark.parametrize("place", TIES)
@pytest.mark.parametrize("text", ["cross-entropy", "label-smoothing:0.1", "focal:2", "focal:0.5"])
def test_derivatives_at_ties_are_the_limits_from_nearby(text, place):
    """All derivatives are continuous, so at a distance of 1e-7 they differ by about as much."""
    loss = fc.UFM(num_classes=3, samples_per_class=1, num_features=2, loss=text).loss
    logits, targets, ones = TIES[place], jnp.eye(3), jnp.ones(3)
    direction, step = np.random.default_rng(0).normal(size=(2, 3, 3))

    @systems.compiled
    def derivatives(logits):
        """Of the value, its logarithm, and the value again in closed form: the first and the second along a line."""
        ways = jax.grad(loss.value), jax.grad(loss.log_value), loss.gradient
        return [jax.jvp(lambda z, way=way: way(z, targets, ones), (logits,), (direction,)) for way in ways]

    at, nearby = derivatives(logits), derivatives(logits + 1e-7 * step)
    np.testing.assert_allclose(at, nearby, rtol=0, atol=1e-5)
    np.testing.assert_allclose(at[0][0], at[2][0], rtol=0, atol=64 * EPS)

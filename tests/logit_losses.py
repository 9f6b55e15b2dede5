"""The risk of every loss in plain jax.numpy, as a function of one flat vector, and its minimisation by Newton's method.

Independent of the package: samples one by one, `log_softmax` for the softmax, the derivatives by JAX.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import systems

import flowcollapse as fc


def of_one(model: fc.UFM) -> Callable:
    """The loss of one sample as a function of `(z, y)`, from the text of the model's loss."""
    name, _, numbers = model.loss.text.partition(":")
    number = float(numbers.partition("=")[2] or 0.0)
    C = model.num_classes
    return {
        "squared": lambda z, y: 0.5 * jnp.sum((z - y) ** 2),
        "cross-entropy": lambda z, y: -((1 - number) * y + number / C) @ jax.nn.log_softmax(z),
        "focal": lambda z, y: -((1 - y @ jax.nn.softmax(z)) ** number) * (y @ jax.nn.log_softmax(z)),
    }[name]


def flat(state: fc.State, use_bias: bool = True) -> np.ndarray:
    """`(W, H, b)` as one vector, without b if there is no bias."""
    H, W, b = systems.arrays(state)
    return np.concatenate([W.ravel(), H.ravel(), *[b] * use_bias])


def risk_of(model: fc.UFM) -> Callable:
    """The risk as a function of `flat`."""
    C, p, M = model.num_classes, model.num_features, model.num_samples
    loss, labels, lams = of_one(model), jnp.asarray(systems.one_hot(model.counts)), [float(x) for x in model.decays]

    def risk(x):
        W, H = x[: C * p].reshape(C, p), x[C * p : C * p + p * M].reshape(p, M)
        b = x[C * p + p * M :] if model.use_bias else jnp.zeros(C)
        losses = jax.vmap(loss, 1)(W @ H + b[:, None], labels)
        total = jnp.mean(losses) if model.reduction == "mean" else jnp.sum(losses)
        return total + (lams[0] * jnp.sum(W**2) + lams[1] * jnp.sum(H**2) + lams[2] * jnp.sum(b**2)) / 2

    return risk


def size(model: fc.UFM) -> int:
    """The length of `flat`."""
    C, p = model.num_classes, model.num_features
    return C * p + p * model.num_samples + C * model.use_bias


def descend(model: fc.UFM, seeds: int, steps: int = 120) -> np.ndarray:
    """The risks that Newton's method with `|H|^-1` and backtracking reaches from random starts."""
    risk = risk_of(model)
    gradient, hessian = jax.grad(risk), jax.hessian(risk)
    lengths = 0.5 ** jnp.arange(12)

    def step(x, _):
        values, vectors = jnp.linalg.eigh(hessian(x))
        damped = jnp.maximum(jnp.abs(values), 1e-7 * jnp.max(jnp.abs(values)))
        along = vectors @ ((vectors.T @ gradient(x)) / damped)
        choices = jnp.concatenate([x[None], x - lengths[:, None] * along])
        return choices[jnp.nanargmin(jax.vmap(risk)(choices))], None

    @systems.compiled
    def run(x):
        return risk(jax.lax.scan(step, x, length=steps)[0])

    starts = np.random.default_rng(7).standard_normal((seeds, size(model)))
    return np.array([run(jnp.asarray(x)) for x in starts])

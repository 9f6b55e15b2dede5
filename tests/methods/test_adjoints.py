"""Derivatives of a run in forward mode and of second order, and through the implicit steps of the approach."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

N, T1, RTOL = 3, 1.5, 1e-10
SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": N, "num_features": 4}


def risk_at_the_end(method):
    """The risk of the run from a scaled point of S, as a function of the scale; its closed form is in `exact`."""

    unscaled = subspace_start()

    def risk(scale):
        start = jax.tree.map(lambda x: scale * x, unscaled)
        return fc.risk(fc.UFM(**SIZES), fc.simulate(fc.UFM(**SIZES), start, method, 1, metrics=()).final)

    return risk


def subspace_start() -> fc.State:
    return fc.initial.on_subspace(fc.UFM(**SIZES), eps=0.3, key=jax.random.key(5))


def exact(scale):
    """On S: `R = 1/2 sum_i (mu_i(t) - s)^2 + (N/2) e^{-2 C N t}` with the logistic `mu_i(t)`, in jax."""
    s = N**0.5
    mu = (scale * jnp.asarray(systems.modes(np.asarray(subspace_start().W))[1])) ** 2
    grown = jnp.exp(2 * s * T1)
    return 0.5 * jnp.sum((s * mu * grown / (s + mu * (grown - 1)) - s) ** 2) + N / 2 * jnp.exp(-6 * N * T1)


def test_forward_mode_and_second_derivatives_are_those_of_the_closed_form():
    """`jax.jvp`, and forward mode over itself, with the solver's tolerance."""
    risk = risk_at_the_end(fc.Flow("tsit5", rtol=RTOL, t1=T1, adjoint="forward"))
    value, slope = systems.compiled(lambda x: jax.jvp(risk, (x,), (1.0,)))(1.0)
    np.testing.assert_allclose(value, exact(1.0), rtol=100 * RTOL)
    np.testing.assert_allclose(slope, jax.grad(exact)(1.0), rtol=1e4 * RTOL)
    second = systems.compiled(jax.jacfwd(jax.jacfwd(risk)))(1.0)
    np.testing.assert_allclose(second, jax.grad(jax.grad(exact))(1.0), rtol=1e6 * RTOL)


@pytest.mark.parametrize("adjoint", ["reverse", dfx.RecursiveCheckpointAdjoint(checkpoints=20)])
def test_reverse_mode_by_name_and_by_object(adjoint):
    risk = risk_at_the_end(fc.Flow("tsit5", rtol=RTOL, t1=T1, adjoint=adjoint))
    np.testing.assert_allclose(systems.compiled(jax.grad(risk))(1.0), jax.grad(exact)(1.0), rtol=1e4 * RTOL)


def test_derivatives_through_the_approach():
    """On S the end at rest depends only on the decay, `W W^T = (s - lam) P`, so its derivatives are known."""
    start = subspace_start()

    def size(lam, method):
        model = fc.UFM(**SIZES, weight_decay=(lam, lam, 0.0))
        return jnp.sum(fc.simulate(model, start, method, 1, metrics=()).final.W ** 2)

    def derivative(lam):
        reverse = jax.grad(lambda x: size(x, fc.Flow("tsit5", approach="implicit")))(lam)
        return reverse, jax.jvp(
            lambda x: size(x, fc.Flow("tsit5", approach="implicit", adjoint="forward")), (lam,), (1.0,)
        )

    reverse, (value, forward) = systems.compiled(derivative)(0.05)
    np.testing.assert_allclose((reverse, forward), -2.0, rtol=1e-5)
    np.testing.assert_allclose(value, 2 * (N**0.5 - 0.05), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"until": "forever"}, ["until", "'forever'", "'rest'"]),
        ({"approach": "fast"}, ["approach", "'fast'", "'implicit'"]),
        ({"approach": "implicit", "solver": "kvaerno5"}, ["approach", "kvaerno5", "leave it out"]),
        ({"adjoint": "backwards"}, ["adjoint", "'reverse'", "'forward'", "'backwards'"]),
        ({"adjoint": None}, ["adjoint", "None"]),
        ({"mesh": 4}, ["mesh", "4", "jax.make_mesh"]),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(fc.UsageError) as caught:
        fc.Flow(**options)
    assert all(word in str(caught.value) for word in words)

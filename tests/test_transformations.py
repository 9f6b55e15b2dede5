"""The package inside the user's own programs: `jit`, `vmap`, `scan`, `shard_map`, `jvp`, `jacfwd` and `grad`.

Each quantity is a function of numbers (states, decays, times, steps). Inside every transformation it must have the
values of the plain call, and its derivatives must agree with each other and with central differences.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

import flowcollapse as fc
from flowcollapse._linalg.algebra import lower_factor, positive_qr
from flowcollapse.metrics.evaluation import evaluate
from flowcollapse.metrics.registry import available

SIZES: dict[str, Any] = {"num_classes": 3, "samples_per_class": 2, "num_features": 4}
PLAIN, NO_BIAS = fc.UFM(**SIZES), fc.UFM(**SIZES, use_bias=False)
UNEQUAL = fc.UFM(num_classes=3, samples_per_class=(4, 3, 2), num_features=4, use_bias=False)
LOGITS: dict[str, Any] = SIZES | {"use_bias": False, "loss": "cross-entropy"}
LOGIT = fc.UFM(**LOGITS, weight_decay=0.05)
KEY = jax.random.key(3)
TIMES = jnp.array([0.0, 0.7, 1.9])
STATE, DIRECTION = (systems.random_state(PLAIN, seed) for seed in (0, 1))
LOGIT_STATE = systems.random_state(LOGIT, 2)
SMALL = fc.initial.sphere(PLAIN, 1e-2, key=KEY)
UNEQUAL_START = fc.initial.sphere(UNEQUAL, 1e-2, key=KEY)
ON_S = fc.initial.on_subspace(PLAIN, 0.3, key=KEY)
BALANCED = fc.initial.balanced(NO_BIAS, 0.3, key=KEY)

theory = fc.theory


def on_subspace(scale, ts):
    """A point of S of any size, which is again a point of S."""
    return theory.exact.subspace_flow(PLAIN, jax.tree.map(lambda x: scale * x, ON_S), ts)


def metrics(names, model=PLAIN):
    return lambda state: evaluate(model, state, names, start=SMALL)


def simulated(method: Callable[[Any], Any], model=PLAIN):
    """The end of a run and its metrics at three times, as a function of the start and of one number of the method."""

    def run(start, number):
        path = fc.simulate(model, start, method(number), TIMES, metrics=("risk", "snc1"))
        return path.final.H, path.final.W, path.final.b, path.metrics  # inside programs, the state is in class means

    return run


ROUGH = {"nc4", "ncc_error", "sharpness"}
"""Shares of samples, which jump, and the sharpness, which is tried alone."""

SLOW = {"flow"}
"""Quantities whose derivatives without lanes are tried elsewhere, to save time."""

MADE: dict[str, tuple[Callable, tuple]] = {
    "risk": (lambda state, lam: fc.risk(fc.UFM(**SIZES, weight_decay=lam), state), (STATE, 0.1)),
    "velocity": (lambda state, lam: fc.velocity(fc.UFM(**SIZES, weight_decay=lam), state), (STATE, 0.1)),
    "sharpness": (lambda state: fc.sharpness(PLAIN, state), (STATE,)),
    "metrics": (metrics([name for name in available(PLAIN) if name not in ROUGH]), (STATE,)),
    "metrics of margins": (metrics([name for name in available(LOGIT) if name not in ROUGH], LOGIT), (LOGIT_STATE,)),
    "flow": (simulated(lambda t1: fc.Flow("tsit5", rtol=1e-10, t1=t1, adjoint="forward")), (STATE, 2.0)),
    "descent": (simulated(lambda rate: fc.Descent("sgd", 60, learning_rate=rate, adjoint="forward")), (STATE, 0.05)),
    "on S": (on_subspace, (1.3, TIMES)),
    "descent on S": (
        lambda scale, rate: theory.exact.subspace_descent(
            PLAIN, jax.tree.map(lambda x: scale * x, ON_S), [0, 3, 9], learning_rate=rate
        ),
        (1.3, 0.05),
    ),
    "half time": (lambda mu: theory.exact.half_time(PLAIN, mu), (0.1,)),
    "balanced flow": (
        lambda scale, ts: theory.riccati.balanced_flow(NO_BIAS, jax.tree.map(lambda x: scale * x, BALANCED), ts),
        (1.3, TIMES),
    ),
    "plateau": (lambda start: theory.limits.plateau(PLAIN, start), (SMALL,)),
    "plateau time": (lambda start: theory.limits.plateau_time(PLAIN, start, decay=1e-3), (SMALL,)),
    "learning curve": (lambda start, ts: theory.curves.learning_curve(PLAIN, start, ts), (SMALL, TIMES)),
    "mean modes": (lambda start, ts: theory.curves.mean_modes(PLAIN, start, ts), (SMALL, TIMES)),
    "prediction": (lambda start, ts: theory.prediction.states(PLAIN, start, ts), (SMALL, TIMES)),
    "distance": (lambda state: theory.subspace.distance(PLAIN, state), (STATE,)),
    "projection": (lambda state: theory.subspace.project(PLAIN, state), (STATE,)),
    "rms": (lambda eps: theory.scaling.rms(PLAIN, eps), (0.01,)),
    "decay limit": (lambda lam: theory.limits.decay_limit(fc.UFM(**SIZES, weight_decay=(lam, lam, 0.0))), (0.1,)),
    "certificate": (
        lambda lam: theory.optimality.certify(fc.UFM(**LOGITS, weight_decay=lam), STATE),
        (0.3,),
    ),
    "learning times": (lambda start: theory.imbalance.learning_times(UNEQUAL, start), (UNEQUAL_START,)),
    "ray": (lambda rho, rho0: theory.max_margin.time_on_ray(fc.UFM(**LOGITS), rho, rho0), (1.5, 0.2)),
    "settled": (lambda rate: theory.landscape.settled_eigenvalue(PLAIN, rate), (0.3,)),
}  # fmt: skip
"""Quantities, each a function and a point."""


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_the_reduced_part_within_the_classes_has_derivatives_at_any_rank(rank):
    """Samples that are equal within their classes, or depend on each other, leave `L L^T = A A^T` differentiable."""
    rng = np.random.default_rng(rank)
    A = jnp.asarray(rng.standard_normal((3, rank)) @ rng.standard_normal((rank, 7)))
    along = jnp.asarray(rng.standard_normal((3, 7)))
    wanted = along @ A.T + A @ along.T
    found = jax.jvp(lambda x: lower_factor(x) @ lower_factor(x).T, (A,), (along,))[1]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())
    if rank == 3:
        exact = jax.jvp(lambda x: positive_qr(x.T)[1].T, (A,), (along,))[1]
        np.testing.assert_allclose(jax.jvp(lower_factor, (A,), (along,))[1], exact, rtol=1e-11, atol=1e-11)


def test_a_run_from_equal_samples_can_be_differentiated_by_the_class_means():
    """In class-mean columns as among the samples."""
    N, C, p = 4, 3, 2
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    start = systems.random_state(model)

    def risk(means, coordinates):
        state = fc.State(H=jnp.repeat(means, N, axis=1), W=start.W)
        path = fc.simulate(model, state, fc.Descent("sgd", 20, learning_rate=0.05, coordinates=coordinates), 2)
        return path.metrics["risk"][-1] + jnp.sum(path.final.W**3)

    reduced, exact = (
        systems.compiled(jax.grad(risk), static_argnums=1)(start.H[:, ::N], c) for c in ("auto", "sample")
    )
    np.testing.assert_allclose(reduced, exact, rtol=1e-9, atol=1e-9 * float(jnp.max(jnp.abs(exact))))


@pytest.mark.parametrize("name", MADE)
def test_a_quantity_is_the_same_inside_every_transformation(name):
    """One program computes all of it."""
    function, point = MADE[name]
    at, unravel = ravel_pytree(jax.tree.map(jnp.asarray, point))

    def flat(x):
        parts = (y for y in jax.tree.leaves(function(*unravel(x))) if jnp.issubdtype(jnp.result_type(y), jnp.floating))
        return jnp.concatenate([jnp.ravel(y) for y in parts])

    rng = np.random.default_rng(len(name))
    along = jnp.asarray(0.3 * rng.standard_normal(at.size)) * at  # entries that are 0 stay 0
    shift = 1e-4
    points = jnp.stack([at, at + shift * along, at - shift * along, at + 0.1 * along])
    plain = [np.asarray(flat(x)) for x in (points[0], points[3])]
    weights = jnp.asarray(rng.standard_normal(plain[0].size))
    mesh = Mesh(np.array(jax.devices()[:2]), ("lanes",))
    flat = jax.jit(flat)  # so that the function itself is traced once for all

    @systems.compiled
    def everything(points):
        lanes, place = jax.vmap(flat), PartitionSpec("lanes")
        more = {
            "jvp": jax.jvp(flat, (points[0],), (along,))[1],
            "jacfwd": jax.jacfwd(lambda h: flat(points[0] + h * along))(0.0),
        }
        return ({} if name in SLOW else more) | {
            "vmap": lanes(points),
            "scan": jax.lax.scan(lambda _, x: (None, flat(x)), None, points)[1],
            "shard_map": jax.shard_map(lanes, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)(points),
            "vmap of jvp": jax.vmap(lambda x: jax.jvp(flat, (x,), (along,))[1])(points)[0],
        }

    found = {key: np.asarray(value) for key, value in everything(points).items()}
    if name not in SLOW:
        alone = systems.compiled(flat)
        found["jit"] = np.stack([alone(x) for x in (points[0], points[3])])
    scale = np.abs(plain[0]).max() + 1
    close = {"rtol": 1e-8, "atol": 1e-8 * scale}
    for key in ("vmap", "scan", "shard_map"):
        np.testing.assert_allclose(found[key][[0, 3]], plain, **close, err_msg=key)
    if "jit" in found:
        np.testing.assert_allclose(found["jit"], plain, **close)
    slope = (found["vmap"][1] - found["vmap"][2]) / (2 * shift)
    steepest = np.abs(slope).max()
    for key in found.keys() & {"jvp", "jacfwd", "vmap of jvp"}:
        np.testing.assert_allclose(found[key], slope, rtol=1e-5, atol=1e-5 * steepest, err_msg=key)
    assert steepest > 0
    if name not in ("flow", "descent"):  # which are set to forward mode here
        backward = systems.compiled(jax.grad(lambda x: weights @ flat(x)))(at)
        np.testing.assert_allclose(backward @ along, weights @ found["jvp"], rtol=1e-6, atol=1e-6 * steepest)

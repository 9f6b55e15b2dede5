"""Laws of the landscape: the Hessian's spectra at critical points on S, and the stability of descent there."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ...curvature.hessian import hessian_vector_product
from ...model.state import State
from .. import landscape
from . import lab as lab_module
from .lab import EPS, NUM_STEPS, Lab, Point, System, as_state, on_subspace, sphere
from .registry import DERIVED, Comparisons, law


def hessian(lab: Lab, system: System, decay, point: Point) -> np.ndarray:
    """The Hessian, from its products with all unit vectors."""
    _, unravel = ravel_pytree(tuple(map(jnp.asarray, point)))

    def columns(decay, state: State):
        model = eqx.tree_at(lambda one: one.weight_decay, system.model(), tuple(decay))
        return jax.vmap(lambda v: ravel_pytree(_product(model, state, unravel(v)))[0])(jnp.eye(_size(state)))

    return np.asarray(lab.program(columns, "hessian", system)(jnp.asarray(decay), as_state(point)))


def _product(model, state: State, direction):
    image = hessian_vector_product(model, state, State(*direction))
    return image.H, image.W, image.b


def _size(state: State) -> int:
    return state.H.size + state.W.size + state.b.size


def critical_point(system: System, rank: int, lam: float = 0.0) -> Point:
    """`W W^T = (s - lam)` times a random projector orthogonal to the mean, in NumPy."""
    U, _, Vt = np.linalg.svd(system.P @ sphere(system, 1.0, seed=15).W)
    return on_subspace(system, math.sqrt(system.s - lam) * U[:, :rank] @ Vt[:rank], 1 / system.C)


def _spectra(lab: Lab, lam: float) -> Comparisons:
    """Compare all eigenvalues with multiplicities: a wrong multiplicity shifts the sorted list by a whole gap."""
    for system in lab_module.EVERY:
        decay = (lam, lam, 0.0)
        for rank in range(min(system.p, system.num_modes) + 1):
            found = np.linalg.eigvalsh(hessian(lab, system, decay, critical_point(system, rank, lam)))
            expected = np.asarray(landscape.spectrum(system.model(decay), rank).eigenvalues)
            if expected.size != found.size:
                raise ValueError(
                    f"{expected.size} eigenvalues at rank {rank} of {system}, the Hessian has {found.size}"
                )
            yield np.abs(found - expected).max() / found[-1], 1e3 * EPS


@law(
    "spectrum",
    "the Hessian at every rank r on S: CN + s, CN, 2s, s, -s ((p-r)(C-1-r) times) and 0, multiplicities exact",
    DERIVED,
)
def spectrum(lab: Lab) -> Comparisons:
    yield from _spectra(lab, 0.0)


@law(
    "spectrum-decay",
    "with decay lam of W and H: 2(s - lam), 2 lam, 2s, s, lam, both roots of x^2 - (CN+s) x + CN lam, CN and 0",
    DERIVED,
)
def spectrum_decay(lab: Lab) -> Comparisons:
    yield from _spectra(lab, 0.37)


@law(
    "stability",
    "descent is linearly stable at collapse iff eta < 2/(CN + s): at 1.02 of it the top mode grows by 1.04 a step",
    DERIVED,
)
def stability(lab: Lab) -> Comparisons:
    """Perturb by 1e-13: at 0.98 only neutral directions remain, and at 1.02 it grows at the predicted rate."""
    size, steps = 1e-13, [0, 50, 100, 150, 200, 250, 300, 400, 500]
    for system in lab_module.REACHED:
        eta = float(landscape.stability_threshold(system.model()))
        collapsed, noise = critical_point(system, system.num_modes), sphere(system, math.sqrt(system.p), seed=16, b=1.0)
        start = Point(*(z + size * dz for z, dz in zip(collapsed, noise, strict=True)))
        paths = lab.descent(system, [start] * 2, steps, [0.98 * eta, 1.02 * eta])
        below, middle, above = (
            math.sqrt(sum(np.sum((x - z) ** 2) for x, z in zip(paths.at(lane, time), collapsed, strict=True)))
            for lane, time in ((0, -1), (1, 5), (1, -1))
        )
        yield below / size, 20 * math.sqrt(_size(as_state(start)))
        yield abs(math.log(above / middle) / 250 - math.log(1.04)), 1e-3 * math.log(1.04)


@law(
    "edge",
    "slightly above, the risk falls but collapse is lost: W W^T settles below 2/eta - CN, SNC1 >= sqrt(C-1) (s - mu)",
    DERIVED,
)
def edge(lab: Lab) -> Comparisons:
    """On both sides of the threshold the risk falls to that of the plateau; SNC1 falls to eps^2 only below it."""
    eps = 1e-2
    for system in lab_module.REACHED:
        model, start, ratios = system.model(), sphere(system, eps, seed=17), np.array([0.98, 1.02])
        rates = ratios * float(landscape.stability_threshold(model))
        paths = lab.descent(system, [start] * 2, np.linspace(0, NUM_STEPS, lab_module.TIMES).round(), rates)
        yield paths.metrics["risk"][:, -1].max(), eps**2
        yield paths.metrics["snc1"][0, -1], 10 * eps**2
        mu = float(landscape.settled_eigenvalue(model, rates[1]))
        values = np.linalg.eigvalsh(paths.at(1).W @ paths.at(1).W.T)
        yield max(values[-1] - mu, 0.0), 10 * eps**2
        least = math.sqrt(system.C - 1) * (system.s - mu)
        yield max(least - paths.metrics["snc1"][1, -1], 0.0), 10 * eps**2

"""Laws that flow and descent share: rotations, permutations, the invariant subspace, collapse as a fixed point.

Each method is compiled once: the starts that a law relates are lanes of one `jax.vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

C, N, P_FEATURES = 3, 3, 15
EPS = float(jnp.finfo(jnp.float64).eps)
# Rounding after a few hundred steps, amplified by the growth of e^{st} during the escape from the origin.
ROUNDED = 1e5 * EPS

METHODS = {
    "flow": fc.Flow(rtol=1e-8),
    "flow, explicit, sample by sample": fc.Flow("tsit5", rtol=1e-8, coordinates="sample"),
    "gradient descent": fc.Descent("sgd", 400, learning_rate=0.02),
    "momentum, sample by sample": fc.Descent("sgd", 400, learning_rate=0.002, momentum=0.9, coordinates="sample"),
}


def standing_still(path: fc.Trajectory) -> float:
    """How far a run may drift from a point of rest: by rounding, or by the tolerance for the explicit solver.

    At rest, the step control of the explicit solver sees no error and lengthens the steps beyond the limit of
    stability, where rounding grows until it shows. The default solver respects the limit.
    """
    size = np.sqrt(2 * np.sqrt(N) * (C - 1) + 1 / C)  # of a collapsed point
    explicit = isinstance(path.method, fc.Flow) and path.method.solver == "tsit5"
    return 20 * float(path.method.rtol) * size if explicit else ROUNDED


class Transformed(NamedTuple):
    """A start, the same start rotated and permuted in three ways, and the maps that undo these."""

    rotation: np.ndarray
    samples: np.ndarray
    class_samples: np.ndarray
    classes: np.ndarray
    starts: dict[str, fc.State]


@pytest.fixture(scope="module")
def transformed(paper_model, key) -> Transformed:
    rng = np.random.default_rng(11619)
    state = systems.random_state(paper_model, size=0.1)
    rotation = np.linalg.qr(rng.standard_normal((P_FEATURES, P_FEATURES)))[0]
    samples = np.concatenate([c * N + rng.permutation(N) for c in range(C)])
    classes = np.array([2, 0, 1])
    class_samples = np.concatenate([c * N + np.arange(N) for c in classes])
    starts = {
        "plain": state,
        "rotated": fc.State(H=rotation @ state.H, W=state.W @ rotation.T, b=state.b),
        "samples permuted": fc.State(H=state.H[:, samples], W=state.W, b=state.b),
        "classes permuted": fc.State(H=state.H[:, class_samples], W=state.W[classes], b=state.b[classes]),
        "on S": fc.initial.on_subspace(paper_model, eps=0.1, key=key),
        "collapsed": fc.initial.collapsed(paper_model, key=key),
    }
    return Transformed(rotation, samples, class_samples, classes, starts)


@pytest.fixture(scope="module", params=METHODS)
def paths(request, paper_model, transformed) -> dict[str, fc.Trajectory]:
    """The path from each start, observed at common times."""
    method, starts = METHODS[request.param], transformed.starts
    ts = jnp.linspace(0.0, 8.0, 21)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *starts.values())

    def run(start):
        return fc.simulate(paper_model, start, method, ts, save_states=True, metrics=("distance", "risk"))

    lanes = systems.compiled(jax.vmap(run))(stacked)
    return {name: jax.tree.map(lambda x, i=i: x[i], lanes) for i, name in enumerate(starts)}


def test_rotating_the_features_rotates_the_path(paths, transformed):
    """`(H, W) -> (R H, W R^T)` does not change the risk, for any orthogonal R."""
    plain, rotated = (systems.arrays(paths[name].states) for name in ("plain", "rotated"))
    R = transformed.rotation
    assert systems.relative_error((R.T @ rotated.H, rotated.W @ R, rotated.b), plain) < ROUNDED


def test_permuting_samples_within_their_class_permutes_the_path(paths, transformed):
    plain, permuted = (systems.arrays(paths[name].states) for name in ("plain", "samples permuted"))
    expected = (plain.H[..., transformed.samples], plain.W, plain.b)
    assert systems.relative_error(permuted, expected) < ROUNDED


def test_permuting_classes_permutes_the_path(paths, transformed):
    plain, permuted = (systems.arrays(paths[name].states) for name in ("plain", "classes permuted"))
    order = transformed.classes
    expected = (plain.H[..., transformed.class_samples], plain.W[:, order], plain.b[:, order])
    assert systems.relative_error(permuted, expected) < ROUNDED


def test_the_subspace_is_invariant(paths):
    """A start on S stays there, by the metric and by an explicit basis of S."""
    path = paths["on S"]
    assert float(jnp.max(path.metrics["distance"])) < standing_still(path)
    basis = systems.subspace_basis(C, N, P_FEATURES)
    states = systems.arrays(path.states)
    z = np.concatenate([part.reshape(len(path.ts), -1) for part in states], axis=1)
    assert np.max(np.linalg.norm(z - (z @ basis.T) @ basis, axis=1)) < standing_still(path)
    # It did move, all the way from near the origin to collapse.
    assert float(path.metrics["risk"][0]) > 1
    assert float(path.metrics["risk"][-1]) < 1e-6


def test_collapse_stays_put(paths, transformed):
    path, start = paths["collapsed"], systems.arrays(transformed.starts["collapsed"])
    for part, at_start in zip(systems.arrays(path.states), start, strict=True):
        np.testing.assert_allclose(part, np.broadcast_to(at_start, part.shape), rtol=0, atol=standing_still(path))
    steepest = C * N + np.sqrt(N)  # the largest eigenvalue of the Hessian there
    assert float(jnp.max(path.metrics["risk"])) < steepest * standing_still(path) ** 2
    assert path.result == fc.Verdict.plateau


def test_the_first_save_is_the_start(paths, transformed):
    for name, path in paths.items():
        first = [part[0] for part in systems.arrays(path.states)]
        assert systems.relative_error(first, systems.arrays(transformed.starts[name])) < 100 * EPS

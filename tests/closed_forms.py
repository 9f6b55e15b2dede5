"""Starts whose paths are known in closed form, and the quantities of a path that the closed form determines."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import systems

import flowcollapse as fc
from flowcollapse.model.columns import within_class_basis

exact = fc.theory.exact
TS = np.array([0.0, 1e-9, 0.3, 1.0, 3.0])
ROUNDED = 1e3 * float(jnp.finfo(jnp.float64).eps)


def ufm(counts, p, **options):
    return fc.UFM(num_classes=len(counts), samples_per_class=counts, num_features=p, **options)


def state_of(H, W, b) -> fc.State:
    return fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.asarray(b))


def with_b(state: fc.State, b) -> fc.State:
    return fc.State(H=state.H, W=state.W, b=jnp.asarray(b))


def frame(rng, n, k, orthogonal_to=None):
    """k random orthonormal columns with n entries, orthogonal to a given vector."""
    columns = rng.standard_normal((n, k))
    if orthogonal_to is not None:
        columns -= np.outer(orthogonal_to, orthogonal_to @ columns) / (orthogonal_to @ orthogonal_to)
    return np.linalg.qr(columns)[0]


def on_subspace(counts, p, beta=0.0, size=0.1, seed=0, rank: int | None = None) -> fc.State:
    """A random point of S, optionally of lower rank."""
    W = size * systems.centring(len(counts)) @ np.random.default_rng(seed).standard_normal((len(counts), p))
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    W = W if rank is None else U[:, :rank] * sigma[:rank] @ Vt[:rank]
    return state_of(*systems.on_subspace(W, beta, counts[0]))


def balanced(counts, p, lam, b, *, centred_W, centred_H, size=0.3, seed=0) -> fc.State:
    """A random start with `W^T W - H H^T = lam I`, optionally with `1^T W = 0` and with `H 1 = 0`.

    W and H share the singular vectors in feature space, and their squared singular values differ by lam in every
    direction.
    """
    rng, (C, n) = np.random.default_rng(seed), (len(counts), sum(counts))
    left = frame(rng, C, min(p, C - centred_W), np.ones(C) if centred_W else None)
    right = frame(rng, n, min(p, n - centred_H), np.ones(n) if centred_H else None)
    squares = np.zeros(p)
    common = min(left.shape[1], right.shape[1])
    squares[:common] = (size * rng.uniform(0.5, 1.0, common)) ** 2
    W_values, H_values = np.sqrt(squares + max(lam, 0.0)), np.sqrt(squares + max(-lam, 0.0))
    features = frame(rng, p, p)
    W = left * W_values[: left.shape[1]] @ features[:, : left.shape[1]].T
    H = features[:, : right.shape[1]] * H_values[: right.shape[1]] @ right.T
    np.testing.assert_allclose(W.T @ W - H @ H.T, lam * np.eye(p), atol=ROUNDED)
    return state_of(H, W, b)


def in_second_phase(counts, p, *, size=0.4, mean=0.0, tilt=0.0, seed=0) -> fc.State:
    """Class means fitted by balanced factors, random u and L orthogonal to them; `mean` is added to all class means.

    `tilt` adds a part of L along the class means, which violates the conditions of the second phase.
    """
    rng, (C, n) = np.random.default_rng(seed), (len(counts), sum(counts))
    roots = np.sqrt(np.array(counts, float))
    b = roots**2 / n
    left, values, right = np.linalg.svd(np.diag(roots) - np.outer(b, roots))
    left, values, right = left[:, : C - 1], values[: C - 1], right[: C - 1].T
    features = frame(rng, p, p)
    inside, outside = features[:, : C - 1], features[:, C - 1 :]
    W, B = left * np.sqrt(values) @ inside.T, inside * np.sqrt(values) @ right.T
    v = mean * inside @ rng.standard_normal(C - 1)
    B, b = B + np.outer(v, roots), b - W @ v
    u, L = size * outside @ rng.standard_normal(p - C + 1), size * outside @ rng.standard_normal((p - C + 1, n - C))
    L = L + tilt * inside @ rng.standard_normal((C - 1, n - C))
    H = np.repeat(B / roots, counts, axis=1) + L @ np.asarray(within_class_basis(tuple(counts), np.float64)).T
    return state_of(H, W + np.outer(np.ones(C), u) / np.sqrt(C), b)


def gram(point) -> np.ndarray:
    """`Q Q^T` at every time."""
    Q = np.concatenate([point.W, np.swapaxes(point.H, -1, -2)], axis=-2)
    return Q @ np.swapaxes(Q, -1, -2)


def invariants(point, up_to: str | None):
    """The quantities of a path that are invariant under rotations of the features or of the samples in each class."""
    if up_to == "features":
        return gram(point), point.b
    if up_to == "samples":
        return point.H @ np.swapaxes(point.H, -1, -2), point.W, point.b
    return point


class Case(NamedTuple):
    """A closed form and a start in its set: the function to call, and the rotation that the form leaves open."""

    counts: tuple[int, ...]
    p: int
    start: fc.State
    flow: Any = exact.subspace_flow
    up_to: str | None = None
    decay: tuple[float, float, float] = (0.0, 0.0, 0.0)
    use_bias: bool = True

    @property
    def model(self) -> fc.UFM:
        return ufm(self.counts, self.p, weight_decay=self.decay, use_bias=self.use_bias)

    def at(self, ts) -> systems.Arrays:
        return systems.arrays(self.flow(self.model, self.start, ts))

    def error(self, found: systems.Arrays, expected: systems.Arrays) -> float:
        return systems.relative_error(invariants(found, self.up_to), invariants(expected, self.up_to))


def slow(counts, p, **options):
    return Case(counts, p, in_second_phase(counts, p, **options), exact.second_phase, "samples")


def riccati(counts, p, lam, b, *, centred_W=False, **options):
    """A case with a balanced start; with a bias, its features sum to zero."""
    use_bias = b is not None
    offset = np.zeros(len(counts)) if b is None else np.array(counts) / sum(counts) + b
    start = balanced(counts, p, lam, offset, centred_W=centred_W, centred_H=use_bias)
    return Case(counts, p, start, exact.balanced_flow, "features", use_bias=use_bias, **options)


CASES = {f"S {g}": Case((g[1],) * g[0], g[2], on_subspace((g[1],) * g[0], g[2])) for g in systems.GEOMETRIES} | {
    "S, modes lacking": Case((7,) * 4, 6, on_subspace((7,) * 4, 6, rank=1)),
    "S, decay": Case((7,) * 4, 6, on_subspace((7,) * 4, 6, 0.7), decay=(0.6, 0.6, 0.3)),
    "S, decay as large as s": Case((4,) * 3, 2, on_subspace((4,) * 3, 2), decay=(2.0, 2.0, 0.0)),
    "S, decay above s": Case((2,) * 5, 3, on_subspace((2,) * 5, 3), decay=(2.5, 2.5, 40.0)),
    "S, no bias": Case((4,) * 3, 2, state_of(*systems.on_subspace(np.eye(3, 2), 0.0, 4)), use_bias=False),
    "no bias": riccati((4, 4, 4), 3, 0.0, None),
    "no bias, lam > 0": riccati((4, 4, 4), 3, 0.4, None),
    "no bias, lam < 0": riccati((4, 4, 4), 3, -0.4, None),
    "no bias, decay": riccati((4, 4, 4), 3, 0.0, None, decay=(0.3, 0.3, 0.0)),
    "no bias, decay above s": riccati((4, 4, 4), 3, 0.0, None, decay=(2.5, 2.5, 0.0)),
    "no bias, imbalanced": riccati((5, 2, 1), 6, 0.0, None),
    "no bias, imbalanced, lam < 0": riccati((5, 2, 1), 6, -0.4, None),
    "no bias, imbalanced, few features": riccati((5, 2, 1), 2, 0.0, None),
    "no bias, imbalanced, few features, lam > 0": riccati((5, 2, 1), 2, 0.4, None),
    "no bias, few features": riccati((3, 3, 3, 3), 2, 0.0, None),
    "no bias, few features, lam > 0": riccati((3, 3, 3, 3), 2, 0.4, None),
    "W centred": riccati((7,) * 4, 6, 0.0, 0.2, centred_W=True),
    "W centred, lam < 0": riccati((7,) * 4, 6, -0.4, 0.2, centred_W=True),
    "W centred, decay": riccati((7,) * 4, 6, 0.0, 0.2, centred_W=True, decay=(0.2, 0.2, 0.7)),
    "b settled": riccati((7,) * 4, 6, 0.0, 0.0),
    "b settled, lam < 0": riccati((7,) * 4, 6, -0.4, 0.0),
    "imbalanced, b settled": riccati((5, 2, 1), 3, 0.0, 0.0),
    "imbalanced, b settled, lam > 0": riccati((5, 2, 1), 3, 0.4, 0.0),
    "imbalanced, b settled, lam < 0": riccati((5, 2, 1), 3, -0.4, 0.0),
    "imbalanced, W centred": riccati((5, 2, 1), 3, 0.0, 0.2, centred_W=True),
    "second phase": slow((7,) * 4, 6),
    "second phase, means shifted": slow((7,) * 4, 6, mean=0.5),
    "second phase, one sample a class": slow((1,) * 3, 5),
    "second phase, imbalanced": slow((5, 2, 1), 4),
    "second phase, imbalanced, means shifted": slow((5, 2, 1), 4, mean=0.5),
}

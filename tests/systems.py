"""The systems that tests run on, and their mathematics in plain NumPy, independent of the package.

Geometries are `(C, N, p)`. Formulas for the flow and for descent are in the notation of the paper (arXiv 2011.11619):
`s = sqrt N`, `P = I - 11^T/C`, residual `G = W H + b 1^T - I_C (x) 1_N^T`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float
from scipy.integrate import solve_ivp

import flowcollapse as fc

# p above, at and below C - 1, one sample per class, two classes, and the paper's sizes.
GEOMETRIES = [(3, 3, 15), (4, 7, 6), (5, 2, 3), (3, 4, 2), (3, 1, 5), (2, 3, 4), (3, 3, 3)]


# These programs are short, and this saves a third of the compilation, which takes most of their time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

USUAL_FUSIONS = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
"""Compiler options for laws about the last bits: with the suite's cheap fusions, rounding depends on the program."""


class Arrays(NamedTuple):
    """A point in NumPy: features (p x n_tot), classifier (C x p), bias (C)."""

    H: np.ndarray
    W: np.ndarray
    b: np.ndarray


def model_of(counts, p, **options) -> fc.UFM:
    """The model with these counts."""
    return fc.UFM(num_classes=len(counts), samples_per_class=tuple(counts), num_features=p, **options)


def assert_refused(call, fragments) -> None:
    """A call ends in a `UsageError` of one line that holds every fragment."""
    with pytest.raises(fc.UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def arrays(state) -> Arrays:
    """A state of the package, or a path of states, in NumPy."""
    return Arrays(np.asarray(state.H), np.asarray(state.W), np.asarray(state.b))


def random_state(model: fc.UFM, seed: int = 0, size: float = 1.0) -> fc.State:
    """A state with normal entries, its bias included if the model has one."""
    rng = np.random.default_rng([2011, 11619, seed])
    H, W, b = (
        size * rng.standard_normal(shape)
        for shape in (
            (model.num_features, model.num_samples),
            (model.num_classes, model.num_features),
            (model.num_classes,),
        )
    )
    return fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.asarray(b if model.use_bias else 0 * b))


def centring(C: int) -> Float[np.ndarray, "C C"]:
    """`P = I - 11^T/C`."""
    return np.eye(C) - 1 / C


def means_and_deviations(H, counts):
    """The class means, and `H` minus its class means, in plain NumPy."""
    ends = np.cumsum(counts)
    means = np.stack([H[:, end - n : end].mean(axis=1) for n, end in zip(counts, ends, strict=True)], axis=1)
    return means, H - np.repeat(means, counts, axis=1)


def one_hot(counts) -> Float[np.ndarray, "C samples"]:
    """`I_C (x) 1^T`: the target of every sample, classes one after the other."""
    return np.repeat(np.eye(len(counts)), counts, axis=1)


def risk(point: Arrays, counts, decay=(0.0, 0.0, 0.0)) -> float:
    """`1/2 ||W H + b 1^T - Y||_F^2 + 1/2 lam_W ||W||^2 + 1/2 lam_H ||H||^2 + 1/2 lam_b ||b||^2`, sample by sample."""
    H, W, b = point
    total = sum(0.5 * np.sum((W @ h + b - y) ** 2) for h, y in zip(H.T, one_hot(counts).T, strict=True))
    return total + 0.5 * (decay[0] * np.sum(W**2) + decay[1] * np.sum(H**2) + decay[2] * np.sum(b**2))


def velocity(point: Arrays, counts, decay=(0.0, 0.0, 0.0), use_bias: bool = True) -> Arrays:
    """The flow: `H' = -W^T G - lam_H H`, `W' = -G H^T - lam_W W`, `b' = -G 1 - lam_b b`."""
    H, W, b = point
    G = W @ H + np.outer(b, np.ones(H.shape[1])) - one_hot(counts)
    b_velocity = -G.sum(axis=1) - decay[2] * b if use_bias else np.zeros_like(b)
    return Arrays(-W.T @ G - decay[1] * H, -G @ H.T - decay[0] * W, b_velocity)


def flow(start: Arrays, counts, ts, rtol: float = 1e-13, **options) -> Arrays:
    """The flow at the times `ts` by SciPy's DOP853, with a leading axis of times. `options` are those of `velocity`."""
    shapes = [part.shape for part in start]
    cuts = np.cumsum([part.size for part in start])[:-1]

    def unpack(y):
        return Arrays(*(part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True)))

    def pack(point):
        return np.concatenate([part.ravel() for part in point])

    solution = solve_ivp(
        lambda t, y: pack(velocity(unpack(y), counts, **options)),
        (0.0, ts[-1]),
        pack(start),
        method="DOP853",
        t_eval=ts,
        rtol=rtol,
        atol=1e-15,
    )
    points = [unpack(y) for y in solution.y.T]
    return Arrays(*(np.stack(parts) for parts in zip(*points, strict=True)))


def on_subspace(W: np.ndarray, beta, N: int) -> Arrays:
    """The point of S with classifier W: `H = (W (x) 1_N)^T / s`, `b = beta 1`. Leading axes are those of W and beta."""
    H = np.repeat(np.swapaxes(W, -1, -2), N, axis=-1) / np.sqrt(N)
    return Arrays(H, W, np.broadcast_to(np.asarray(beta)[..., None], W.shape[:-1]).copy())


def modes(W0: np.ndarray):
    """The singular vectors and values of a W with `1^T W = 0`, without the last value, which is growing rounding."""
    U, sigma, Vt = np.linalg.svd(W0, full_matrices=False)
    k = min(W0.shape[0] - 1, W0.shape[1])
    return U[:, :k], sigma[:k], Vt[:k]


def flow_on_subspace(W0: np.ndarray, beta0: float, N: int, ts, decay=(0.0, 0.0, 0.0)) -> Arrays:
    """The flow on S in closed form, for equal decays of W and H.

    On S the flow is `W' = -(W W^T - r P) W` with `r = s - lam`, so W keeps its singular vectors and each squared
    singular value follows the logistic equation `mu' = 2 mu (r - mu)`, solved by
    `mu(t) = mu e^{2rt} / (1 + mu (e^{2rt} - 1)/r)`. The bias relaxes to `N / (CN + lam_b)` at the rate `CN + lam_b`.
    """
    C, r = W0.shape[0], np.sqrt(N) - decay[0]
    assert decay[0] == decay[1]
    U, sigma, Vt = modes(W0)
    t = np.asarray(ts)[:, None]
    # e^{2rt} is divided out if it grows, so that long times do not overflow.
    begun, left = (np.exp(-2 * r * t), -np.expm1(-2 * r * t)) if r > 0 else (1.0, np.expm1(2 * r * t))
    growth = sigma * np.exp(min(r, 0) * t) / np.sqrt(begun + sigma**2 * left / r)
    limit, rate = N / (C * N + decay[2]), C * N + decay[2]
    return on_subspace((U * growth[:, None, :]) @ Vt, limit + (beta0 - limit) * np.exp(-rate * t[:, 0]), N)


def descent_on_subspace(W0: np.ndarray, beta0: float, N: int, eta: float, steps: int) -> Arrays:
    """Gradient descent on S: `mu <- mu (1 + eta (s - mu))^2` for each squared singular value of W, from step 0 on."""
    C, s = W0.shape[0], np.sqrt(N)
    U, sigma, Vt = modes(W0)
    sigmas, betas = [sigma], [beta0]
    for _ in range(steps):
        sigmas.append(sigmas[-1] * (1 + eta * (s - sigmas[-1] ** 2)))
        betas.append(betas[-1] - eta * C * N * (betas[-1] - 1 / C))
    return on_subspace((U * np.array(sigmas)[:, None, :]) @ Vt, np.array(betas), N)


def subspace_basis(C: int, N: int, p: int) -> Float[np.ndarray, "dim numbers"]:
    """An orthonormal basis of S, with one flattened `(H, W, b)` per row; S has dimension `p (C - 1) + 1`."""
    rows = []
    differences = np.linalg.svd(centring(C))[0][:, : C - 1]
    for column in differences.T:
        for k in range(p):
            rows.append(on_subspace(np.outer(column, np.eye(p)[k]), 0.0, N))
    rows.append(Arrays(np.zeros((p, C * N)), np.zeros((C, p)), np.ones(C)))
    flat = np.stack([np.concatenate([part.ravel() for part in row]) for row in rows])
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def relative_error(found, expected) -> float:
    """`||found - expected|| / ||expected||` over all parts and their leading axes together."""
    difference = sum(np.sum((np.asarray(f) - np.asarray(e)) ** 2) for f, e in zip(found, expected, strict=True))
    return float(np.sqrt(difference / sum(np.sum(np.asarray(e) ** 2) for e in expected)))


def assert_close(actual, wanted, tolerance):
    """Check for equal shapes and a difference of norm at most `tolerance`, relative to the wanted norm if above 1."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.shape == wanted.shape
    assert np.linalg.norm(actual - wanted) <= tolerance * max(1.0, float(np.linalg.norm(wanted)))


def sizes(jaxpr):
    """Sizes of all arrays that a program computes, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))

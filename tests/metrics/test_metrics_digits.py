"""The cheap forms of the metrics keep the digits of their definitions: near rounding, near balance, at any rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from formulas import of_point

import flowcollapse as fc
from flowcollapse._linalg.algebra import BY_COLUMNS_UP_TO, pinv
from flowcollapse.metrics.balance import STRIPS_FROM, THIN_FROM, Reference
from flowcollapse.model.problem import Point


def eps_of(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def orthonormal(rng, m, n):
    return np.linalg.qr(rng.standard_normal((m, n)))[0]


# ---- NC1

CONDITIONS = [("float64", 1e4), ("float64", 1e8), ("float32", 1e1), ("float32", 1e3)]


@pytest.mark.parametrize(("C", "p"), [(4, 7), (12, 20), (12, 5)])
@pytest.mark.parametrize(("dtype", "condition"), CONDITIONS)
def test_nc1_of_ill_conditioned_class_means_loses_their_condition_and_not_its_square(C, p, dtype, condition):
    """Deviations `M a` give `||M^+ M a||^2 / n_tot` for any condition number of M: `M^+ M` projects on its rows.

    H is rounded to eps of its largest entries, which M^+ amplifies to a relative error of `condition * eps`.
    """
    N, rank = 6, min(C - 1, p)
    rng = np.random.default_rng(5)
    rows = np.linalg.svd(systems.centring(C))[2][: C - 1]  # a basis of the vectors that sum to zero
    rows = orthonormal(rng, C - 1, rank).T @ rows
    M = orthonormal(rng, p, rank) * np.geomspace(1, 1 / condition, rank) @ rows
    a = rng.standard_normal((C, C, N))
    a = (a - a.mean(axis=2, keepdims=True)).reshape(C, C * N)
    H, W = np.repeat(M, N, axis=1) + M @ a, M.T
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    state = fc.State(H=jnp.asarray(H, dtype), W=jnp.asarray(W, dtype), b=jnp.zeros(C, dtype))
    found = fc.metrics.evaluate(model, state, ["nc1"])["nc1"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.sum((rows @ a) ** 2) / (C * N), rtol=100 * condition * eps_of(dtype))


MATRICES = {
    "tall": (9, 3),
    "wide": (3, 9),
    "square": (4, 4),
    "many columns": (30, 12),
    "many rows": (12, 30),
}


def matrices(shape, dtype, seed=0):
    """Matrices of full rank, with two equal columns, with a zero row and column, of rank one, and zero."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((5, *shape)).astype(dtype)
    A[1, :, 1] = A[1, :, 0]
    A[2, 0], A[2, :, 2] = 0, 0
    A[3] = np.outer(A[3, :, 0], A[3, 0])
    A[4] = 0
    return A


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MATRICES)
def test_pseudo_inverses_of_any_rank_solve_the_equations_of_penrose(name, dtype):
    """The four equations have one solution. Lanes of several ranks share one batch, under jit and two vmaps."""
    A = matrices(MATRICES[name], dtype)
    both = jax.jit(jax.vmap(jax.vmap(pinv)))(jnp.asarray(np.stack([A, 3 * A])))
    alone = [pinv(jnp.asarray(one)) for one in A]
    for found in (both[0], 3 * both[1], alone):
        for lane, P in zip(A.astype(np.float64), np.asarray(found, np.float64), strict=True):
            A_norm, P_norm = float(np.linalg.norm(lane)), float(np.linalg.norm(P))
            size = 1e4 * float(eps_of(dtype)) * max(1.0, A_norm * P_norm)
            np.testing.assert_allclose(lane @ P @ lane, lane, atol=size * max(1.0, A_norm))
            np.testing.assert_allclose(P @ lane @ P, P, atol=size * max(1.0, P_norm))
            np.testing.assert_allclose(lane @ P, (lane @ P).T, atol=size)
            np.testing.assert_allclose(P @ lane, (P @ lane).T, atol=size)


def test_a_matrix_that_is_not_finite_spoils_no_other():
    A = matrices((6, 3), "float64")[:2].copy()
    expected = np.linalg.pinv(A[0])
    A[1, 0, 0] = np.nan
    found = jax.jit(jax.vmap(pinv))(jnp.asarray(A))
    np.testing.assert_allclose(found[0], expected, rtol=1e-12, atol=1e-13)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_pseudo_inverses_of_numbers_whose_squares_are_out_of_range(scale):
    A = np.random.default_rng(2).standard_normal((7, 3))
    np.testing.assert_allclose(scale * pinv(jnp.asarray(scale * A)), np.linalg.pinv(A), rtol=1e-11)


@pytest.mark.parametrize("shape", [(6, BY_COLUMNS_UP_TO), (3, 8), (20, BY_COLUMNS_UP_TO + 5)])
def test_derivatives_of_pseudo_inverses_are_quotients_of_differences(shape):
    """First and second derivatives, of one matrix and in lanes."""
    A, direction = np.random.default_rng(3).standard_normal((2, *shape))

    def at(t):
        return jnp.sum(jnp.sin(pinv(jnp.asarray(A) + t * direction)))

    step = 1e-4
    values = [at(t) for t in (-step, 0.0, step)]
    slope, bend, lanes = systems.compiled(
        lambda t: (jax.grad(at)(t), jax.jacfwd(jax.grad(at))(t), jax.vmap(jax.grad(at))(jnp.stack([t, t])))
    )(0.0)
    np.testing.assert_allclose(slope, (values[2] - values[0]) / (2 * step), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bend, (values[2] - 2 * values[1] + values[0]) / step**2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(lanes, [slope, slope], rtol=1e-10)


def test_derivatives_of_pseudo_inverses_are_finite_at_any_rank():
    A = jnp.asarray(matrices((6, 3), "float64"))
    slopes = systems.compiled(jax.grad(lambda A: jnp.sum(jax.vmap(pinv)(A) ** 2)))(A)
    assert np.isfinite(slopes).all()


# ---- balance

# C, n, p: the whole matrix, strips, and no p x p matrix.
SHAPES = {"whole": (3, 9, 15), "strips": (30, 300, STRIPS_FROM + 3), "thin": (3, 5, THIN_FROM * 8 + 1)}


def pair(shape, dtype="float64"):
    C, n, p = SHAPES[shape]
    rng = np.random.default_rng(7)
    W, X = rng.standard_normal((C, p)).astype(dtype), rng.standard_normal((p, n)).astype(dtype)
    return W, X, rng


def drift(W, X, W0, X0):
    point, start = (Point(jnp.asarray(w), jnp.asarray(x), jnp.zeros(len(w), w.dtype)) for w, x in ((W, X), (W0, X0)))
    return jax.jit(lambda point, start: Reference.of(start).drift(point))(point, start)


def exact_drift(W, X, W0, X0):
    W, X, W0, X0 = (np.asarray(A, np.longdouble) for A in (W, X, W0, X0))
    return np.linalg.norm(((W.T @ W - W0.T @ W0) - (X @ X.T - X0 @ X0.T)).astype(np.float64))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_balance_under_rotations_is_kept_to_rounding(shape, dtype):
    """`W -> R W` and `H -> H Q` with orthogonal R and Q move the point far but do not change `W^T W - H H^T`.

    Traces of products of Gram matrices would have an error of sqrt(eps).
    """
    W, X, rng = pair(shape, dtype)
    R, Q = (orthonormal(rng, n, n).astype(dtype) for n in (len(W), X.shape[1]))
    size = np.sum(W.astype(np.float64) ** 2) + np.sum(X.astype(np.float64) ** 2)
    assert float(drift(R @ W, X @ Q, W, X)) < 20 * eps_of(dtype) * size


@pytest.mark.skipif(bool(np.finfo(np.longdouble).eps > 1e-18), reason="needs a long double that is longer")
@pytest.mark.parametrize("step", [1.0, 1e-6, 1e-9])
@pytest.mark.parametrize("shape", SHAPES)
def test_small_drifts_have_their_digits(shape, step):
    W, X, rng = pair(shape)
    moved = W + step * rng.standard_normal(W.shape), X + step * rng.standard_normal(X.shape)
    size = np.sum(W**2) + np.sum(X**2)
    expected = exact_drift(*moved, W, X)
    np.testing.assert_allclose(drift(*moved, W, X), expected, atol=20 * eps_of("float64") * size, rtol=1e-12)


def test_thin_drift_has_the_derivatives_of_its_definition():
    """First and second derivatives against those of the p x p matrices, with linearly dependent columns."""
    W, X, rng = pair("thin")
    X[:, 1], X[:, 2] = X[:, 0], 0
    W0, X0 = W + rng.standard_normal(W.shape), X
    dW, dX = rng.standard_normal(W.shape), rng.standard_normal(X.shape)

    def by_definition(W, X, W0, X0):
        return jnp.sqrt(jnp.sum((W.T @ W - X @ X.T - W0.T @ W0 + X0 @ X0.T) ** 2))

    for step in (lambda f: f, jax.grad, lambda f: jax.jacfwd(jax.grad(f))):
        found, expected = (
            systems.compiled(step(lambda t, f=f: f(W + t * dW, X + t * dX, W0 - t * dW, X0 + t * t * dX)))(0.0)
            for f in (drift, by_definition)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_features_that_are_many_take_no_square_matrix():
    """For p = 20,000 features, a square matrix would take 3.2 GB."""
    C, N, p = 2, 2, 20_000
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    state, start = systems.random_state(model), systems.random_state(model, seed=1)
    program = jax.jit(lambda state, start: fc.metrics.evaluate(model, state, ["balancedness"], start=start))
    memory = program.lower(state, start).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 40 * 8 * p * C * N


# ---- single samples in class-mean columns

MODELS = {
    "Helmert's basis": fc.UFM(num_classes=3, samples_per_class=2, num_features=8),
    "few logits": fc.UFM(num_classes=3, samples_per_class=30, num_features=8),
    "few features": fc.UFM(num_classes=5, samples_per_class=30, num_features=4),
    "single samples": fc.UFM(num_classes=4, samples_per_class=1, num_features=9),
    "unequal counts": fc.UFM(num_classes=3, samples_per_class=(40, 1, 7), num_features=4),
}


@pytest.mark.parametrize("name", MODELS)
def test_metrics_of_single_samples_are_their_definitions_in_all_columns(name):
    model = MODELS[name]
    state = systems.random_state(model)
    shifted = fc.State(H=state.H + 5.0, W=state.W, b=state.b)  # the class means' centre is far from zero
    expected = of_point(systems.arrays(shifted), model.counts, systems.arrays(shifted))
    for one in (shifted, fc.to_class_means(model, shifted)):
        found = fc.metrics.evaluate(model, one, ["nc4", "cdnv", "nc1"])
        for metric, value in found.items():
            np.testing.assert_allclose(value, expected[metric], rtol=1e-10, atol=1e-14, err_msg=metric)

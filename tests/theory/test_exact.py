"""Paths in closed form: against two integrators and a loop of descent, and at small times and large.

A balanced flow is known up to a rotation of the features, so `Q Q^T` is compared, with `Q = [W; H^T]`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from closed_forms import CASES, ROUNDED, TS, Case, gram, on_subspace, riccati, slow, ufm, with_b

import flowcollapse as fc

exact = fc.theory.exact
EPS = float(jnp.finfo(jnp.float64).eps)
INTEGRATED = 1e-11  # the error of an integration at rtol 1e-12 after the escape from the origin


# ---- against integrators


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_solve_the_flow(name):
    """Against SciPy's DOP853 on the full state, sample by sample. At time 0 the state is the start, not rotated."""
    case = CASES[name]
    start, found = systems.arrays(case.start), case.at(TS)
    expected = systems.flow(start, case.counts, TS, decay=case.decay, use_bias=case.use_bias)
    assert case.error(found, expected) < INTEGRATED
    assert systems.relative_error([part[0] for part in found], start) < ROUNDED


@pytest.mark.parametrize(("C", "N", "p"), [(3, 3, 15), (4, 7, 6), (2, 3, 4)])
def test_closed_forms_are_what_simulate_finds(C, N, p):
    """One program per geometry with each case as a lane, inside jit and vmap and in class-mean columns."""
    counts, plain = (N,) * C, riccati((N,) * C, p, 0.0, 0.2, centred_W=True)
    cases = [
        Case(counts, p, on_subspace(counts, p)),
        Case(counts, p, on_subspace(counts, p, 0.7), decay=(0.6, 0.6, 0.3)),
        Case(counts, p, on_subspace(counts, p, 0.7), decay=(4.0, 4.0, 0.0)),
        plain,
        plain._replace(decay=(0.2, 0.2, 0.7)),
        riccati(counts, p, 0.0, 0.0),
        slow(counts, p),
    ]
    flows = (exact.subspace_flow, exact.balanced_flow, exact.second_phase)

    @systems.compiled
    @jax.vmap
    def run(decay, start):
        model = eqx.tree_at(lambda one: one.weight_decay, cases[0].model, tuple(decay))
        means = fc.to_class_means(model, start)
        path = fc.simulate(model, start, fc.Flow(rtol=1e-12, t1=TS[-1]), metrics=())
        return path.final, [flow(model, means, TS) for flow in flows]

    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(case.start for case in cases))
    ends, forms = run(jnp.array([case.decay for case in cases]), starts)
    assert {form.coordinates for form in forms} == {"class-mean"}
    for i, case in enumerate(cases):
        found = systems.Arrays(*(part[i, -1] for part in systems.arrays(forms[flows.index(case.flow)])))
        assert case.error(found, systems.Arrays(*(part[i] for part in systems.arrays(ends)))) < INTEGRATED


# ---- descent


def descent(start: systems.Arrays, counts, decay, eta: float, steps: int) -> systems.Arrays:
    """All iterates of gradient descent on the full state, by a plain loop."""
    points = [start]
    for _ in range(steps):
        v = systems.velocity(points[-1], counts, decay)
        points.append(systems.Arrays(*(z + eta * dz for z, dz in zip(points[-1], v, strict=True))))
    return systems.Arrays(*(np.stack(parts) for parts in zip(*points, strict=True)))


@pytest.mark.parametrize(
    ("C", "N", "p", "size", "eta", "decay"),
    [
        (3, 3, 15, 0.1, 0.02, (0.0, 0.0, 0.0)),
        (3, 3, 15, 0.6, 0.15, (0.0, 0.0, 0.0)),  # the bias alternates in sign, a singular value changes its own
        (4, 7, 6, 0.1, 0.03, (0.6, 0.6, 0.3)),
        (5, 2, 3, 0.3, 0.03, (2.5, 2.5, 40.0)),
    ],
)
def test_descent_on_the_subspace_is_descent(C, N, p, size, eta, decay):
    counts, steps = (N,) * C, [0, 1, 2, 50, 10]
    start = on_subspace(counts, p, 0.7, size=size)
    found = exact.subspace_descent(ufm(counts, p, weight_decay=decay), start, steps, learning_rate=eta)
    expected = descent(systems.arrays(start), counts, decay, eta, 50)
    assert systems.relative_error(systems.arrays(found), [part[steps] for part in expected]) < ROUNDED


# ---- small times and large


@pytest.mark.parametrize("name", CASES)
def test_at_small_times_the_path_is_a_straight_line(name):
    """`z(t) = z + t z' + O(t^2)`, accurate to all digits at t = 1e-9."""
    case = CASES[name]
    start, t = systems.arrays(case.start), TS[1]
    v = systems.velocity(start, case.counts, case.decay, case.use_bias)
    line = systems.Arrays(*(z + t * dz for z, dz in zip(start, v, strict=True)))
    found = systems.Arrays(*(part[1] for part in case.at(TS)))
    assert case.error(found, line) < 20 * EPS


@pytest.mark.parametrize("name", ["S (3, 3, 15)", "S (5, 2, 3)", "W centred"])
def test_a_bias_that_starts_at_zero_keeps_its_digits(name):
    """`b = (1 - e^{-CNt}) / C` is of the size of t and has full relative accuracy."""
    case = CASES[name]
    case, C = case._replace(start=with_b(case.start, np.zeros(len(case.counts)))), len(case.counts)
    expected = -np.expm1(-sum(case.counts) * TS) / C
    np.testing.assert_allclose(case.at(TS).b, np.repeat(expected[:, None], C, axis=1), rtol=20 * EPS)


LONG = np.array([1e3, 2e3, 1e4, 1e6, 1e8])


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("S")])
def test_the_end_on_the_subspace(name):
    """`W W^T -> r` on the span that W has at the start, `r = s - lam`; to 0 for r < 0, and like `mu / (1 + 2 mu t)` for
    r = 0. The features follow, and the bias is `N / (C N + lam_b)`. A missing mode never grows.
    """
    case = CASES[name]
    found, W0 = case.at(LONG), np.asarray(case.start.W)
    C, N = len(case.counts), case.counts[0]
    U, sigma, _ = np.linalg.svd(W0, full_matrices=False)
    rank, r = np.sum(sigma > ROUNDED), np.sqrt(N) - case.decay[0]
    for t, W, H, b in zip(LONG, found.W, found.H, found.b, strict=True):
        mu = np.maximum(r, 0.0) if r else sigma[:rank] ** 2 / (1 + 2 * sigma[:rank] ** 2 * t)
        np.testing.assert_allclose(W @ W.T, U[:, :rank] * mu @ U[:, :rank].T, rtol=0, atol=ROUNDED * np.max(mu))
        np.testing.assert_allclose(H, np.repeat(W.T, N, axis=1) / np.sqrt(N), rtol=0, atol=ROUNDED * np.max(mu))
        np.testing.assert_allclose(b, N / (C * N + case.decay[2]) * case.use_bias, rtol=ROUNDED)


@pytest.mark.parametrize(
    "name",
    [
        "no bias",
        "no bias, lam > 0",
        "no bias, lam < 0",
        "no bias, decay",
        "no bias, decay above s",
        "no bias, imbalanced",
        "no bias, imbalanced, few features",
        "no bias, imbalanced, few features, lam > 0",
        "W centred",
        "W centred, decay",
        "imbalanced, b settled, lam > 0",
        "imbalanced, W centred",
    ],
)
def test_the_end_of_balanced_flows(name):
    """`Q Q^T -> 2 F` on the eigenvectors of F with its largest positive eigenvalues, as many as there are features."""
    case = CASES[name]
    W, H = np.asarray(case.start.W), np.asarray(case.start.H)
    C, n = len(case.counts), sum(case.counts)
    lam = np.trace(W.T @ W - H @ H.T) / case.p
    target = systems.one_hot(case.counts)
    target = target @ systems.centring(n) if case.use_bias else target
    F = np.block([[lam / 2 * np.eye(C), target], [target.T, -lam / 2 * np.eye(n)]]) - case.decay[0] * np.eye(C + n)
    values, vectors = np.linalg.eigh(F)
    values[: -case.p] = 0.0
    expected = vectors * 2 * values.clip(0.0) @ vectors.T
    for found in gram(case.at(LONG)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDED)


def test_the_origin_stays_where_it_is():
    case = CASES["no bias"]
    origin = jax.tree.map(jnp.zeros_like, case.start)
    assert not np.any(gram(case._replace(start=origin).at(LONG)))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("second")])
def test_the_end_of_the_second_phase(name):
    """In every direction only u or L remains: `u u^T` and `L L^T` become the positive and the negative part of D."""
    case = CASES[name]
    W, H, C = np.asarray(case.start.W), np.asarray(case.start.H), len(case.counts)
    means = systems.one_hot(case.counts) / np.array(case.counts)[:, None]
    H_mean = H @ means.T @ systems.one_hot(case.counts)
    L, u = H - H_mean, W.sum(axis=0) / np.sqrt(C)
    values, vectors = np.linalg.eigh(np.outer(u, u) - L @ L.T)
    values = np.where(np.abs(values) > ROUNDED, values, 0.0)
    top = vectors[:, -1] * np.sign(vectors[:, -1] @ u) * np.sqrt(values[-1].clip(0.0))
    LL = vectors * (-values).clip(0.0) @ vectors.T
    found = case.at(LONG * 100)
    for W_end, H_end in zip(found.W, found.H, strict=True):
        W_wanted = systems.centring(C) @ W + np.outer(np.ones(C), top) / np.sqrt(C)
        np.testing.assert_allclose(W_end, W_wanted, rtol=0, atol=ROUNDED)
        np.testing.assert_allclose(H_end @ H_end.T, H_mean @ H_mean.T + LL, rtol=0, atol=ROUNDED)


def test_the_second_phase_takes_the_inverse_square_of_its_size():
    """`(u, L) -> c (u, L)` and `t -> t / c^2` do not change the path, up to the precision of u within W."""
    small = 1e-5
    paths = [slow((7,) * 4, 6, size=size).at(TS / size**2).W.sum(axis=1) / size for size in (1.0, small)]
    np.testing.assert_allclose(paths[1], paths[0], rtol=0, atol=ROUNDED / small)
    assert np.linalg.norm(paths[0][-1] - paths[0][0]) > 0.1


# ---- half times


@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_half_time(lam):
    """The only mode of two classes, integrated up to its half time, is half of its limit."""
    counts, decay, r = (3, 3), (lam, lam, 0.0), np.sqrt(3) - lam
    start = systems.arrays(on_subspace(counts, 4, size=0.03))
    model, mu = ufm(counts, 4, weight_decay=decay), np.sum(start.W**2)
    t = float(exact.half_time(model, mu))
    W = systems.flow(start, counts, np.array([0.0, t]), decay=decay).W[-1]
    np.testing.assert_allclose(np.sum(W**2), r / 2, rtol=INTEGRATED)
    # A mode above half was at half as long ago as the mirrored mode needs to get there.
    np.testing.assert_allclose(exact.half_time(model, np.array([mu, r - mu])), [t, -t], rtol=ROUNDED)
    tiny = (np.log(r) + 300 * np.log(10)) / (2 * r)
    np.testing.assert_allclose(exact.half_time(model, 1e-300), tiny, rtol=ROUNDED)


# ---- inside JAX


@pytest.mark.parametrize("name", ["S, decay", "W centred, decay", "second phase"])
def test_the_risk_falls_by_the_square_of_its_gradient(name):
    """`dR/dt = -||grad R||^2` along the path, differentiated in time through the closed form, inside jit."""
    case, t = CASES[name], 0.8

    def risk_at(t):
        return fc.risk(case.model, case.flow(case.model, case.start, t[None]))[0]

    slope = systems.compiled(jax.grad(risk_at))(jnp.asarray(t))
    point = systems.Arrays(*(part[0] for part in case.at([t] * len(TS))))
    v = systems.velocity(point, case.counts, case.decay)
    np.testing.assert_allclose(slope, -sum(np.sum(part**2) for part in v), rtol=1e5 * EPS)


def test_the_path_on_the_subspace_is_differentiated_in_its_start_and_decay():
    """`mu(t) = r m / (r e^{-2rt} + m (1 - e^{-2rt}))` of a start `c W0`, `m = c^2 sigma^2`, in c and in the decay."""
    counts, t, c, lam, step = (4, 4, 4), 0.9, 0.3, 0.5, 1e-4
    start = on_subspace(counts, 5, size=1.0)

    def size(c, lam):
        scaled = fc.State(H=c * start.H, W=c * start.W, b=start.b)
        return jnp.sum(exact.subspace_flow(ufm(counts, 5, weight_decay=lam), scaled, [t]).W ** 2)

    sigma = np.linalg.svd(np.asarray(start.W), compute_uv=False)[:2]

    def exact_size(c, lam):
        r, m = 2.0 - lam, (c * sigma) ** 2
        return np.sum(r * m / (r * np.exp(-2 * r * t) + m * -np.expm1(-2 * r * t)))

    found = systems.compiled(jax.grad(size, (0, 1)))(c, lam)
    by_c = (exact_size(c + step, lam) - exact_size(c - step, lam)) / (2 * step)
    by_lam = (exact_size(c, lam + step) - exact_size(c, lam - step)) / (2 * step)
    np.testing.assert_allclose(found, [by_c, by_lam], rtol=100 * step**2)


@pytest.mark.parametrize("name", ["S (3, 4, 2)", "no bias, few features", "second phase, imbalanced"])
def test_single_precision_stays_single_and_finite(name):
    case = CASES[name]
    single = jax.tree.map(lambda x: x.astype(jnp.float32), case.start)
    ts = np.array([0.0, 1e-9, 1.0, 3.0, 1e4])
    states = case.flow(case.model, single, ts)
    assert {x.dtype for x in jax.tree.leaves(states)} == {jnp.dtype(jnp.float32)}
    assert case.error(systems.arrays(states), case.at(ts)) < 1e3 * float(jnp.finfo(jnp.float32).eps)

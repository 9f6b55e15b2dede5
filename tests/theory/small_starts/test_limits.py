"""Where small starts end: the limits as eps -> 0 in closed form, with decay, without balance, without a bias.

The formulas are derived here unless stated otherwise. `s = sqrt N`, `P = I - 11^T/C`; for a start, `B = s Hbar` holds
the scaled class means, `L` is the within-class part, and `V0 = P (W + B^T)/2` grows; its row span is `span`.
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.special import gammaln

import flowcollapse as fc
from flowcollapse.endings.plateau import plateau_time
from flowcollapse.model.columns import within_class_basis
from flowcollapse.model.problem import problem_of

# These programs are short, and this saves a third of the compilation, which takes most of their time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def centring(C: int) -> np.ndarray:
    return np.eye(C) - 1 / C


def small_starts(model, eps, lanes):
    """Full draws, stacked with one per lane, of norm eps (which may differ between lanes)."""
    sizes = np.broadcast_to(eps, lanes)
    starts = [fc.initial.sphere(model, e, key=jax.random.key(i), reduced=False) for i, e in enumerate(sizes)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)


def runner(model, solver="exponential"):
    """A function `(starts, rtol, t1, decays) -> paths`, one lane per start; by default, runs end at the plateau."""

    @compiled
    @functools.partial(jax.vmap, in_axes=(0, None, 0, 0))
    def run(start, rtol, t1, decay):
        decaying = eqx.tree_at(lambda one: one.weight_decay, model, decay)
        t1 = jnp.where(t1 > 0, t1, plateau_time(*problem_of(decaying, start)))
        return fc.simulate(decaying, start, fc.Flow(solver, rtol=rtol, t1=t1, coordinates="class-mean"), metrics=())

    def lanes(starts, rtol, t1=0.0, decays=(0.0, 0.0, 0.0)):
        n = len(starts.W)
        starts, t1, decays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (starts, t1, jnp.asarray(decays)))
        return run(starts, rtol, jnp.broadcast_to(t1, (n,)), jnp.broadcast_to(decays, (n, 3)))

    return lanes


def lanes_of(state):
    """`(W, B, L, b)` of each lane of a state in class-mean columns, in NumPy."""
    return list(zip(*(np.asarray(x) for x in (state.W, state.B, state.L, state.b)), strict=True))


def class_means(model, starts):
    return jax.vmap(lambda start: fc.to_class_means(model, start))(starts)


def mean_modes(W, B, s):
    """`u = W^T 1/sqrt C` and `v = B 1/sqrt C`, turned hyperbolically by 1/(Cs) while the bias goes from 0 to 1/C."""
    C = len(W)
    u, v, c = W.sum(axis=0) / math.sqrt(C), B.sum(axis=1) / math.sqrt(C), 1 / (C * s)
    return u * math.cosh(c) + v * math.sinh(c), v * math.cosh(c) + u * math.sinh(c)


def polar(V):
    """The orthogonal polar factor of V on its rank, and the projector on its row span."""
    U, sigma, Vt = np.linalg.svd(V, full_matrices=False)
    rank = int(np.sum(sigma > 1e-9 * sigma[0]))
    return U[:, :rank] @ Vt[:rank], Vt[:rank].T @ Vt[:rank]


def kappa(C, s):
    """The fraction of v in the span that remains after the escape: `Gamma(a)^2 / (Gamma(a - 1/2) Gamma(a + 1/2))`."""
    a = (1 + C * s) / 2
    return math.exp(2 * gammaln(a) - gammaln(a - 0.5) - gammaln(a + 0.5))


def test_kappa_at_the_sizes_of_the_paper():
    assert abs(kappa(3, math.sqrt(3)) - 0.908777516) < 1e-9


# ---- the plateau, lane by lane

EPS = 1e-4

PAPER = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
S = math.sqrt(3)


@pytest.fixture(scope="module")
def run_paper():
    return runner(PAPER)


@pytest.fixture(scope="module")
def plateau(run_paper):
    """The starts and the paths to the plateau of eight lanes with the paper's sizes."""
    starts = small_starts(PAPER, EPS, 8)
    return starts, run_paper(starts, 1e-10)


def paper_limit(W, B, L):
    """`(W, B, L, b)` at the plateau, to a relative O(eps^2); only the parts of L, u and v outside the span remain."""
    C = len(W)
    frame, inside = polar(centring(C) @ (W + B.T) / 2)
    outside = np.eye(len(inside)) - inside
    u, v = mean_modes(W, B, S)
    u, v, L = outside @ u, outside @ v + kappa(C, S) * inside @ v, outside @ L
    W = math.sqrt(S) * frame + np.outer(np.ones(C), u) / math.sqrt(C)
    B = math.sqrt(S) * frame.T + np.outer(v, np.ones(C)) / math.sqrt(C)
    return W, B, L, 1 / C - W @ v / (S * math.sqrt(C))


def test_the_plateau_time_is_where_what_decays_has_fallen_to_its_target(plateau):
    starts, paths = plateau
    for (W, B, _, _), t_end in zip(lanes_of(class_means(PAPER, starts)), paths.t_end, strict=True):
        smallest = np.linalg.svd(centring(3) @ (W + B.T) / 2, compute_uv=False)[1]
        np.testing.assert_allclose(t_end, (math.log(math.sqrt(S) / smallest) + 20) / S, rtol=1e-10)
    assert np.all(paths.result == fc.Verdict.plateau)


def test_half_the_plateau_time_is_too_short(plateau, run_paper):
    starts, paths = plateau
    assert np.all(run_paper(starts, 1e-6, 0.5 * paths.t_end).result == fc.Verdict.time_limit)


def test_states_at_the_plateau(plateau):
    starts, paths = plateau
    for found, (W0, B0, L0, _) in zip(lanes_of(paths.final), lanes_of(class_means(PAPER, starts)), strict=True):
        exact = paper_limit(W0, B0, L0)
        for x, y, tolerance in zip(found, exact, (3 * EPS**2, 3 * EPS**2, 10 * EPS**3, 10 * EPS**3), strict=True):
            assert np.linalg.norm(x - y) < tolerance


def test_metrics_at_the_plateau(plateau):
    starts, paths = plateau
    names = ("snc1", "snc2", "snc3", "distance", "relative_distance", "nc1_trace", "nc3", "risk")
    found = jax.jit(lambda state: fc.metrics.evaluate(PAPER, state, names))(paths.final)
    C = 3
    for i, (W0, B0, L0, _) in enumerate(lanes_of(class_means(PAPER, starts))):
        W, B, L, _ = paper_limit(W0, B0, L0)
        frame, inside = polar(centring(C) @ (W0 + B0.T) / 2)
        u, v = W.sum(axis=0) / math.sqrt(C), B.sum(axis=1) / math.sqrt(C)
        D = W0.T @ W0 - B0 @ B0.T - L0 @ L0.T
        snc3 = np.linalg.norm(inside @ v) / math.sqrt(S * C)
        distance = math.sqrt(np.sum(L**2) + u @ u + v @ v + snc3**2)
        wanted = {
            "snc1": math.hypot(0.5 * np.linalg.norm(frame @ (D + np.outer(v, v)) @ frame.T), u @ u),
            "snc2": math.sqrt((np.sum(L**2) + np.sum((u - v) ** 2)) / (S * (C - 1))),
            "snc3": snc3,
            "distance": distance,
            "relative_distance": distance / math.sqrt(2 * S * (C - 1) + 1 / C),
            "nc1_trace": np.sum(L**2) / (S * (C - 1)),
            "nc3": np.linalg.norm(u) / math.sqrt(S * (C - 1)),
            "risk": 0.5 * np.sum((L.T @ u) ** 2),
        }
        for name in names:
            # SNC1 is of order eps^2 and the risk of order eps^4, from numbers of order one: fewer digits remain.
            tolerance = 1e-4 if name in ("snc1", "risk") else 1e-6
            np.testing.assert_allclose(found[name][i], wanted[name], rtol=tolerance, err_msg=name)


# ---- relative accuracy at small eps


def snc3_errors(paths, starts):
    """The relative error of SNC3 = ||b - 1/C|| with respect to its limit, lane by lane."""
    errors = []
    for (_, _, _, b), (W0, B0, L0, _) in zip(lanes_of(paths.final), lanes_of(class_means(PAPER, starts)), strict=True):
        errors.append(np.linalg.norm(b - 1 / 3) / np.linalg.norm(paper_limit(W0, B0, L0)[3] - 1 / 3) - 1)
    return np.abs(errors)


SMALL = np.array([1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-8, 1e-8])


def test_snc3_keeps_its_relative_accuracy_down_to_eps_1e_8(run_paper):
    starts = small_starts(PAPER, SMALL, len(SMALL))
    assert np.max(snc3_errors(run_paper(starts, 1e-6), starts)) < 2e-4


def test_an_explicit_solver_loses_snc3_at_small_eps():
    starts = small_starts(PAPER, SMALL, len(SMALL))
    errors = snc3_errors(runner(PAPER, "tsit5")(starts, 1e-6), starts)
    assert np.all(errors[SMALL <= 1e-4] > 0.01)
    assert np.all(errors[SMALL <= 1e-8] > 100)


# ---- the second phase


def test_the_second_phase_is_an_exact_invariant_manifold(run_paper):
    C, N, p, t = 3, 3, 15, 1.5
    rng = np.random.default_rng(3)
    Q = np.asarray(within_class_basis((N,) * C, jnp.float64))
    states, exact = [], []
    for size in np.linspace(0.1, 0.8, 8):
        frame, inside = polar(centring(C) @ rng.normal(size=(C, p)))
        outside = np.eye(p) - inside
        star = math.sqrt(S) * frame
        u, L = size * outside @ rng.normal(size=p), size * outside @ rng.normal(size=(p, Q.shape[1]))
        W = star + np.outer(np.ones(C), u) / math.sqrt(C)
        H = np.repeat(star.T, N, axis=1) / S + L @ Q.T
        states.append(fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.full(C, 1 / C)))
        # D = u u^T - L L^T is conserved, and u(t) = e^{Dt} u / sqrt(1 + 2 u^T (int_0^t e^{2Ds} ds) u).
        D = np.outer(u, u) - L @ L.T
        block = expm(np.block([[2 * D, np.eye(p)], [np.zeros((p, 2 * p))]]) * t)
        ut = expm(D * t) @ u / math.sqrt(1 + 2 * u @ block[:p, p:] @ u)
        exact.append((star + np.outer(np.ones(C), ut) / math.sqrt(C), star.T, np.outer(ut, ut) - D))
    paths = run_paper(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), 1e-11, t)
    for (W, B, L, b), (W_exact, B_exact, LLt) in zip(lanes_of(paths.final), exact, strict=True):
        for found, wanted in ((W, W_exact), (B, B_exact), (L @ L.T, LLt), (b, np.full(C, 1 / C))):
            assert np.linalg.norm(found - wanted) < 1e-10


# ---- fewer features, unequal classes, no bias


def projector(V):
    """The projector on the column span of V."""
    U = np.linalg.svd(V, full_matrices=False)[0]
    return U @ U.T


def risks(model, state):
    return np.asarray(jax.jit(lambda state: fc.risk(model, state))(state))


def test_fewer_features_than_the_frame_needs():
    C, N, p, s = 4, 3, 2, math.sqrt(3)
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    starts = small_starts(model, EPS, 4)
    paths = runner(model)(starts, 1e-10)
    assert np.all(paths.result == fc.Verdict.plateau)
    np.testing.assert_allclose(risks(model, paths.final), N * (C - 1 - p) / 2, rtol=1e-12)
    for (W, _, _, _), (W0, B0, _, _) in zip(lanes_of(paths.final), lanes_of(class_means(model, starts)), strict=True):
        assert np.linalg.norm(W @ W.T - s * projector(centring(C) @ (W0 + B0.T))) < 3 * EPS**2


def test_unequal_classes():
    # W W^T -> (Z Z^T)^{1/2} and W B -> Z with Z = diag(sqrt n) (I - sqrt n sqrt n^T / n_tot), b -> n / n_tot.
    counts, eps = (5, 1, 3), 1e-5
    n = np.array(counts, dtype=float)
    model = fc.UFM(num_classes=3, samples_per_class=counts, num_features=4)
    paths = runner(model)(small_starts(model, eps, 4), 1e-10)
    assert np.all(paths.result == fc.Verdict.plateau)
    Z = np.diag(np.sqrt(n)) @ (np.eye(3) - np.outer(np.sqrt(n), np.sqrt(n)) / n.sum())
    U, sigma, _ = np.linalg.svd(Z)
    for W, B, _, b in lanes_of(paths.final):
        assert np.linalg.norm(W @ W.T - U @ np.diag(sigma) @ U.T) < 10 * eps**2
        assert np.linalg.norm(W @ B - Z) < eps
        assert np.linalg.norm(b - n / n.sum()) < eps
    np.testing.assert_array_less(risks(model, paths.final), 10 * eps**4)


@pytest.mark.parametrize("p", [4, 2])
def test_without_a_bias(p):
    # All C modes grow, V0 = (W + B^T)/2, and there is no slow phase: the missing features determine the risk.
    C, N, s = 3, 4, 2.0
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p, use_bias=False)
    starts = small_starts(model, EPS, 4)
    paths = runner(model)(starts, 1e-10)
    assert np.all(paths.result == fc.Verdict.plateau)
    np.testing.assert_allclose(risks(model, paths.final), N * max(0, C - p) / 2, rtol=1e-12, atol=1e-20)
    for (W, B, L, _), (W0, B0, L0, _) in zip(lanes_of(paths.final), lanes_of(class_means(model, starts)), strict=True):
        frame, inside = polar((W0 + B0.T) / 2)
        assert np.linalg.norm(W - math.sqrt(s) * frame) < 3 * EPS**2
        assert np.linalg.norm(B - math.sqrt(s) * frame.T) < 3 * EPS**2
        assert np.linalg.norm(L - L0 + inside @ L0) < 10 * EPS**3


# ---- with decay


def decay_limit(decay, C, N, p):
    """Limits of `W W^T` and b of a small start: with `g = sqrt(lam_W lam_H)`, collapse shrinks by g, to 0 at `g >= s`.

    If the decay of the bias is strong enough and a feature is free, the mean mode grows too, to x.
    """
    lam_W, lam_H, lam_b = decay
    s, g = math.sqrt(N), math.sqrt(lam_W * lam_H)
    b = N / (C * N + lam_b)
    x = 0.0
    if lam_b > 0 and p > C - 1:
        x = max(0.0, s - g - C * N * g / lam_b)
        b = min(b, s * g / lam_b)
    WW = math.sqrt(lam_H / lam_W) * (max(0.0, s - g) * centring(C) + x * np.full((C, C), 1 / C))
    return WW, np.full(C, b), x


# Without and with a decay of the bias; mean mode off, on, on with unequal decays; so much decay that W vanishes.
DECAYS = np.array(
    [(0.5, 0.5, 0.0), (0.4, 0.9, 0.0), (0.5, 0.5, 1.0), (0.1, 0.1, 2.0), (0.2, 0.05, 1.5), (2.5, 2.5, 0.3)]
)


@pytest.fixture(scope="module")
def run_with_frame_alone():
    """p = C - 1: exactly the features that the frame needs."""
    return runner(fc.UFM(num_classes=3, samples_per_class=4, num_features=2))


@pytest.fixture(scope="module")
def run_with_room():
    """Enough features for the frame and the mean mode."""
    return runner(fc.UFM(num_classes=3, samples_per_class=4, num_features=5))


@pytest.mark.parametrize("p", [5, 2])
def test_the_limits_with_decay(p, run_with_frame_alone, run_with_room):
    C, N = 3, 4
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=p)
    run = run_with_frame_alone if p == C - 1 else run_with_room
    rtol = 1e-9
    paths = run(small_starts(model, EPS, len(DECAYS)), rtol, decays=DECAYS)
    assert np.all(paths.result == fc.Verdict.plateau)
    mean_mode_is_on = []
    for (W, _, L, b), decay in zip(lanes_of(paths.final), DECAYS, strict=True):
        WW, b_limit, x = decay_limit(decay, C, N, p)
        mean_mode_is_on.append(x > 0)
        # The limits attract at the rates of the decay, the mean mode as slowly as it grew; the last steps leave rtol.
        tolerance = 1e-6 if x > 0 else rtol
        assert np.linalg.norm(W @ W.T - WW) < tolerance
        assert np.linalg.norm(b - b_limit) < tolerance
        assert np.linalg.norm(L) < 1e-10
    assert mean_mode_is_on == [p == 5 and i in (3, 4) for i in range(len(DECAYS))]


def test_a_bias_that_decays_alone_leaves_the_mean_to_the_features(run_with_room):
    """Only b decays: it falls to 0, the mean mode grows at `s lam_b / (CN + lam_b)`, and W ends as an orthogonal frame.

    A start on S has no mean mode and stays at the saddle on S; half the time is too short.
    """
    model = fc.UFM(num_classes=3, samples_per_class=4, num_features=5)
    on_S = fc.initial.on_subspace(model, EPS, key=jax.random.key(0))
    generic = jax.tree.map(lambda x: x[0], small_starts(model, EPS, 1))
    starts = jax.tree.map(lambda *leaves: jnp.stack(len(DECAYS) // 2 * leaves), generic, on_S)  # the lanes of DECAYS
    decays = np.broadcast_to((0.0, 0.0, 0.5), DECAYS.shape)
    paths = run_with_room(starts, 1e-9, decays=decays)
    assert list(paths.result[:2]) == [fc.Verdict.plateau, fc.Verdict.saddle]
    W, _, _, b = lanes_of(paths.final)[0]
    assert np.linalg.norm(W @ W.T - 2.0 * np.eye(3)) < 1e-6
    assert np.linalg.norm(b) < 1e-6
    short = run_with_room(starts, 1e-9, t1=paths.t_end / 2, decays=decays)
    assert short.result[0] == fc.Verdict.time_limit


def test_as_many_features_as_the_frame_needs(run_with_frame_alone):
    # The span is the whole space: L and u vanish, so NC1 = 0, but the mean mode v stays and collapse is never exact.
    C, N, s = 3, 4, 2.0
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=2)
    starts = small_starts(model, EPS, len(DECAYS))
    paths = run_with_frame_alone(starts, 1e-9)
    assert np.all(paths.result == fc.Verdict.plateau)
    for (W, B, L, b), (W0, B0, _, _) in zip(lanes_of(paths.final), lanes_of(class_means(model, starts)), strict=True):
        frame, _ = polar(centring(C) @ (W0 + B0.T) / 2)
        v = kappa(C, s) * mean_modes(W0, B0, s)[1]
        assert np.linalg.norm(W - math.sqrt(s) * frame) < 3 * EPS**2
        assert np.linalg.norm(L) < 1e-6 * EPS
        np.testing.assert_allclose(np.linalg.norm(B - W.T), np.linalg.norm(v), rtol=1e-5)
        assert np.linalg.norm(b - 1 / C + math.sqrt(s) * frame @ v / (s * math.sqrt(C))) < 1e-5 * EPS

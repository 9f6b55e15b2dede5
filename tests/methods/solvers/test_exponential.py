"""The exponential solver on the model: its accuracy, agreement with other methods, cost and step control."""

import itertools
import math

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from scipy.integrate import solve_ivp
from systems import compiled

import flowcollapse as fc
from flowcollapse.methods.solvers.control import BlockControl

# ---- against other methods, on a stiff problem of the model

N, C, P = 100, 3, 5
RATE = C * N
DECAY = (0.01, 0.02, 0.03)
# Times are dense in the initial layer, where the bias jumps to 1/C within a few 1/(CN), and cover the whole run.
TIMES = np.concatenate([[0.0], np.geomspace(1e-2 / RATE, 20 / RATE, 30), np.linspace(0.1, 2.5, 41)])
LAYER = slice(1, 31)


def field(W, B, L, b):
    """The flow in class means: with `E = W B/s + b 1^T - I`, `W' = -s E B^T - W L L^T`, `B' = -s W^T E`, ..."""
    s = math.sqrt(N)
    E = W @ B / s + b[:, None] - np.eye(C)
    return (
        -s * E @ B.T - W @ L @ L.T - DECAY[0] * W,
        -s * W.T @ E - DECAY[1] * B,
        -W.T @ W @ L - DECAY[1] * L,
        -N * E.sum(axis=1) - DECAY[2] * b,
    )


def norms(x) -> np.ndarray:
    """The norm of a block at every time; the leading axis is time."""
    return np.sqrt(np.sum(np.asarray(x).reshape(len(x), -1) ** 2, axis=1))


@pytest.fixture(scope="module")
def start():
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=P, weight_decay=DECAY)
    return model, fc.initial.sphere(model, 1e-2, key=jax.random.key(5), reduced=True)


@pytest.fixture(scope="module")
def reference(start):
    """`(W, B, L, b)` at `TIMES` by SciPy's DOP853, restarted at every time so that its interpolation plays no part."""
    parts = [np.asarray(x) for x in (start[1].W, start[1].B, start[1].L, start[1].b)]
    cuts = np.cumsum([x.size for x in parts])[:-1]

    def unpack(y):
        return [flat.reshape(x.shape) for flat, x in zip(np.split(y, cuts), parts, strict=True)]

    def velocity(t, y):
        return np.concatenate([x.ravel() for x in field(*unpack(y))])

    states = [np.concatenate([x.ravel() for x in parts])]
    for t0, t1 in itertools.pairwise(TIMES):
        first = min(t1 - t0, 2 / RATE)
        piece = solve_ivp(velocity, (t0, t1), states[-1], "DOP853", rtol=1e-13, atol=1e-17, first_step=first)
        states.append(piece.y[:, -1])
    return tuple(np.stack(blocks) for blocks in zip(*(unpack(y) for y in states), strict=True))


@pytest.fixture(scope="module")
def flow(start):
    """A function `rtol -> (W, B, L, b) at TIMES`, by the package's default solver and coordinates."""

    @compiled
    def run(rtol):
        model, state = start
        return fc.simulate(model, state, fc.Flow(rtol=rtol), TIMES, save_states=True, metrics=()).states

    def blocks(rtol):
        states = run(rtol)
        return tuple(np.asarray(x) for x in (states.W, states.B, states.L, states.b))

    return blocks


@pytest.mark.parametrize("rtol", [1e-6, 1e-9, 1e-11])
def test_states_at_all_times_are_those_of_scipy_to_the_tolerance(flow, reference, rtol):
    found = flow(rtol)
    for name, x, exact in zip("WBL", found, reference, strict=False):
        # Relative to the size of the block so far, as in the step control; the times are anywhere inside the steps.
        scale = norms(exact) + norms(exact)[0]
        assert np.max(norms(x - exact) / scale) < 5 * rtol, name


def test_the_bias_is_accurate_to_the_tolerance_throughout_the_initial_layer(flow, reference):
    rtol = 1e-6
    bias, exact = flow(rtol)[3], reference[3]
    assert np.max(norms(exact)[LAYER]) > 0.99 * math.sqrt(1 / C)
    assert np.max(norms(bias - exact)[LAYER] / norms(exact)[LAYER]) < rtol
    # The mean residual is measured relative to B, so the bias keeps its digits while B is small and afterwards.
    scale = norms(reference[1]) + norms(reference[1])[0]
    assert np.max(norms(bias - exact) / scale) < rtol


def kencarp5(parts, times, rtol):
    """The states at `times` of the flow in `(W, B, L, e)`, by the implicit-explicit pair of Kennedy and Carpenter.

    The diagonal part is solved exactly, and steps are controlled block by block.
    """
    explicit, implicit = dfx.KenCarp5.tableau.tableaus
    assert implicit.a_diagonal is not None
    gamma, s = implicit.a_diagonal[1], math.sqrt(N)
    rate = RATE + DECAY[2]

    def mean_part(W, B):
        return (s * W @ B.sum(axis=1) - N) / RATE

    def forcing(y):
        W, B, L, e = y
        m = mean_part(W, B)
        Wv, Bv, Lv, _ = field(W, B, L, e - m)
        return Wv, Bv, Lv, DECAY[2] * m + s * (Wv @ B + W @ Bv).sum(axis=1) / RATE

    def combine(y, h, weights, ks):
        return [x + h * sum(w * k[i] for w, k in zip(weights, ks, strict=True)) for i, x in enumerate(y)]

    def step(y, h):
        ks, relaxed = [forcing(y)], [-rate * y[3]]
        for a_explicit, a_implicit in zip(explicit.a_lower, implicit.a_lower, strict=True):
            stage = combine(y, h, a_explicit, ks)
            known = stage[3] + h * sum(w * r for w, r in zip(a_implicit, relaxed, strict=True))
            stage[3] = known / (1 + h * gamma * rate)
            ks.append(forcing(stage))
            relaxed.append(-rate * stage[3])
        full = [(*k[:3], k[3] + r) for k, r in zip(ks, relaxed, strict=True)]
        end = combine(y, h, explicit.b_sol, full)
        zero = [np.zeros_like(x) for x in y]
        return end, combine(zero, h, explicit.b_error, full)

    W, B, L, b = parts
    y = [W, B, L, b + mean_part(W, B)]
    first = [np.linalg.norm(x) for x in y]
    t, h, states = 0.0, 1e-2 / RATE, []
    for until in times:
        while t < until:
            h = min(h, until - t)
            end, error = step(y, h)
            scale = [f + max(np.linalg.norm(x), np.linalg.norm(z)) for f, x, z in zip(first, y, end, strict=True)]
            scale[3] = scale[1]
            worst = max(float(np.linalg.norm(x)) / (rtol * k) for x, k in zip(error, scale, strict=True))
            if worst <= 1:
                t, y = t + h, end
            h *= min(10.0, max(0.2, 0.9 * (worst + 1e-30) ** -0.2))
        states.append((*y[:3], y[3] - mean_part(y[0], y[1])))
    return tuple(np.stack(blocks) for blocks in zip(*states, strict=True))


def test_it_agrees_with_kencarp5(flow, start):
    which = np.array([5, 15, 25, 40, 55, len(TIMES) - 1])
    parts = [np.asarray(x) for x in (start[1].W, start[1].B, start[1].L, start[1].b)]
    other = kencarp5(parts, TIMES[which], rtol=1e-9)
    for name, x, y in zip("WBLb", flow(1e-11), other, strict=True):
        assert np.max(norms(x[which] - y) / (norms(y) + norms(x)[0])) < 5e-9, name


# ---- on every geometry, with unequal counts and decay


@pytest.mark.parametrize(("C", "N", "p"), [(3, 3, 15), (5, 2, 3), (3, 4, 2), (3, 1, 5), (2, 3, 4), (3, 4, 6)])
def test_states_are_right_to_a_hundred_rtol_with_unequal_counts_decay_and_large_starts(C, N, p):
    counts, ts = (N + 2, *[N] * (C - 1)), np.linspace(0.0, 10.0, 13)
    none, some = (0.0, 0.0, 0.0), (0.2, 0.3, 0.1)
    cases = [(none, 0.3, 1e-10), (some, 0.3, 1e-10), (some, 1.5, 1e-10), (none, 2.0, 1e-12)]
    plain = fc.UFM(num_classes=C, samples_per_class=counts, num_features=p)
    starts = [fc.initial.sphere(plain, eps, key=jax.random.key(C + p)) for _, eps, _ in cases]

    @compiled
    @jax.vmap
    def run(decay, start, rtol):
        model = fc.UFM(num_classes=C, samples_per_class=counts, num_features=p, weight_decay=decay)
        method = fc.Flow(rtol=rtol, approach="explicit")
        return fc.simulate(model, start, method, ts, save_states=True, metrics=()).states

    decays = tuple(jnp.asarray(column) for column in zip(*(decay for decay, _, _ in cases), strict=True))
    rtols = jnp.asarray([rtol for *_, rtol in cases])
    lanes = run(decays, jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), rtols)
    for i, ((decay, _, rtol), start) in enumerate(zip(cases, starts, strict=True)):
        exact = systems.flow(systems.arrays(start), counts, ts, decay=decay)
        for name in ("W", "b"):
            found, expected = np.asarray(getattr(lanes, name)[i]), getattr(exact, name)
            assert np.max(norms(found - expected)) < 100 * rtol * np.max(norms(expected)), (name, decay, rtol)


def test_states_inside_of_long_steps_are_as_accurate_as_their_ends():
    """From large starts at a loose tolerance, the end alone allows steps in which DOP853's output errs by 100 rtol."""
    decay, rtol = (0.01, 0.01, 0.01), 1e-6
    model = fc.UFM(num_classes=2, samples_per_class=1, num_features=7, weight_decay=decay)
    start, ts = fc.initial.sphere(model, 3.0, key=jax.random.key(2)), np.linspace(0.0, 10.0, 101)
    run = compiled(lambda start: fc.simulate(model, start, fc.Flow(rtol=rtol), ts, save_states=True, metrics=()).states)
    states, exact = run(start), systems.flow(systems.arrays(start), model.counts, ts, decay=decay)
    for name, tolerance in (("W", 10), ("H", 10), ("b", 100)):
        found, expected = np.asarray(getattr(states, name)), getattr(exact, name)
        assert np.max(norms(found - expected)) < tolerance * rtol * np.max(norms(expected)), name


# ---- cost


@pytest.fixture(scope="module")
def paths():
    """C = 10, p = 64, rtol 1e-8, to the plateau, with a hundred and with a million samples per class."""
    found = {}
    for samples in (100, 10**6):
        model = fc.UFM(num_classes=10, samples_per_class=samples, num_features=64)
        draw = jax.jit(lambda key, model=model: fc.initial.sphere(model, 1e-3, key=key, reduced=True))
        start = draw(jax.random.key(0))
        found[samples] = compiled(lambda start, model=model: fc.simulate(model, start, fc.Flow(), metrics=()))(start)
    return found


def test_evaluations_hardly_grow_from_a_hundred_to_a_million_samples_a_class(paths):
    few, many = (int(paths[samples].stats["evaluations"]) for samples in (100, 10**6))
    assert paths[10**6].result == paths[100].result == fc.Verdict.plateau
    assert many < 1.3 * few
    assert few < 800


def test_the_end_of_a_run_of_a_million_samples_is_held_in_class_means_and_refuses_to_be_samples(paths):
    final = paths[10**6].final
    assert final.B.shape == (64, 10)
    # Up to eps, W W^T = s P and W^T = B.
    s, P_ = 1e3, np.eye(10) - 1 / 10
    np.testing.assert_allclose(final.W @ final.W.T / s, P_, atol=1e-4)
    np.testing.assert_allclose(final.B.T, final.W, atol=1e-2)
    with pytest.raises(fc.UsageError, match=r"4\.8 GiB.*state\.B"):
        _ = final.H


# ---- step control


def control_decision(errors, before, after, h=0.5):
    """Whether a step is kept, and the factor for the next step, for blocks of given norms."""
    control = BlockControl(  # pyright: ignore[reportCallIssue]: diffrax's abstract fields atol and norm are properties
        rtol=jnp.asarray(1e-3),
        block_atol=jnp.asarray([1e-6, 1e-3]),
        block_norms=lambda y: y,
        block_scales=lambda norms: norms.at[1].set(norms[0]),
    )
    zero, end = jnp.zeros(()), jnp.asarray(h)
    norms = [jnp.asarray(x, jnp.float64) for x in (errors, before, after)]
    first = control.init(None, zero, zero + 10.0, norms[1], end, None, lambda *_: None, 8)
    keep, t0, t1, *_ = control.adapt_step_size(zero, end, norms[1], norms[2], None, norms[0], 8, first[1])
    return bool(keep), float(t1 - t0) / h


@pytest.mark.parametrize(
    ("errors", "keep"),
    [
        # First block: 1e-6 + 1e-3 max(2, 4). Second block: 1e-3 + 1e-3 * 4, measured relative to the first one's size.
        ((4.000e-3, 0.0), True),
        ((4.002e-3, 0.0), False),
        ((0.0, 4.999e-3), True),
        ((0.0, 5.001e-3), False),
        ((float("nan"), 0.0), False),
    ],
)
def test_a_step_is_kept_if_every_block_errs_less_than_its_own_size_allows(errors, keep):
    assert control_decision(errors, before=(2.0, 9.0), after=(4.0, 9.0))[0] == keep


def test_the_next_step_follows_the_eighth_root_of_the_error():
    _, accepted = control_decision((4.001e-3 / 2**8, 0.0), before=(2.0, 0.0), after=(4.0, 0.0))
    _, rejected = control_decision((4.001e-3 * 2**8, 0.0), before=(2.0, 0.0), after=(4.0, 0.0))
    assert abs(accepted / rejected - 4.0) < 1e-12
    assert 0.4 < rejected < 0.5

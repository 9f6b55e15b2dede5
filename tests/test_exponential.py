"""The exponential solver: exact where the problem is stiff, of its order elsewhere, and equal to other methods."""

import decimal
import functools
import itertools
import math

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowcollapse as fc
from flowcollapse.exponential import ExponentialDOP853, phi
from flowcollapse.solvers import BlockControl

EPS = float(np.finfo(np.float64).eps)

# These programs are short: most of their time is the compiler's, which this saves a third of.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def exact_phi(k: int, z: float) -> float:
    """`phi_k(-z)` in a hundred digits: `phi_0(w) = e^w`, `phi_{j+1}(w) = (phi_j(w) - 1/j!)/w`, or the series at 0."""
    with decimal.localcontext() as context:
        context.prec = 100
        w = -decimal.Decimal(z)
        if z < 1e-3:
            value = decimal.Decimal(0)
            for j in reversed(range(20)):
                value = value * w + 1 / decimal.Decimal(math.factorial(j + k))
            return float(value)
        value = w.exp()
        for j in range(k):
            value = (value - 1 / decimal.Decimal(math.factorial(j))) / w
        return float(value)


# ---- exact on the stiff linear part


@pytest.mark.parametrize("k", range(7))
def test_phi_functions_are_right_for_every_rate(k):
    z = np.concatenate([[0.0], np.geomspace(1e-12, 1e12, 97), [0.999999, 1.0, 1.000001]])
    found = np.asarray(jax.jit(lambda z: phi(z, 6))(jnp.asarray(z))[k])
    wanted = np.array([exact_phi(k, x) for x in z])
    # exp(-z) itself carries the rounding of z; above z = 1 the recursion's first terms lose at most three digits.
    np.testing.assert_allclose(found, wanted, rtol=1e-12 if k else 1e3 * EPS, atol=1e-300)


RATES = np.array([0.0, 1e-6, 0.1, 1.0, 30.0, 1e3, 1e6, 1e12])
FORCING = np.array([0.7, -1.1, 0.4, 0.9, -0.3, 0.2])


def polynomial_problem():
    """`slow' = 0` and `e' = -rate e + sum_m c_m t^m`: linear, with a forcing of degree 5."""

    def forcing(t, y, rate):
        return jnp.zeros_like(y[0]), jnp.polyval(jnp.asarray(FORCING[::-1]), t)

    def relaxation(t, y, rate):
        return jnp.zeros_like(y[0]), -rate * y[1]

    return dfx.MultiTerm(dfx.ODETerm(forcing), dfx.ODETerm(relaxation))


def exact_response(rate: float, e0: float, t: float) -> float:
    """`e^{-at} e0 + sum_m c_m m! t^{m+1} phi_{m+1}(-at)`."""
    driven = (c * math.factorial(m) * t ** (m + 1) * exact_phi(m + 1, rate * t) for m, c in enumerate(FORCING))
    return math.exp(-rate * t) * e0 + sum(driven)


@pytest.fixture(scope="module")
def stiff_step():
    """One step of size 0.7 of the linear problem at every rate: its end, and its output at some fractions inside."""

    xs, h, zero = (0.01, 0.3, 0.83, 1.0), jnp.asarray(0.7), jnp.zeros(())

    @compiled
    @jax.vmap
    def step(rate):
        solver, terms = ExponentialDOP853(), polynomial_problem()
        y0 = (jnp.ones(1), jnp.full(1, 2.0))
        state = solver.init(terms, zero, h, y0, rate)
        end, _, dense, _, _ = solver.step(terms, zero, h, y0, rate, state, made_jump=False)
        output = solver.interpolation_cls(t0=zero, t1=h, **dense)
        return end[1][0], jnp.stack([output.evaluate(x * h)[1][0] for x in xs])

    end, inside = step(jnp.asarray(RATES))
    return np.asarray(end), np.asarray(inside), xs


def test_one_step_is_exact_for_a_linear_mode_of_any_rate(stiff_step):
    end, _, _ = stiff_step
    for found, rate in zip(end, RATES, strict=True):
        np.testing.assert_allclose(found, exact_response(rate, 2.0, 0.7), rtol=1e-11)


def test_output_inside_a_step_is_exact_for_a_linear_mode_of_any_rate(stiff_step):
    _, inside, xs = stiff_step
    for x, row in zip(xs, inside.T, strict=True):
        for found, rate in zip(row, RATES, strict=True):
            np.testing.assert_allclose(found, exact_response(rate, 2.0, 0.7 * x), rtol=1e-11)


# ---- order


def driven_rotation(coupling):
    """A problem with the solution `slow = (cos t, sin t)`, `e = exp(-t/2) cos 3t`, and its two terms.

    With `coupling = 1` the two parts drive each other; with 0 the slow part is on its own.
    """

    def slow(t):
        return jnp.stack([jnp.cos(t), jnp.sin(t)])

    def fast(t):
        return jnp.exp(-t / 2) * jnp.cos(3 * t)[None]

    def forcing(t, y, rate):
        (x, z), e = y
        off = e - fast(t)
        slow_velocity = jnp.stack([-z, x]) * (x**2 + z**2) ** 2 + coupling * off * jnp.stack([jnp.ones_like(x), x])
        driven = off * x + (x - jnp.cos(t)) - (z - jnp.sin(t)) * e
        return slow_velocity, jax.jvp(fast, (t,), (jnp.ones_like(t),))[1] + rate * fast(t) + coupling * driven

    def relaxation(t, y, rate):
        return jnp.zeros_like(y[0]), -rate * y[1]

    return dfx.MultiTerm(dfx.ODETerm(forcing), dfx.ODETerm(relaxation)), slow, fast


@compiled
def rotation_errors(coupling, num_steps):
    """Errors of the slow part at `t = 2` and of the slow and fast output inside the steps, with a rate of 1."""
    terms, slow, fast = driven_rotation(coupling)
    solver, rate, h = ExponentialDOP853(), jnp.ones(()), 2.0 / num_steps
    zero = jnp.zeros(())
    y0 = (slow(zero), fast(zero))

    def advance(i, carry):
        y, state, worst = carry
        t = i * h
        y, _, dense, state, _ = solver.step(terms, t, t + h, y, rate, state, made_jump=False)
        inside = t + 0.4 * h
        output = solver.interpolation_cls(t0=t, t1=t + h, **dense).evaluate(inside)
        errors = [jnp.max(jnp.abs(found - exact(inside))) for found, exact in zip(output, (slow, fast), strict=True)]
        return y, state, jnp.maximum(worst, jnp.stack(errors))

    init = (y0, solver.init(terms, zero, zero + h, y0, rate), jnp.zeros(2))
    y, _, worst = jax.lax.fori_loop(0, num_steps, advance, init)
    return jnp.concatenate([jnp.max(jnp.abs(y[0] - slow(zero + 2.0)))[None], worst])


def slope(steps, errors) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_the_slow_part_converges_with_order_eight_and_its_output_with_seven():
    steps = np.array([4, 6, 8, 12, 16])
    errors = np.array([rotation_errors(0.0, n) for n in steps])
    assert slope(steps, errors[:, 0]) > 7.7
    assert slope(steps, errors[:, 1]) > 6.7
    # Six nodes carry the forcing: the fast part is exact up to degree five, its output inside a step errs as h^6.
    assert slope(steps, errors[:, 2]) > 5.7


def test_parts_that_drive_each_other_converge_with_order_five():
    # The first stages know the fast part to low order only, which a slow part that depends on it strongly will feel.
    steps = np.array([8, 12, 16, 24, 32])
    errors = np.array([rotation_errors(1.0, n) for n in steps])
    assert slope(steps, errors[:, 0]) > 4.7
    assert np.all(errors[:, 0] < 10 * errors[-1, 0] * (steps[-1] / steps) ** 5)


# ---- against other methods, on a stiff problem of the model

N, C, P = 100, 3, 5
RATE = C * N
DECAY = (0.01, 0.02, 0.03)
# Fine in the initial layer, where the bias jumps to 1/C within a few 1/(CN), and over the whole run.
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
    """The norm of a block at every time, the leading axis."""
    return np.sqrt(np.sum(np.asarray(x).reshape(len(x), -1) ** 2, axis=1))


@pytest.fixture(scope="module")
def start():
    model = fc.UFM(num_classes=C, samples_per_class=N, num_features=P, weight_decay=DECAY)
    return model, fc.initial.sphere(model, 1e-2, key=jax.random.key(5), reduced=True)


@pytest.fixture(scope="module")
def reference(start):
    """`(W, B, L, b)` at `TIMES` by SciPy's DOP853, restarted at every time so that its own output plays no part."""
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
        # Against the block's size so far, as the steps are controlled; times lie anywhere inside the steps.
        scale = norms(exact) + norms(exact)[0]
        assert np.max(norms(x - exact) / scale) < 5 * rtol, name


def test_the_bias_is_accurate_to_the_tolerance_throughout_the_initial_layer(flow, reference):
    rtol = 1e-6
    bias, exact = flow(rtol)[3], reference[3]
    assert np.max(norms(exact)[LAYER]) > 0.99 * math.sqrt(1 / C)
    assert np.max(norms(bias - exact)[LAYER] / norms(exact)[LAYER]) < rtol
    # The mean residual is measured against B: the bias keeps its digits while B is still small, and after it.
    scale = norms(reference[1]) + norms(reference[1])[0]
    assert np.max(norms(bias - exact) / scale) < rtol


def kencarp5(parts, times, rtol):
    """The flow in `(W, B, L, e)` by the implicit-explicit pair of Kennedy and Carpenter, its diagonal part solved
    exactly, with steps controlled block by block. Returns the states at `times`."""
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


# ---- cost


@pytest.fixture(scope="module")
def paths():
    """C = 10, p = 64, rtol 1e-8, to the plateau, with a hundred and with a million samples a class."""
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
    # To eps: W W^T = s P and W^T = B.
    s, P_ = 1e3, np.eye(10) - 1 / 10
    np.testing.assert_allclose(final.W @ final.W.T / s, P_, atol=1e-4)
    np.testing.assert_allclose(final.B.T, final.W, atol=1e-2)
    with pytest.raises(fc.UsageError, match=r"4\.8 GiB.*state\.B"):
        _ = final.H


# ---- step control


def control_decision(errors, before, after, h=0.5):
    """Whether a step is kept, and the factor to the next, for blocks of given norms."""
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
        # The first block: 1e-6 + 1e-3 max(2, 4). The second: 1e-3 + 1e-3 * 4, measured against the first one's size.
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

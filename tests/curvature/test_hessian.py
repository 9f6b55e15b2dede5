"""The Hessian against its dense form in NumPy: products, sharpness, and the full spectrum from reduced coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems
from hessians import flat, matrix, operator
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from trial_losses import Trial

import flowcollapse as fc
from flowcollapse._linalg.lanczos import dominant, krylov
from flowcollapse.curvature.hessian import hessian_trace, hessian_vector_product, largest_eigenvalue, sharpness
from flowcollapse.curvature.spectrum import hessian_spectrum, num_parameters, spectral_density
from flowcollapse.model.problem import problem_of

EPS = float(jnp.finfo(jnp.float64).eps)
SINGLE = float(jnp.finfo(jnp.float32).eps)


def ufm(C, N, p, **options):
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, **options)


# Hidden columns, hidden rows, unequal counts, unequal decays, no bias.
MODELS = {
    "columns": ufm(4, 7, 3, weight_decay=(0.3, 0.5, 0.2)),
    "columns, imbalanced": ufm(3, (5, 1, 6), 4),
    "rows, no bias": ufm(2, 3, 20, use_bias=False),
    "rows, decay": ufm(3, 1, 14, weight_decay=(0.3, 0.5, 0.2)),
}


def collapsed(C, N, p):
    """A point of strong collapse, in NumPy."""
    U, _, Vt = np.linalg.svd(systems.centring(C) @ np.random.default_rng(0).standard_normal((C, p)))
    H, W, b = systems.on_subspace(N**0.25 * U[:, : C - 1] @ Vt[: C - 1], np.array(1 / C), N)
    return fc.State(H=jnp.asarray(H), W=jnp.asarray(W), b=jnp.asarray(b))


def dense(model, state):
    decay = tuple(float(lam) for lam in model.decays)
    return matrix(systems.arrays(state), model.counts, decay, model.use_bias)


@pytest.mark.parametrize("name", MODELS)
def test_spectrum_sharpness_trace_and_products_are_those_of_the_whole_matrix(name):
    """At two random states at once, with one program per model; each number against eigenvalues of the dense matrix."""
    model = MODELS[name]
    one, other = (systems.random_state(model, seed, size) for seed, size in ((0, 1.0), (1, 3.0)))

    @systems.compiled
    def all_of(model, states, direction):
        product = hessian_vector_product(model, jax.tree.map(lambda x: x[0], states), direction)
        return (
            hessian_spectrum(model, states),
            hessian_spectrum(model, states, 4, "smallest").eigenvalues,
            sharpness(model, states, iterations=48),
            jax.vmap(lambda state: largest_eigenvalue(*problem_of(model, state), 48))(states),
            hessian_trace(model, states),
            product,
        )

    states = jax.tree.map(lambda *parts: jnp.stack(parts), one, other)
    spectrum, smallest, sharpest, in_samples, trace, product = all_of(model, states, other)
    A = dense(model, one)
    v = flat(systems.arrays(other), model.use_bias)
    tolerance = 64 * EPS * float(np.linalg.norm(A) * np.linalg.norm(v))
    np.testing.assert_allclose(flat(systems.arrays(product), model.use_bias), A @ v, atol=tolerance)
    assert spectrum.total == num_parameters(model) == len(A)
    for i, state in enumerate((one, other)):
        values = np.linalg.eigvalsh(dense(model, state))
        tolerance = 64 * EPS * np.abs(values).max()
        np.testing.assert_allclose(spectrum.eigenvalues[i], values, atol=tolerance)
        np.testing.assert_allclose(smallest[i], values[:4], atol=tolerance)
        np.testing.assert_allclose([sharpest[i], in_samples[i]], values[-1], rtol=1e-12)
        np.testing.assert_allclose(trace[i], values.sum(), rtol=64 * EPS)


def test_products_are_of_the_wider_precision():
    """Products are linear in the direction and exact for small integers, whichever of the two is in 32 bits."""
    model = ufm(2, 1, 2)
    state, direction = (fc.State(H=np.eye(2) * k, W=np.eye(2), b=np.ones(2)) for k in (1.0, 2.0))
    wide = hessian_vector_product(model, state, direction)

    def narrow(one: fc.State) -> fc.State:
        return jax.tree.map(lambda x: x.astype(jnp.float32), one)

    for pair in ((narrow(state), direction), (state, narrow(direction))):
        product = hessian_vector_product(model, *pair)
        assert product.W.dtype == jnp.float64
        assert jax.tree.all(jax.tree.map(jnp.array_equal, product, wide))


def test_large_problems_give_the_ends_of_the_spectrum():
    """SciPy's Lanczos on the 4,090 parameters of the samples against 234 directions in reduced coordinates."""
    model = ufm(10, 50, 8)
    state = systems.random_state(model, size=0.2)

    @systems.compiled
    def ends_of(state):
        return sharpness(model, state), hessian_spectrum(model, state, 3, "smallest", iterations=64).eigenvalues

    largest, smallest = ends_of(state)
    apply = operator(systems.arrays(state), model.counts)
    shape = (num_parameters(model),) * 2
    A = LinearOperator(shape, matvec=apply, dtype=np.float64)  # pyright: ignore[reportCallIssue]: SciPy picks the class
    start = np.random.default_rng(0).standard_normal(num_parameters(model))
    np.testing.assert_allclose(largest, eigsh(A, 1, which="LA", v0=start)[0][0], rtol=1e-9)
    np.testing.assert_allclose(smallest, np.sort(eigsh(A, 3, which="SA", v0=start)[0]), rtol=1e-8)


def test_the_default_number_of_iterations_is_enough_along_a_path(paper_model):
    """From the origin through the escape, where the top eigenvalues separate, to the plateau; and from large starts."""
    small = systems.arrays(systems.random_state(paper_model, size=1e-4))
    path = systems.flow(small, paper_model.counts, np.array([0.0, 3.0, 4.0, 4.5, 5.0, 5.5, 6.0, 10.0]), rtol=1e-9)
    large = [systems.arrays(systems.random_state(paper_model, seed, size)) for seed, size in ((0, 3.0), (1, 100.0))]
    H, W, b = (jnp.concatenate([few, np.stack(more)]) for few, *more in zip(path, *large, strict=True))
    states = fc.State(H=H, W=W, b=b)
    found = systems.compiled(sharpness)(paper_model, states)
    for i, value in enumerate(found):
        exact = np.linalg.eigvalsh(dense(paper_model, jax.tree.map(lambda x, i=i: x[i], states)))[-1]
        np.testing.assert_allclose(value, exact, rtol=1e-9)


def test_sharpness_at_collapse_and_multiplicities_there():
    """`CN + s` in C - 1 directions, `CN` in one, `2 s` in `(C-1)^2`: blocks find them with their multiplicity."""
    model, state = ufm(10, 100, 20), collapsed(10, 100, 20)

    @systems.compiled
    def ends_of(state):
        return hessian_spectrum(model, state, 12, iterations=10), sharpness(model, state)

    found, largest = ends_of(state)
    expected = [20.0] * 2 + [1000.0] + [1010.0] * 9
    np.testing.assert_allclose(found.eigenvalues, expected, atol=64 * EPS * 1010)
    np.testing.assert_allclose(largest, 1010.0, rtol=16 * EPS)


def test_no_eigenvalues_come_from_an_exhausted_space():
    """Three products exhaust three eigenvalues. Tried in single precision, from enough starts to show the fault: of
    20,000, three found a remainder in the span of the basis three times, and eigenvalues that were wrong by all digits.
    """
    values = jnp.asarray(np.repeat([1.0, 3.0, 0.0], [2, 1, 5]), jnp.float32)

    @systems.compiled
    @jax.vmap
    def run(start):
        return krylov(lambda v: values * v, start, 8)

    starts = jax.random.normal(jax.random.key(0), (20_000, 8, 1), jnp.float32)
    Q, T = run(starts)
    np.testing.assert_allclose(jnp.swapaxes(Q, 1, 2) @ Q, np.broadcast_to(np.eye(8), (len(Q), 8, 8)), atol=32 * SINGLE)
    exact = np.broadcast_to(np.sort(values), (len(Q), 8))
    np.testing.assert_allclose(np.linalg.eigvalsh(T), exact, atol=64 * SINGLE)


def test_the_dominant_vector_is_of_the_largest_eigenvalue_whatever_the_others_are():
    """Negative and double eigenvalues, gaps above and below rounding, a large negative one, and a zero matrix."""
    spectra = np.zeros((6, 8))
    spectra[:5] = -np.arange(1.0, 9.0)
    spectra[1, 1], spectra[2, 1], spectra[3, 1] = -1, -1 - 1e-6, -1 - 1e-14
    spectra[4, 0], spectra[4, 7] = 1, -1e6
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    vectors = np.asarray(jax.jit(jax.vmap(dominant))(jnp.asarray((rotation * spectra[:, None]) @ rotation.T)))
    quotients = np.sum((vectors @ rotation) ** 2 * spectra, axis=1) / np.sum(vectors**2, axis=1)
    assert np.all(np.abs(quotients - spectra[:, 0]) <= 1e-12 * np.abs(spectra).max(axis=1))


def test_the_derivative_of_the_sharpness():
    """With respect to H, W, b and the decay, against differences; also without a within-class part of the features."""
    model = ufm(3, 4, 5)
    generic = systems.random_state(model)
    without_deviations = fc.State(H=jnp.repeat(generic.H[:, ::4], 4, axis=1), W=generic.W, b=generic.b)
    direction = systems.random_state(model, seed=1)

    @systems.compiled
    def gradient(decay, state):
        return jax.grad(lambda decay, state: sharpness(ufm(3, 4, 5, weight_decay=decay), state), (0, 1))(decay, state)

    for state in (generic, without_deviations):
        in_decay, in_state = gradient(0.1, state)
        slope = in_decay + sum(
            jnp.vdot(a, b) for a, b in zip(systems.arrays(in_state), systems.arrays(direction), strict=True)
        )
        step = 1e-4
        ends = [
            np.linalg.eigvalsh(
                matrix(
                    systems.arrays(jax.tree.map(lambda x, d, t=t: x + t * d, state, direction)),
                    model.counts,
                    (0.1 + t,) * 3,
                )
            )[-1]
            for t in (step, -step)
        ]
        # The error of the differences: their step squared, plus rounding divided by the step.
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_hidden_rows_are_those_of_any_loss_of_the_logits():
    """With softmax cross-entropy, rows reduce and columns do not, so the full matrix is available to compare."""

    def value(logits, targets):
        return jnp.sum(jax.nn.logsumexp(logits, axis=0)) - jnp.sum(targets * logits)

    model = ufm(2, 2, 12, loss=Trial(), weight_decay=(0.3, 0.5, 0.2))
    state = systems.random_state(model)

    @jax.jit
    def exact(W, H, b):
        def risk(parts):
            W, H, b = parts
            decay = 0.15 * jnp.sum(W**2) + 0.25 * jnp.sum(H**2) + 0.1 * jnp.sum(b**2)
            return value(W @ H + b[:, None], jnp.repeat(jnp.eye(2), 2, axis=1)) + decay

        flat_parts, unravel = ravel_pytree((W, H, b))
        return jax.hessian(lambda z: risk(unravel(z)))(flat_parts)

    values = np.linalg.eigvalsh(exact(state.W, state.H, state.b))
    np.testing.assert_allclose(hessian_spectrum(model, state).eigenvalues, values, atol=64 * EPS * values[-1])
    with pytest.raises(fc.UsageError, match=r"loss is 'trial'.*use loss=\"squared\""):
        hessian_trace(model, state)


def test_density_counts_the_eigenvalues():
    """At collapse the nodes are the few eigenvalues, each weighted by its multiplicity, up to the noise of the probes.

    The share of an eigenvalue of multiplicity m in a probe of n normal numbers has the mean `m/n` and the variance
    `2 m (n - m) / (n^2 (n + 2))`. Hidden directions are counted exactly.
    """
    C, N, p, probes = 3, 40, 5, 64
    model, s = ufm(C, N, p), np.sqrt(40)
    n = 5 * (3 + 3 + 5) + 3  # parameters visible in 3 + 5 columns
    density = jax.jit(lambda state, key: spectral_density(model, state, key=key, probes=probes, iterations=8))(
        collapsed(C, N, p), jax.random.key(1)
    )
    nodes, weights = np.asarray(density.nodes), np.asarray(density.weights)
    np.testing.assert_allclose(weights.sum(), num_parameters(model), rtol=64 * EPS)
    hidden = {s: 2 * (C * (N - 1) - p), 0.0: 3 * (C * (N - 1) - p)}
    visible = {C * N + s: 2, C * N: 1, 2 * s: 4, s: 2 + 2 * p}
    for value, times in (visible | {0.0: n - sum(visible.values())}).items():
        count = weights[np.abs(nodes - value) < 1e-9 * C * N].sum() - hidden.get(value, 0)
        assert abs(count - times) < 4 * np.sqrt(2 * times * (n - times) / (n + 2) / probes)


STATE = systems.random_state(ufm(3, 3, 4))
LARGE = fc.State(H=jnp.zeros((60, 200)), W=jnp.zeros((100, 60)), b=jnp.zeros(100))
CASES = {
    "no iterations": (lambda: sharpness(ufm(3, 3, 4), STATE, iterations=0), ["iterations", "0", "positive integer"]),
    "another model's state": (lambda: sharpness(ufm(3, 3, 5), STATE), ["state.W", "(3, 4)", "(3, 5)"]),
    "no eigenvalues": (lambda: hessian_spectrum(ufm(3, 3, 4), STATE, 0), ["num", "0", "positive integer"]),
    "too many": (lambda: hessian_spectrum(ufm(3, 3, 4), STATE, 52), ["num", "52", "51", "fewer"]),
    "unknown end": (lambda: hessian_spectrum(ufm(3, 3, 4), STATE, 1, "top"), ["which", "'top'", "'smallest'"]),
    "too large": (lambda: hessian_spectrum(ufm(100, 2, 60), LARGE), ["15700", "8192", "num", "spectral_density"]),
    "no probes": (
        lambda: spectral_density(ufm(3, 3, 4), STATE, key=jax.random.key(0), probes=0),
        ["probes", "0", "positive integer"],
    ),
    "a direction in other columns": (
        lambda: hessian_vector_product(ufm(3, 3, 4), STATE, fc.to_class_means(ufm(3, 3, 4), STATE)),
        ["direction", "class-mean", "sample", "same columns"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, fragments = CASES[name]
    systems.assert_refused(call, fragments)

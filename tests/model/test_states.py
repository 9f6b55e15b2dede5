"""States from any arrays: the risk depends only on the numbers, and anything without numbers is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

EPS = float(np.finfo(np.float64).eps)
DECAY = (0.3, 0.2, 0.1)
MODEL = fc.UFM(num_classes=3, samples_per_class=(2, 1, 3), num_features=4, weight_decay=DECAY)
RNG = np.random.default_rng(0)
H, W, b = RNG.integers(-3, 4, (4, 6)), RNG.integers(-3, 4, (3, 4)), RNG.integers(-3, 4, 3)
EXPECTED = systems.risk(systems.Arrays(H.astype(float), W.astype(float), b.astype(float)), MODEL.counts, DECAY)


class Tensor:
    """A tensor like those of torch: NumPy can read it only if it is detached and on the CPU."""

    def __init__(self, values, ready=False):
        self.values, self.ready = values, ready
        self.dtype = values.dtype

    def detach(self):
        return Tensor(self.values, self.ready)

    def cpu(self):
        return Tensor(self.values, True)

    def element_size(self):
        return self.values.itemsize

    def float(self):
        return Tensor(self.values.astype(np.float32), self.ready)

    def numpy(self):
        return np.asarray(self)

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.values


FORMS = {
    "lists": lambda x: x.tolist(),
    "nested tuples": lambda x: tuple(map(tuple, x.tolist())) if x.ndim == 2 else tuple(x.tolist()),
    "integers of NumPy": lambda x: x,
    "integers of JAX": jnp.asarray,
    "short integers": lambda x: x.astype(np.int8),
    "float64 of NumPy": lambda x: x.astype(np.float64),
    "float32": lambda x: jnp.asarray(x, jnp.float32),
    "half precision": lambda x: jnp.asarray(x, jnp.bfloat16),
    "tensors": lambda x: Tensor(x.astype(np.float32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_risk_is_that_of_the_numbers(form):
    """Small integers are exact in every form; roots of the counts and decays have the error of float32."""
    state = fc.State(H=FORMS[form](H), W=FORMS[form](W), b=FORMS[form](b))
    rtol = 100 * float(jnp.finfo(state.X.dtype).eps)
    assert jnp.finfo(state.X.dtype).bits >= 32
    np.testing.assert_allclose(fc.risk(MODEL, state), EXPECTED, rtol=rtol)
    np.testing.assert_allclose(fc.risk(MODEL, fc.to_class_means(MODEL, state)), EXPECTED, rtol=rtol)


def test_the_widest_precision_among_the_parts_counts():
    state = fc.State(H=jnp.asarray(H, jnp.float32), W=W.astype(np.float64), b=jnp.asarray(b, jnp.bfloat16))
    assert {part.dtype for part in (state.X, state.W, state.b)} == {jnp.dtype(jnp.float64)}
    np.testing.assert_allclose(fc.risk(MODEL, state), EXPECTED, rtol=100 * EPS)


def test_without_a_bias_it_is_zero():
    without = fc.State(H=H.astype(float), W=W.astype(float))
    np.testing.assert_array_equal(without.b, np.zeros(3))
    expected = systems.risk(systems.Arrays(H.astype(float), W.astype(float), np.zeros(3)), MODEL.counts, DECAY)
    np.testing.assert_allclose(fc.risk(MODEL, without), expected, rtol=100 * EPS)
    batch = fc.State(H=np.zeros((5, 4, 6)), W=np.zeros((5, 3, 4)))
    assert batch.b.shape == (5, 3)


@pytest.mark.usefixtures("thirty_two_bits")
def test_lists_take_the_precision_that_jax_has():
    state = fc.State(H=H.tolist(), W=W.tolist())
    assert {part.dtype for part in (state.X, state.W, state.b)} == {jnp.dtype(jnp.float32)}
    with pytest.raises(fc.UsageError, match=r"state\.W is float64.*32 bits.*enable_x64"):
        fc.risk(MODEL, fc.State(H=H.tolist(), W=W.astype(np.float64)))


def test_numbers_are_the_axes_of_vmap():
    states = fc.State(H=np.stack([H, 2 * H]), W=W, b=b)
    values = jax.vmap(lambda state: fc.risk(MODEL, state), (fc.State(H=0, W=None, b=None),))(
        fc.State(X=states.X, W=states.W, b=states.b)
    )
    np.testing.assert_allclose(values[0], EXPECTED, rtol=100 * EPS)


REFUSED = {
    "no features": (lambda: fc.State(W=W), r"state\.H is missing.*fc\.State\(H=\.\.\., W=\.\.\., b=\.\.\.\)"),
    "no classifier": (lambda: fc.State(H=H), r"state\.W is missing"),
    "words": (lambda: fc.State(H="H", W=W), r"state\.H must be an array, got 'H'"),
    "ragged lists": (lambda: fc.State(H=[[1, 2], [3]], W=W), r"state\.H must be an array, got \[\[1, 2\], \[3\]\]"),
    "complex": (lambda: fc.State(H=1j * H, W=W), r"state\.H must hold real numbers, got an array of complex128"),
    "truth values": (lambda: fc.State(H=H > 0, W=W), r"state\.H must hold real numbers, got an array of bool"),
    "a number": (lambda: fc.risk(MODEL, fc.State(H=1.0, W=W, b=b)), r"state\.H must be an array, got 1\.0"),
    "nothing": (lambda: fc.risk(MODEL, fc.State()), r"state\.W must be an array, got None"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_real_numbers_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(fc.UsageError, match=message):
        call()

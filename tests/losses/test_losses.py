"""The losses of the softmax against their definitions, sample by sample, and at margins where those lose all digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.losses import LOSSES, AbstractLoss, CrossEntropy, Focal
from flowcollapse.losses.registry import loss_of

EPS = float(np.finfo(np.float64).eps)
KINDS = [CrossEntropy(), CrossEntropy(0.1), CrossEntropy(0.7), Focal(), Focal(0.0), Focal(0.5)]
COUNTS = [(1, 4, 2), (5, 5)]


def names(loss):
    return loss.text


def by_definition(loss: AbstractLoss, logits: np.ndarray, label: int) -> float:
    """The loss of one sample, as its paper writes it."""
    p = np.exp(logits - np.max(logits))
    p /= np.sum(p)
    if isinstance(loss, Focal):
        return -((1 - p[label]) ** loss.gamma) * np.log(p[label])
    smoothing = loss.label_smoothing or 0.0  # pyright: ignore[reportAttributeAccessIssue]
    wanted = (1 - smoothing) * (np.arange(len(p)) == label) + smoothing / len(p)
    return -float(np.sum(wanted * np.log(p)))


def sample_of(counts):
    """Logits, targets, weights and labels with random weights, as class means have them."""
    random = np.random.default_rng(len(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    ones = random.uniform(0.5, 3.0, len(labels))
    logits = 3 * random.normal(size=(len(counts), len(labels)))
    targets = np.eye(len(counts))[:, labels] * ones
    return *map(jnp.asarray, (logits * ones, targets, ones)), labels


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("loss", KINDS, ids=names)
def test_the_value_is_the_definition_weighted(loss, counts):
    logits, targets, ones, labels = sample_of(counts)
    columns = zip(np.asarray(logits / ones).T, labels.tolist(), ones.tolist(), strict=True)
    expected = sum(u**2 * by_definition(loss, z, y) for z, y, u in columns)
    value, log_value = systems.compiled(lambda *args: (loss.value(*args), loss.log_value(*args)))(logits, targets, ones)
    np.testing.assert_allclose(value, expected, rtol=200 * EPS)
    np.testing.assert_allclose(log_value, np.log(expected), rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("loss", KINDS, ids=names)
def test_gradient_and_curvature_are_derivatives_of_the_value(loss, counts):
    logits, targets, ones, _ = sample_of(counts)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape))

    @systems.compiled
    def both(logits, log_scale):
        derivatives = jax.jvp(lambda z: jax.grad(loss.value)(z, targets, ones), (logits,), (direction,))
        scaled = loss.scaled_gradient(logits, targets, ones, log_scale)
        own = loss.gradient(logits, targets, ones), loss.curvature(logits, targets, ones, direction)
        return derivatives, own, scaled

    (gradient, turned), (own, curvature), scaled = both(logits, jnp.asarray(2.0))
    scale = 1e3 * EPS * np.max(np.abs(gradient))
    np.testing.assert_allclose(own, gradient, rtol=0, atol=scale)
    np.testing.assert_allclose(scaled, np.exp(2.0) * gradient, rtol=0, atol=10 * scale)
    np.testing.assert_allclose(curvature, turned, rtol=0, atol=100 * scale)


def test_no_smoothing_and_no_focus_are_cross_entropy():
    logits, targets, ones, _ = sample_of((3, 3, 3))
    losses = CrossEntropy(), CrossEntropy(0.0), Focal(0.0)
    methods = "value", "log_value", "gradient"
    plain, *others = systems.compiled(lambda *args: [[getattr(one, way)(*args) for way in methods] for one in losses])(
        logits, targets, ones
    )
    for other in others:
        for found, expected in zip(other, plain, strict=True):
            np.testing.assert_allclose(found, expected, rtol=64 * EPS)
    assert CrossEntropy(0.0).text == "cross-entropy"
    assert not CrossEntropy(0.0).attained


def test_two_classes_are_the_logistic_loss():
    logits, targets, ones, labels = sample_of((5, 5))
    margins = (logits / ones)[labels, np.arange(10)] - (logits / ones)[1 - labels, np.arange(10)]
    expected = np.sum(ones**2 * np.logaddexp(0.0, -margins))
    np.testing.assert_allclose(CrossEntropy().value(logits, targets, ones), expected, rtol=64 * EPS)


@pytest.mark.parametrize("loss", [CrossEntropy(), Focal(1.0), Focal(2.5)], ids=names)
def test_digits_and_range_at_large_margins(loss):
    """With margins m against C - 1 equal others, `-ln p = ln(1 + (C-1) e^-m)`, and the focal factor is its power."""
    C, gamma = 4, getattr(loss, "gamma", 0.0)
    targets, ones = jnp.eye(C)[:, :1], jnp.ones(1)

    @systems.compiled
    def at(m):
        logits = m * targets
        scaled = loss.scaled_gradient(logits, targets, ones, (1 + gamma) * m)
        return loss.log_value(logits, targets, ones), scaled, loss.gradient(logits, targets, ones)

    for m in (40.0, 300.0, 900.0, 5000.0):
        log_value, scaled, _ = at(m)
        log_loss = (1 + gamma) * (np.log(C - 1) - m)  # relative corrections are e^-40
        np.testing.assert_allclose(log_value, log_loss, rtol=16 * EPS, atol=16 * EPS)
        expected = (1 + gamma) * (C - 1) ** gamma * np.array([[1 - C], [1], [1], [1]])
        np.testing.assert_allclose(scaled, expected, rtol=8 * (1 + gamma) * m * EPS)
    assert np.all(np.isfinite(at(1e9)[2]))
    assert np.all(np.isfinite(at(-1e9)[2]))
    far = systems.compiled(CrossEntropy().value)(-1e9 * targets, targets, ones)
    np.testing.assert_allclose(far, 1e9 + np.log(C - 1), rtol=2 * EPS)


@pytest.mark.parametrize("loss", KINDS, ids=names)
def test_the_pull_and_its_inverse(loss):
    rho = jnp.linspace(-2.0, 30.0, 23)

    @systems.compiled
    def found(rho, shares):
        every = {}
        for C in (2, 10):
            pull = loss.pull(jnp.zeros(()), C) * shares
            ways = [(loss.pull(rho, C), loss.collapsed_logit(pull, C))]
            ways.append((AbstractLoss.pull(loss, rho, C), AbstractLoss.collapsed_logit(loss, pull, C)))
            ends = loss.collapsed_logit(jnp.asarray([1.5, 0.0]), C)
            every[C] = pull, ways, loss.pull(ways[0][1], C), ends
        return every

    for pull, ((closed, inverse), (default, bisected)), back, (above, endless) in found(
        rho, jnp.array([1e-6, 1e-2, 0.5, 0.99])
    ).values():
        np.testing.assert_allclose(closed, default, rtol=0, atol=16 * EPS)
        np.testing.assert_allclose(back, pull, rtol=0, atol=64 * EPS)
        np.testing.assert_allclose(bisected, inverse, rtol=1e-9)
        assert float(above) == 0
        assert bool(jnp.isfinite(endless)) == loss.attained


@pytest.mark.parametrize("smoothing", [0.02, 0.3])
def test_the_minimum_of_label_smoothing(smoothing):
    """At the logits `ln(1 + C (1/eps - 1)) P` the gradient vanishes, and the value is the entropy of the targets."""
    C, loss = 5, CrossEntropy(smoothing)
    rho = float(loss.collapsed_logit(jnp.asarray(0.0), C))
    np.testing.assert_allclose(rho, np.log(1 + C * (1 / smoothing - 1)), rtol=4 * EPS)
    logits, targets, ones = rho * (jnp.eye(C) - 1 / C), jnp.eye(C), jnp.ones(C)
    assert np.max(np.abs(loss.gradient(logits, targets, ones))) < 8 * EPS
    q = np.append(1 - smoothing + smoothing / C, np.full(C - 1, smoothing / C))
    np.testing.assert_allclose(loss.value(logits, targets, ones), -C * np.sum(q * np.log(q)), rtol=32 * EPS)


@pytest.mark.parametrize("loss", KINDS, ids=names)
def test_lanes_may_be_the_last_axis(loss):
    logits, targets, ones, _ = sample_of((3, 3, 3))
    lanes = np.stack([logits, -2 * logits, 30 * logits], axis=-1)
    log_scale = np.arange(3.0)
    scaled = systems.compiled(loss.scaled_gradient)
    found = scaled(lanes, targets, ones, log_scale)
    for lane in range(3):
        expected = scaled(lanes[..., lane], targets, ones, log_scale[lane])
        atol = 32 * EPS * float(np.max(np.abs(expected)))
        np.testing.assert_allclose(found[..., lane], expected, rtol=0, atol=atol)


# ---- the mean over the samples


@pytest.mark.parametrize(
    ("loss", "counts"),
    [("squared", (4, 4, 4)), ("squared", (5, 1, 2)), ("cross-entropy", (5, 1, 2)), ("focal:2", (2, 2))],
)
def test_the_mean_is_the_sum_over_the_samples_with_rescaled_decay_and_time(loss, counts):
    """`R_mean = R_sum / M` with M samples, if the sum has M times the decays. The mean's time runs M times slower."""
    M, decay = sum(counts), (0.02, 0.03, 0.01)
    mean = systems.model_of(counts, 5, loss=loss, weight_decay=decay, reduction="mean")
    total = systems.model_of(counts, 5, loss=loss, weight_decay=tuple(M * lam for lam in decay))
    assert mean.summed.reduction == "sum"
    np.testing.assert_allclose(mean.summed.weight_decay, total.weight_decay, rtol=2 * EPS)
    state = systems.random_state(mean)
    np.testing.assert_allclose(M * fc.risk(mean, state), fc.risk(total, state), rtol=64 * EPS)
    for one, other in zip(*(systems.arrays(fc.velocity(m, state)) for m in (mean, total)), strict=True):
        np.testing.assert_allclose(M * one, other, rtol=0, atol=64 * EPS * np.max(np.abs(other)))
    if loss == "squared":
        np.testing.assert_allclose(M * fc.sharpness(mean, state), fc.sharpness(total, state), rtol=1e-6)
    ends = [
        fc.simulate(model, state, fc.Flow(t1=t1, rtol=1e-9), [t1], metrics=()) for model, t1 in ((mean, M), (total, 1))
    ]
    for one, other in zip(*(systems.arrays(end.final) for end in ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8 * np.max(np.abs(other)))
    # The steps are the same, too: the solver treats the mean residual of the averaged squared error as stiff.
    assert abs(int(ends[0].stats["accepted"]) - int(ends[1].stats["accepted"])) <= 1


# ---- names


def test_losses_by_name():
    assert {"squared", "cross-entropy", "label-smoothing", "focal"} <= set(LOSSES)
    assert loss_of("label-smoothing:0.1").text == "cross-entropy:label_smoothing=0.1"
    assert loss_of("Focal:2").text == "focal:gamma=2.0"
    assert loss_of("cross_entropy").text == "cross-entropy"
    for loss in KINDS:
        assert loss_of(loss.text).text == loss.text


def test_a_number_of_a_loss_is_an_axis():
    model = systems.model_of((3, 3, 3), 4, loss="cross-entropy")
    assert model.numbers == ("weight_decay", "label_smoothing")
    assert model.with_numbers({"label_smoothing": 0.2}).loss.text == "cross-entropy:label_smoothing=0.2"


def not_a_loss(number: float = 1.0) -> float:
    return number


REFUSED = {
    "smoothing of one": (lambda: CrossEntropy(1.0), ["label_smoothing", "1.0", "below 1"]),
    "smoothing below zero": (lambda: CrossEntropy(label_smoothing=-0.1), ["label_smoothing", "-0.1"]),
    "smoothing by name": (lambda: loss_of("label-smoothing:2"), ["label_smoothing", "2.0"]),
    "smoothing of text": (lambda: CrossEntropy("much"), ["label_smoothing", "'much'"]),
    "a NaN smoothing": (lambda: CrossEntropy(float("nan")), ["label_smoothing", "nan"]),
    "gamma below zero": (lambda: Focal(-1.0), ["gamma", "-1.0", "from 0 on"]),
    "infinite gamma": (lambda: Focal(np.inf), ["gamma", "inf"]),
    "another number": (lambda: loss_of("focal:delta=2"), ["focal:delta=2", "delta", "give"]),
    "too many numbers": (lambda: loss_of("squared:2"), ["squared:2", "give"]),
    "no number": (lambda: loss_of("focal:two"), ["'two'", "not a number"]),
    "a near name": (lambda: loss_of("crossentropy"), ["did you mean 'cross-entropy'"]),
    "a reduction": (lambda: systems.model_of((3, 3), 4, reduction="median"), ["reduction", "'median'", "'mean'"]),
    "a closed form of the mean": (
        lambda: fc.theory.limits.kappa(systems.model_of((3, 3), 4, reduction="mean")),
        ["reduction is 'mean'", "model.summed"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    systems.assert_refused(*REFUSED[name])


def test_a_function_that_makes_no_loss_is_refused(monkeypatch):
    monkeypatch.setitem(LOSSES, "odd", not_a_loss)
    systems.assert_refused(lambda: loss_of("odd:3"), ["'odd:3'", "no loss", "return"])

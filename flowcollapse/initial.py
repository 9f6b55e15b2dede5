"""Initial states: the paper's random sphere, random class means, points of the invariant subspace, balanced points and
collapsed points."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._checks import check_flag, check_key, check_number, checked_dtype
from ._errors import UsageError
from ._linalg.algebra import qr, svd
from ._registry import Registry, arguments_of, described_by
from .model.columns import SAMPLES, ClassMeanColumns, root_counts
from .model.requirements import check_columns, check_model, require
from .model.state import State
from .model.ufm import UFM
from .programs import Program

__all__ = ["STARTS", "Start", "balanced", "class_means", "collapsed", "on_subspace", "sphere"]

REDUCED_FROM = 2**22
"""With at least this many entries of H, `sphere` draws reduced starts by default."""


QUICK_UP_TO = 2**16
"""The most entries of H for which the program that draws a start is compiled with little effort; drawing is fast."""


def sphere(model: UFM, eps, *, key: PRNGKeyArray, reduced: bool | None = None, dtype=None) -> State:
    """A random start as in the paper: `||H0||_F = ||W0||_F = eps`, uniform directions, `b0 = 0`.

    Args:
        model: the model.
        eps: the common norm, above 0.
        key: `jax.random.key(seed)`.
        reduced: draw the class-mean columns `[B, L]` directly, with the distribution they have in a full draw, and
            without any array as large as the number of samples. Default: for 2^22 or more entries of H, if the loss
            allows it.
        dtype: default the widest float that is enabled in JAX.

    Returns:
        The state, in class-mean columns if `reduced`.

    Raises:
        UsageError: if eps is not above 0 or key is not a key, or for a reduced start if the loss does not allow it.

    Source: the paper's initialisation. The reduced draw is derived here: `B` is p x C normal; `L` is the triangular
    factor of a p x (n_tot - C) normal matrix (Bartlett: normal below the diagonal, chi on it); `[B, L]` is scaled
    jointly, because the norm of H is the joint norm.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> fc.initial.sphere(model, eps=0.1, key=jax.random.key(0)).H.shape
        (15, 9)
    """
    dtype = _checked(model, key, dtype)
    eps = _checked_eps(eps)
    p, num_samples = model.num_features, model.num_samples
    if reduced is None:
        reduced = p * num_samples >= REDUCED_FROM and ClassMeanColumns(model.counts).admits(model.loss)
    reduced = check_flag("reduced", reduced)
    check_columns(model, ClassMeanColumns(model.counts) if reduced else SAMPLES)
    return _sphere(model, eps, key, reduced, dtype, quick=_is_small(model))


@Program
def _sphere(model: UFM, eps: Array, key: PRNGKeyArray, reduced: bool, dtype) -> State:
    C, p, num_samples = model.num_classes, model.num_features, model.num_samples
    key_H, key_W = jax.random.split(key)
    W = jax.random.normal(key_W, (C, p), dtype)
    if reduced:
        X, columns = _reduced_normal(model, key_H, dtype)
    else:
        X, columns = jax.random.normal(key_H, (p, num_samples), dtype), SAMPLES
    return State(X=_scaled(X, eps), W=_scaled(W, eps), b=jnp.zeros(C, dtype), columns=columns)


def _reduced_normal(model: UFM, key: PRNGKeyArray, dtype):
    """`[B, L]`, distributed as for a p x n_tot normal matrix, and the columns, with the key of their rotation Q."""
    C, p, within = model.num_classes, model.num_features, model.num_samples - model.num_classes
    r = min(p, within)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # a raw key (old style) has an extra axis
        key = jax.random.wrap_key_data(key)
    key_B, key_L, key_diagonal, key_rotation = jax.random.split(key, 4)
    B = jax.random.normal(key_B, (p, C), dtype)
    below = jnp.tril(jax.random.normal(key_L, (p, r), dtype), -1)
    degrees = jnp.asarray(float(within) - np.arange(r), dtype)
    diagonal = jnp.sqrt(2 * jax.random.gamma(key_diagonal, degrees / 2, dtype=dtype))
    L = below + jnp.eye(p, r, dtype=dtype) * diagonal
    return jnp.concatenate([B, L], axis=1), ClassMeanColumns(model.counts, key=key_rotation)


def class_means(model: UFM, eps, *, key: PRNGKeyArray, dtype=None) -> State:
    """A random start whose features are collapsed within the classes: all samples of a class are equal.

    It has random class means and a random W, of norm `||H0||_F = ||W0||_F = eps`, and `b0 = 0`. The flow keeps such a
    start collapsed. It is drawn in class means alone, which are exact for any loss, so a run costs the same for any
    number of samples. With equal counts, starts of different N from one key have the same directions.

    Args:
        model: the model.
        eps: the common norm, above 0.
        key: `jax.random.key(seed)`.
        dtype: default the widest float that is enabled in JAX.

    Returns:
        The state, in class-mean columns without a part within the classes.

    Raises:
        UsageError: if eps is not above 0 or key is not a key.

    Source: derived here; see `model/columns.py`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=10**6, num_features=5, loss="cross-entropy")
        >>> start = fc.initial.class_means(model, eps=0.1, key=jax.random.key(0))
        >>> start.B.shape, start.L.shape
        ((5, 3), (5, 0))
    """
    dtype = _checked(model, key, dtype)
    return _class_means(model, _checked_eps(eps), key, dtype, quick=True)


@Program
def _class_means(model: UFM, eps: Array, key: PRNGKeyArray, dtype) -> State:
    C, p = model.num_classes, model.num_features
    key_H, key_W = jax.random.split(key)
    B = jax.random.normal(key_H, (p, C), dtype) * root_counts(model.counts, dtype)
    W = jax.random.normal(key_W, (C, p), dtype)
    columns = ClassMeanColumns(model.counts)
    return State(X=_scaled(B, eps), W=_scaled(W, eps), b=jnp.zeros(C, dtype), columns=columns)


def on_subspace(model: UFM, eps, *, key: PRNGKeyArray, dtype=None) -> State:
    """A random point of the invariant subspace S: `H = (W (x) 1_N)^T / sqrt N`, `1^T W = 0`, `b = 0`, `||W||_F = eps`.

    Args:
        model: the model, with equal counts.
        eps: the norm of W, and of H, above 0.
        key: `jax.random.key(seed)`.
        dtype: default the widest float that JAX has been allowed.

    Returns:
        The state.

    Raises:
        UsageError: if the classes are not balanced (S is defined for equal counts), eps is not above 0, or key is not a
            key.

    Source: the paper's invariant subspace.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.on_subspace(model, eps=0.1, key=jax.random.key(0))
        >>> bool(abs(start.W.sum(axis=0)).max() < 1e-6)
        True
    """
    dtype = _checked(model, key, dtype)
    eps = _checked_eps(eps)
    require(model, balanced=EQUAL_COUNTS)
    return _on_subspace(model, eps, key, dtype, quick=_is_small(model))


@Program
def _on_subspace(model: UFM, eps: Array, key: PRNGKeyArray, dtype) -> State:
    W = jax.random.normal(key, (model.num_classes, model.num_features), dtype)
    return _collapsed_along(model, _scaled(_centred(W, model), eps), jnp.zeros(()))


def balanced(model: UFM, eps, *, key: PRNGKeyArray, dtype=None) -> State:
    """A random balanced start: `W^T W = H H^T`, `||H0||_F = ||W0||_F = eps`, `b0 = 0`.

    `W = eps U S V^T` and `H = eps V S R^T` with random orthonormal `U`, `V`, `R`: both share the singular values and
    the feature basis (standard in the theory of deep linear networks; derived here for this model).

    Args:
        model: the model.
        eps: the common norm, above 0.
        key: `jax.random.key(seed)`.
        dtype: default the widest float that JAX has been allowed.

    Returns:
        The state.

    Raises:
        UsageError: if eps is not above 0 or key is not a key.

    Source: standard in the theory of deep linear networks; derived here for this model.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> start = fc.initial.balanced(model, eps=0.1, key=jax.random.key(0))
        >>> bool(abs(start.W.T @ start.W - start.H @ start.H.T).max() < 1e-6)
        True
    """
    dtype = _checked(model, key, dtype)
    return _balanced(model, _checked_eps(eps), key, dtype, quick=_is_small(model))


@Program
def _balanced(model: UFM, eps: Array, key: PRNGKeyArray, dtype) -> State:
    C, p, num_samples = model.num_classes, model.num_features, model.num_samples
    k = min(C, p)
    keys = jax.random.split(key, 4)
    U, V, R = (
        qr(jax.random.normal(k_, (rows, k), dtype))[0] for k_, rows in zip(keys, (C, p, num_samples), strict=False)
    )
    values = jnp.abs(jax.random.normal(keys[3], (k,), dtype))
    values = eps * values / jnp.linalg.norm(values)
    return State(H=(V * values) @ R.T, W=(U * values) @ V.T, b=jnp.zeros(C, dtype))


def collapsed(model: UFM, *, key: PRNGKeyArray, dtype=None) -> State:
    """A random point of strong neural collapse: `W W^T = sqrt N P`, `H = (W (x) 1_N)^T / sqrt N`, `b = 1/C`.

    Without a bias, P is the identity and b is zero.

    Args:
        model: the model, with equal counts and `num_features >= num_classes - 1` (or `num_classes` without a bias).
        key: `jax.random.key(seed)`.
        dtype: default the widest float that JAX has been allowed.

    Returns:
        The state.

    Raises:
        UsageError: if the classes are not balanced, there are too few features for the frame, or key is not a key.

    Source: the paper's SNC1-SNC3.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> bool(fc.risk(model, fc.initial.collapsed(model, key=jax.random.key(0))) < 1e-10)
        True
    """
    dtype = _checked(model, key, dtype)
    rank = model.num_classes - 1 if model.use_bias else model.num_classes
    if model.num_features < rank:
        raise UsageError(f"num_features is {model.num_features} but strong collapse needs at least {rank}: raise it.")
    require(model, balanced=EQUAL_COUNTS)
    return _collapsed(model, key, dtype, quick=_is_small(model))


@Program
def _collapsed(model: UFM, key: PRNGKeyArray, dtype) -> State:
    rank = model.num_classes - 1 if model.use_bias else model.num_classes
    normal = jax.random.normal(key, (model.num_classes, model.num_features), dtype)
    U, _, Vt = svd(_centred(normal, model))
    root_n = model.counts[0] ** 0.5
    W = root_n**0.5 * U[:, :rank] @ Vt[:rank]
    return _collapsed_along(model, W, jnp.asarray(1 / model.num_classes if model.use_bias else 0.0))


STARTS: Registry[Callable[..., State]] = Registry(
    "start",
    {"sphere": sphere, "class-means": class_means, "on-subspace": on_subspace, "balanced": balanced},
    instead="name a function module:name",
)
"""The random starts of a given norm, by name: functions of a model, eps and `key=`. Other keywords with a float default
are the numbers of the start, and can be axes of a sweep."""


class Start(eqx.Module):
    """A kind of random start with its numbers, for sweeps and comparisons.

    Args:
        text: a name in `STARTS`, with numbers if it has any: `"name:number=value,number=value"`. A function of another
            module is `"module:name"`.

    Raises:
        UsageError: for an unknown name, and for numbers that the start does not have.

    Source: see the function that draws the start.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> fc.initial.Start("sphere")(model, 0.1, key=jax.random.key(0)).W.shape
        (3, 15)
    """

    name: str = eqx.field(static=True)
    draw: Callable[..., State] = eqx.field(static=True)
    options: dict[str, Any]

    def __init__(self, text: Any):
        if isinstance(text, Start):
            self.name, self.draw, self.options = text.name, text.draw, text.options
            return
        self.name, rest = STARTS.name_with_rest(text)
        self.draw = STARTS[self.name]
        parameters = inspect.signature(self.draw).parameters.values()
        self.options = {one.name: one.default for one in parameters if type(one.default) is float}
        self.options |= self._checked(arguments_of("start", text, rest))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the start's numbers, which can vary without a new compilation."""
        return tuple(self.options)

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Start":
        """The same start with some of its `numbers` replaced."""
        return eqx.tree_at(lambda start: start.options, self, self.options | self._checked(numbers))

    def described(self, without: Iterable[str] = ()) -> str:
        """The start as a text with its numbers, without some of them."""
        return described_by(self.name, self.options, without)

    def _checked(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        for name in numbers:
            if name not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(f"start {self.name!r} has no number {name!r}: use one of its numbers, {known}.")
        return dict(numbers)

    def __call__(self, model: UFM, eps: Any, *, key: PRNGKeyArray) -> State:
        """One start of norm eps."""
        return self.draw(model, eps, key=key, **self.options)


def _collapsed_along(model: UFM, W: Float[Array, "C p"], bias: Float[Array, ""]) -> State:
    """The point of S whose classifier is W."""
    n = model.counts[0]
    H = jnp.repeat(W, n, axis=0).T / n**0.5
    return State(H=H, W=W, b=jnp.full(model.num_classes, bias, W.dtype))


EQUAL_COUNTS = "the subspace S and strong collapse are defined for equal counts: use fc.initial.sphere or equal counts"


def _is_small(model: UFM) -> bool:
    return model.num_features * model.num_samples <= QUICK_UP_TO


def _centred(W: Float[Array, "C p"], model: UFM) -> Float[Array, "C p"]:
    return W - jnp.mean(W, axis=0) if model.use_bias else W


def _scaled(M: Float[Array, "m n"], norm) -> Float[Array, "m n"]:
    """M scaled to a given Frobenius norm, without underflow if the norm is small."""
    return M / jnp.linalg.norm(M) * norm.astype(M.dtype)


def _checked_eps(eps) -> Array:
    try:
        check_number("eps", eps)
    except UsageError as error:
        raise UsageError(f"{str(error)[:-1]}; it is the norm of H0 and of W0.") from None
    return jnp.asarray(eps)


def _checked(model: UFM, key: Any, dtype: Any):
    """Check the arguments that all starts share, and return the precision."""
    check_model(model)
    check_key(key)
    return checked_dtype(dtype)

"""A point of the model as users hold it."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_array, shown
from .._errors import UsageError
from ..programs import SMALL, Program
from .columns import SAMPLES, Columns

CURE = "pass numbers, a list or an array of them"


@Program
def _lift(columns: Columns, X: Float[Array, "*batch p n"]) -> Float[Array, "*batch p samples"]:
    return columns.lift(X)


class State(eqx.Module):
    """A point of the model: features H, classifier W and bias b.

    Args:
        H: features, shape (p, n_tot), one column per sample, classes one after the other.
        W: classifier, shape (C, p).
        b: bias, shape (C,). Default: zeros.
        X: the features in other columns, in place of `H`, shape (p, n).
        columns: the meaning of the columns of `X`, taken from another state. Default: samples.

    Leading axes (time, lanes) are allowed if all three have the same ones. Each is an array of JAX or NumPy, a list, or
    a tensor of another framework, which is detached and copied. All three get the widest precision among them, at least
    float32; integers become the widest float that is enabled in JAX.

    Internally the features are kept as columns `X`, which may be the class-mean columns `[B, L]`. `H` is then computed
    only on request.

    Raises:
        UsageError: for a part that is missing or holds anything but real numbers. The shapes are checked when the state
            is used with a model.

    Source: the paper's variables; the columns are derived here.

    Example:
        >>> import flowcollapse as fc
        >>> state = fc.State(H=[[1, 0], [0, 1]], W=[[1, 0], [0, 1]])
        >>> state.b.tolist(), fc.risk(fc.UFM(num_classes=2, samples_per_class=1, num_features=2), state).tolist()
        ([0.0, 0.0], 0.0)
    """

    X: Float[Array, "*batch p n"]
    W: Float[Array, "*batch C p"]
    b: Float[Array, "*batch C"]
    columns: Columns

    def __init__(self, H: Any = None, W: Any = None, b: Any = None, *, X: Any = None, columns: Columns | None = None):
        if columns is not None and not isinstance(columns, Columns):
            raise UsageError(f"columns must be those of a state, or None, got {shown(columns)}: leave them out.")
        X, W, b = (_part(f"state.{name}", value) for name, value in (("H", H if X is None else X), ("W", W), ("b", b)))
        arrays = any(hasattr(part, "shape") for part in (X, W, b))
        for name, part in (("H", X), ("W", W)):
            if part is None and arrays:
                raise UsageError(
                    f"state.{name} is missing: give H and W, as in fc.State(H=..., W=..., b=...); b is 0 by default."
                )
        if b is None and hasattr(W, "shape"):
            b = jnp.zeros(W.shape[:-1], jnp.float32)  # the narrowest type, so the others decide the precision
        self.X, self.W, self.b = _of_one_precision(X, W, b)
        self.columns = SAMPLES if columns is None or not columns.reduced else columns

    @property
    def H(self) -> Float[Array, "*batch p samples"]:
        """The features, one column per sample."""
        return _lift(self.columns, self.X, quick=self.X.size <= SMALL) if self.columns.reduced else self.X

    @property
    def B(self) -> Float[Array, "*batch p C"]:
        """The class means times `sqrt n`, of a state in class-mean columns."""
        return self._class_means()[..., : self.W.shape[-2]]

    @property
    def L(self) -> Float[Array, "*batch p r"]:
        """The part within the classes of a state in class-mean columns: `L L^T = sum (h - mu_c)(h - mu_c)^T`."""
        return self._class_means()[..., self.W.shape[-2] :]

    def _class_means(self) -> Float[Array, "*batch p n"]:
        if not self.columns.reduced:
            raise UsageError("state.B and state.L need class-mean columns: call fc.to_class_means(model, state) first.")
        return self.X

    @property
    def coordinates(self) -> str:
        """`"sample"` or `"class-mean"`: the meaning of a column of `X`."""
        return self.columns.name


def _part(name: str, value: Any) -> Any:
    """A part of a state as an array. Numbers and None pass, because `in_axes` of `jax.vmap` may be a state of them."""
    if value is None or isinstance(value, bool | int | float):
        return value
    array = value if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct) else as_array(name, value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise UsageError(f"{name} must hold real numbers, got an array of {array.dtype}: {CURE}.")
    return array


def _of_one_precision(*parts: Any) -> tuple[Any, ...]:
    """The parts in the widest of their floating types. Integers would round the roots of the counts and the decays.

    If float64 is not enabled in JAX, it is kept here, and `check_state` refuses it.
    """
    if not all(isinstance(part, jax.Array | np.ndarray) for part in parts):
        return parts
    floats = (part.dtype if jnp.issubdtype(part.dtype, jnp.floating) else jnp.result_type(float) for part in parts)
    dtype = functools.reduce(jnp.promote_types, floats, jnp.dtype(jnp.float32))
    narrow = dtype == np.float64 and not jax.config.read("jax_enable_x64")
    return parts if narrow else tuple(jnp.asarray(part, dtype) for part in parts)

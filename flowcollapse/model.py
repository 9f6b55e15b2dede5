"""The unconstrained-features model: its sizes, its state, its risk and the gradient of the risk.

Source: Mixon, Parshall and Pi, "Neural collapse with unconstrained features" (arXiv 2011.11619). The features H are
free variables beside the classifier W and the bias b, and the risk of the squared error is

    R(H, W, b) = 1/2 ||W H + b 1^T - I_C (x) 1_N^T||_F^2.

Everything here is written once for `(W, X, b)`, where `X` is `H` or its class-mean columns (see `columns.py`).
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._algebra import product, square_norm
from ._checks import as_array, check_choice, check_flag, check_integer, is_traced, real_numbers, shown
from ._errors import UsageError
from ._states import of_states
from .columns import Columns, SampleColumns, check_counts
from .losses import LOSSES, Loss
from .programs import SMALL, Program

CURE = "pass numbers, a list or an array of them"


class UFM(eqx.Module):
    """The unconstrained-features model: sizes, loss and weight decay.

    Args:
        num_classes: C, at least 2.
        samples_per_class: N, or a tuple with one count a class.
        num_features: p.
        weight_decay: one number for all, or three in the order (W, H, b); adds `1/2 lam ||.||^2` of each to the risk.
        use_bias: without it `b` is zero and stays there.
        loss: the name of a loss of the logits; `"squared"` is the paper's.

    Raises:
        UsageError: for sizes that are not positive integers, counts that do not match `num_classes`, a decay that is
            negative or not finite, a use_bias that is neither True nor False, or an unknown loss.

    Example:
        >>> import flowcollapse as fc
        >>> fc.UFM(num_classes=3, samples_per_class=3, num_features=15).num_samples
        9
    """

    num_classes: int = eqx.field(static=True)
    samples_per_class: int | tuple[int, ...] = eqx.field(static=True)
    num_features: int = eqx.field(static=True)
    weight_decay: float | Array | tuple = 0.0
    use_bias: bool = eqx.field(static=True, default=True)
    loss: str = eqx.field(static=True, default="squared")

    def __init__(
        self,
        *,
        num_classes: int,
        samples_per_class: int | tuple[int, ...],
        num_features: int,
        weight_decay: Any = 0.0,
        use_bias: bool = True,
        loss: str = "squared",
    ):
        check_integer("num_classes", num_classes, least=2)
        check_integer("num_features", num_features)
        counts = check_counts(samples_per_class, num_classes)
        check_flag("use_bias", use_bias)
        check_choice("loss", loss, sorted(LOSSES))
        self.num_classes = int(num_classes)
        self.samples_per_class = counts[0] if len(set(counts)) == 1 else counts
        self.num_features = int(num_features)
        self.weight_decay = _checked_decay(weight_decay)
        self.use_bias = bool(use_bias)
        self.loss = loss

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each class."""
        n = self.samples_per_class
        return (n,) * self.num_classes if isinstance(n, int) else n

    @property
    def balanced(self) -> bool:
        """Whether every class has as many samples."""
        return isinstance(self.samples_per_class, int)

    @property
    def num_samples(self) -> int:
        """`n_tot`, which is C N when the classes are balanced."""
        return sum(self.counts)

    @property
    def decays(self) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"], Float[Array, "*lanes"]]:
        """The weight decays `(lam_W, lam_H, lam_b)`."""
        decay = self.weight_decay if isinstance(self.weight_decay, tuple) else jnp.asarray(self.weight_decay)
        w, h, b = (decay,) * 3 if isinstance(decay, Array) and decay.ndim == 0 else decay
        return jnp.asarray(w), jnp.asarray(h), jnp.asarray(b)


def _checked_decay(decay):
    """The decay as given, after its length and, where they are known, its signs have been checked."""
    values = tuple(decay) if isinstance(decay, list | tuple) else decay
    parts = values if isinstance(values, tuple) else (values,)
    known = [None if is_traced(x) else real_numbers(x) for x in parts]
    if any(numbers is None and not is_traced(x) for x, numbers in zip(parts, known, strict=True)):
        raise UsageError(f"weight_decay must be one number or three, for W, H and b, got {shown(decay)}.")
    shape = tuple(map(np.shape, values)) if isinstance(values, tuple) else np.shape(values)
    if shape not in ((), (3,), ((), (), ())):
        raise UsageError(
            f"weight_decay must be one number or three, for W, H and b, got {shown(decay)} of shape {shape}."
        )
    if not all(np.all((x >= 0) & (x < np.inf)) for x in known if x is not None):
        raise UsageError(f"weight_decay must be finite and not be negative, got {shown(decay)}.")
    return values


@Program
def _lift(columns: Columns, X: Float[Array, "*batch p n"]) -> Float[Array, "*batch p samples"]:
    return columns.lift(X)


class State(eqx.Module):
    """A point of the model: features H, classifier W and bias b.

    Args:
        H: features, shape (p, n_tot), one column a sample, classes one after the other.
        W: classifier, shape (C, p).
        b: bias, shape (C,). Default: zeros.

    Leading axes (time, lanes) are allowed on all three alike. Each is an array of JAX or NumPy, a list, or a tensor of
    another framework, which is detached and copied. All three get the widest precision among them, at least float32;
    integers become the widest float that JAX has been allowed.

    Inside, the features are kept as columns `X` that may be the class-mean columns `[B, L]`; `H` is then made when it
    is asked for, and never before.

    Raises:
        UsageError: for a part that is missing or holds anything but real numbers. Whether the shapes fit a model is
            checked where the state meets one.

    Example:
        >>> import flowcollapse as fc
        >>> state = fc.State(H=[[1, 0], [0, 1]], W=[[1, 0], [0, 1]])
        >>> state.b.tolist(), fc.risk(fc.UFM(num_classes=2, samples_per_class=1, num_features=2), state).tolist()
        ([0.0, 0.0], 0.0)
    """

    X: Float[Array, "*batch p n"]
    W: Float[Array, "*batch C p"]
    b: Float[Array, "*batch C"]
    columns: Columns | None = None

    def __init__(self, H: Any = None, W: Any = None, b: Any = None, *, X: Any = None, columns: Columns | None = None):
        if columns is not None and not isinstance(columns, Columns):
            raise UsageError(f"columns must be those of another state, or None for samples, got {shown(columns)}.")
        X, W, b = (_part(f"state.{name}", value) for name, value in (("H", H if X is None else X), ("W", W), ("b", b)))
        arrays = any(hasattr(part, "shape") for part in (X, W, b))
        for name, part in (("H", X), ("W", W)):
            if part is None and arrays:
                raise UsageError(
                    f"state.{name} is missing: a state is fc.State(H=..., W=..., b=...), and b is 0 by default."
                )
        if b is None and hasattr(W, "shape"):
            b = jnp.zeros(W.shape[:-1], jnp.float32)  # the narrowest: it gets the precision of the others
        self.X, self.W, self.b = _of_one_precision(X, W, b)
        self.columns = columns

    @property
    def H(self) -> Float[Array, "*batch p samples"]:
        """The features, one column a sample."""
        return self.X if self.columns is None else _lift(self.columns, self.X, quick=self.X.size <= SMALL)

    @property
    def B(self) -> Float[Array, "*batch p C"]:
        """The class means times `sqrt n`, of a state in class-mean columns."""
        return self._class_means()[..., : self.W.shape[-2]]

    @property
    def L(self) -> Float[Array, "*batch p r"]:
        """The part within the classes of a state in class-mean columns: `L L^T = sum (h - mu_c)(h - mu_c)^T`."""
        return self._class_means()[..., self.W.shape[-2] :]

    def _class_means(self) -> Float[Array, "*batch p n"]:
        if self.columns is None:
            raise UsageError("state.B and state.L need class-mean columns: call fc.to_class_means(model, state) first.")
        return self.X

    @property
    def coordinates(self) -> str:
        """`"sample"` or `"class-mean"`: what a column of `X` stands for."""
        return "sample" if self.columns is None else self.columns.name


def _part(name: str, value: Any) -> Any:
    """A part of a state as an array. A number or None passes: `jax.vmap` takes states of those as its `in_axes`."""
    if value is None or isinstance(value, bool | int | float):
        return value
    array = value if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct) else as_array(name, value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise UsageError(f"{name} must hold real numbers, got an array of {array.dtype}: {CURE}.")
    return array


def _of_one_precision(*parts: Any) -> tuple[Any, ...]:
    """The parts in the widest of their floating types: in integers the roots of the counts and the decays would round.

    float64 that JAX has not been allowed stays, for `check_state` to refuse.
    """
    if not all(isinstance(part, jax.Array | np.ndarray) for part in parts):
        return parts
    floats = (part.dtype if jnp.issubdtype(part.dtype, jnp.floating) else jnp.result_type(float) for part in parts)
    dtype = functools.reduce(jnp.promote_types, floats, jnp.dtype(jnp.float32))
    narrow = dtype == np.float64 and not jax.config.read("jax_enable_x64")
    return parts if narrow else tuple(jnp.asarray(part, dtype) for part in parts)


class Point(NamedTuple):
    """`(W, X, b)` in whatever columns, and rows, the problem at hand uses."""

    W: Float[Array, "C p"]
    X: Float[Array, "p n"]
    b: Float[Array, " C"]


class Problem(NamedTuple):
    """`minimise loss(W X + b u^T, T) + decay`: the model seen in one kind of columns."""

    model: UFM
    columns: Columns

    @property
    def loss(self) -> Loss:
        return loss_of(self.model)

    def logits(self, point: Point, product=jnp.matmul) -> Float[Array, "C n"]:
        """`W X + b u^T`."""
        W, X, b = point
        products = product(W, X)
        return products + b[:, None] * self.columns.ones(X.shape[-1], X.dtype) if self.model.use_bias else products

    def residual(self, point: Point, logits: Array | None = None) -> Float[Array, "C n"]:
        """`G`: the derivative of the loss in the logits; for the squared error `W X + b u^T - T`."""
        logits = self.logits(point) if logits is None else logits
        return self.loss.gradient(logits, self.columns.targets(logits.shape[-1], logits.dtype))

    def risk(self, point: Point, logits: Array | None = None) -> Float[Array, ""]:
        """The loss plus `1/2 lam_W ||W||^2 + 1/2 lam_H ||X||^2 + 1/2 lam_b ||b||^2`."""
        logits = self.logits(point, product) if logits is None else logits
        value = self.loss.value(logits, self.columns.targets(logits.shape[-1], logits.dtype))
        squares = (square_norm(point.W), square_norm(point.X), jnp.sum(point.b**2))
        return value + sum(0.5 * lam * square for lam, square in zip(self.decays(value.dtype), squares, strict=True))

    def field(self, point: Point, logits: Array | None = None) -> Point:
        """The gradient flow's velocity, minus the gradient of the risk, written by hand."""
        W, X, b = point
        G = self.residual(point, logits)
        lam_W, lam_H, lam_b = self.decays(X.dtype)
        b_velocity = -(self.columns.times_ones(G) + lam_b * b) if self.model.use_bias else jnp.zeros_like(b)
        # One minus outside, which descent's own undoes: its steps take a tenth less time than with negated factors.
        return Point(-(G @ X.T + lam_W * W), -(W.T @ G + lam_H * X), b_velocity)

    def decays(self, dtype) -> tuple[Float[Array, "*lanes"], ...]:
        """`(lam_W, lam_H, lam_b)` in the state's own precision."""
        return tuple(decay.astype(dtype) for decay in self.model.decays)

    def split(self, X: Float[Array, "p n"]) -> tuple[Float[Array, "p C"], Float[Array, "p r"]]:
        """`(B, L)`, see `Columns.split`."""
        return self.columns.split(X)


def problem_of(model: UFM, state: State) -> tuple[Problem, Point]:
    """The model in the state's own columns, and the state as a point of it."""
    check_columns(model, state.columns)
    columns = SampleColumns(model.counts) if state.columns is None else state.columns
    return Problem(model, columns), Point(state.W, state.X, state.b)


def risk(model: UFM, state: State) -> Float[Array, "*batch"]:
    """The risk `1/2 ||W H + b 1^T - I_C (x) 1_N^T||_F^2`, plus decay if the model has any.

    Args:
        model: the model.
        state: a state of it, with any leading axes (time, lanes).

    Returns:
        The risk, one number for each leading axis.

    Raises:
        UsageError: if the state's shapes do not fit the model, or its class means the loss.

    Source: Mixon, Parshall and Pi, the paper's equation for the risk.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
        >>> fc.risk(model, fc.initial.collapsed(model, key=jax.random.key(0))) < 1e-10
        Array(True, dtype=bool)
    """
    check_state(model, state)
    return of_states(_risk, model, state)


def _risk(model: UFM, state: State) -> Float[Array, ""]:
    return Problem.risk(*problem_of(model, state))


def velocity(model: UFM, state: State) -> State:
    """Minus the gradient of the risk, `(H', W', b')` of the gradient flow, written by hand.

    Args:
        model: the model.
        state: a state of it, with any leading axes (time, lanes).

    Returns:
        The velocity, as a `State` in the state's own columns.

    Raises:
        UsageError: if the state's shapes do not fit the model, or its class means the loss.

    Source: the paper's flow; `W' = -G H^T`, `H' = -W^T G`, `b' = -G 1` with the residual `G = W H + b 1^T - Y`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=2, num_features=4)
        >>> at_rest = fc.velocity(model, fc.initial.collapsed(model, key=jax.random.key(0)))
        >>> bool(abs(at_rest.W).max() < 1e-5)
        True
    """
    check_state(model, state)
    W, X, b = of_states(_field, model, state)
    return State(X=X, W=W, b=b, columns=state.columns)


def _field(model: UFM, state: State) -> Point:
    return Problem.field(*problem_of(model, state))


def loss_of(model: UFM) -> Loss:
    """The model's loss."""
    return LOSSES[model.loss]


def check_model(model: Any) -> None:
    """Raise `UsageError` unless `model` is a model."""
    if not isinstance(model, UFM):
        raise UsageError(f"model must be an fc.UFM, got the {type(model).__name__} {shown(model)}.")


def check_squared_error(model: UFM) -> None:
    """Raise `UsageError` unless the model has the loss that closed forms are known for."""
    check_model(model)
    if not loss_of(model).squared_error:
        raise UsageError(
            f"loss is {model.loss!r} but closed forms are known for the squared error: "
            'use loss="squared", or fc.simulate.'
        )


def check_columns(model: UFM, columns: Columns | None) -> None:
    """Raise `UsageError` unless the model's loss is the same in these columns as among the samples."""
    if columns is not None and not columns.admits(loss_of(model)):
        raise UsageError(
            f"state has {columns.name} columns, which are exact for the squared error only, and the loss is "
            f"{model.loss!r}: use a state of samples, fc.State(H=state.H, W=state.W, b=state.b)."
        )


def check_state(model: UFM, state: State, argument: str = "state") -> None:
    """Raise `UsageError` unless `state`, which users know as `argument`, has the model's shapes and fits its loss."""
    check_model(model)
    if not isinstance(state, State):
        kind = type(state).__name__
        raise UsageError(f"{argument} must be an fc.State, got the {kind} {shown(state)}: use fc.initial or fc.State.")
    for name, array in (("W", state.W), ("H", state.X), ("b", state.b)):
        if not hasattr(array, "shape"):
            raise UsageError(f"{argument}.{name} must be an array, got {shown(array)}: {CURE}.")
        if array.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
            raise UsageError(
                f"{argument}.{name} is float64 but JAX runs in 32 bits: call fc.enable_x64() first, or pass float32."
            )
    check_columns(model, state.columns)
    C, p = model.num_classes, model.num_features
    batch, columns = state.W.shape[:-2], state.columns
    if columns is not None and columns.counts != model.counts:
        raise UsageError(
            f"{argument} was made for samples_per_class={columns.counts}, the model has {model.counts}: "
            "use the model that the state was made for."
        )
    wanted_X = (*batch, p, model.num_samples if columns is None else max(C, *state.X.shape[-1:]))
    for name, array, wanted in (("W", state.W, (*batch, C, p)), ("H", state.X, wanted_X), ("b", state.b, (*batch, C))):
        if array.shape != wanted:
            raise UsageError(
                f"{argument}.{name} has shape {array.shape} but the model needs {wanted} "
                f"(num_classes={C}, num_features={p}, {model.num_samples} samples): reshape it or change the model."
            )

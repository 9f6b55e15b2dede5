"""The unconstrained-features model: its sizes, its state, its risk and the gradient of the risk.

Source: Mixon, Parshall and Pi, "Neural collapse with unconstrained features" (arXiv 2011.11619). The features H are
free variables like the classifier W and the bias b, and the risk of the squared error is

    R(H, W, b) = 1/2 ||W H + b 1^T - I_C (x) 1_N^T||_F^2.

Everything here is written once for `(W, X, b)`, where `X` is `H` or its class-mean columns (see `columns.py`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg.algebra import beside, product, square_norm, times
from ..losses.averaged import Averaged
from ..losses.base import AbstractLoss
from ..programs import called
from .batch import of_states
from .columns import Columns
from .requirements import check_state
from .state import State
from .ufm import UFM


class Point(NamedTuple):
    """`(W, X, b)` in the columns and rows of a problem.

    `W` has shape (C, p), `X` shape (p, n) and `b` shape (C,), where n is the number of columns and p that of rows.

    Source: derived here; see `columns.py` and `coordinates.py`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=5, num_features=4)
        >>> start = fc.to_class_means(model, fc.initial.sphere(model, eps=0.1, key=jax.random.key(0)))
        >>> fc.model.problem_of(model, start)[1].X.shape
        (4, 7)
    """

    W: Float[Array, "C p"]
    X: Float[Array, "p n"]
    b: Float[Array, " C"]


class Problem(NamedTuple):
    """The model in one kind of columns: minimise `loss(W X + b u^T, T)` plus decay.

    `model` is the model, and `columns` say what a column of X stands for. Risk, field and logits are methods.

    Source: derived here; see `columns.py`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=5, num_features=4)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> problem, point = fc.model.problem_of(model, start)
        >>> bool(abs(problem.risk(point) / fc.risk(model, start) - 1) < 1e-5)
        True
    """

    model: UFM
    columns: Columns

    @property
    def loss(self) -> AbstractLoss:
        """The loss as the risk contains it: the model's, or its mean over the samples."""
        loss = self.model.loss
        return loss if self.model.reduction == "sum" else Averaged(loss, self.model.scale)

    @property
    def summed(self) -> "Problem":
        """The problem with the sum over the samples whose risk is this problem's over `model.scale`."""
        return Problem(self.model.summed, self.columns)

    def logits(self, point: Point, product=times) -> Float[Array, "C n *lanes"]:
        """`W X + b u^T`."""
        W, X, b = point
        products = product(W, X)
        if not self.model.use_bias:
            return products
        return products + b[:, None] * beside(self.columns.ones(X.shape[1], X.dtype), X[0, 0])

    def residual(self, point: Point, logits: Array | None = None) -> Float[Array, "C n *lanes"]:
        """`G`: the derivative of the loss in the logits; for the squared error `W X + b u^T - T`."""
        logits = self.logits(point) if logits is None else logits
        return self.loss.gradient(logits, *self.data(logits))

    def data(self, logits: Float[Array, "C n *lanes"]) -> tuple[Float[Array, "C n"], Float[Array, " n"]]:
        """The targets T and the vector u of these columns."""
        n, dtype = logits.shape[1], logits.dtype
        return self.columns.targets(n, dtype), self.columns.ones(n, dtype)

    def risk(self, point: Point, logits: Array | None = None) -> Float[Array, ""]:
        """The loss plus `1/2 lam_W ||W||^2 + 1/2 lam_H ||X||^2 + 1/2 lam_b ||b||^2`."""
        logits = self.logits(point, product) if logits is None else logits
        value = self.loss.value(logits, *self.data(logits))
        squares = (square_norm(point.W), square_norm(point.X), jnp.sum(point.b**2))
        return value + sum(0.5 * lam * square for lam, square in zip(self.decays(value.dtype), squares, strict=True))

    def field(self, point: Point, logits: Array | None = None) -> Point:
        """The gradient flow's velocity, minus the gradient of the risk, written by hand.

        The point may have lanes as its last axes if the loss allows them.
        """
        residual = Problem.residual if point.b.ndim == 1 else _residual_of_lanes
        return self._velocity(point, residual(self, point, logits), self.decays(point.X.dtype))

    def scaled_field(self, point: Point, log_scale: Float[Array, "*lanes"]) -> Point:
        """`exp(log_scale)` times the velocity, see `AbstractLoss.scaled_gradient`."""
        residual = Problem.scaled_residual if point.b.ndim == 1 else _scaled_residual_of_lanes
        # e^l overflows long before the logits do, and then e^l times no decay would not be a number.
        decays = (jnp.where(lam > 0, jnp.exp(log_scale) * lam, 0.0) for lam in self.decays(point.X.dtype))
        return self._velocity(point, residual(self, point, log_scale), tuple(decays))

    def scaled_residual(self, point: Point, log_scale: Float[Array, "*lanes"]) -> Float[Array, "C n *lanes"]:
        """`exp(log_scale)` times the residual."""
        logits = self.logits(point)
        return self.loss.scaled_gradient(logits, *self.data(logits), log_scale)

    def _velocity(self, point: Point, G: Float[Array, "C n *lanes"], decays: Sequence[Any]) -> Point:
        """`-(G X^T + lam_W W)`, `-(W^T G + lam_H X)` and `-(G u + lam_b b)`."""
        (lam_W, lam_H, lam_b), of_residual = decays, products if point.b.ndim == 1 else _products_of_lanes
        b_velocity = -(self.columns.times_ones(G) + lam_b * point.b) if self.model.use_bias else jnp.zeros_like(point.b)
        of_W, of_X = of_residual(point.W, point.X, G)
        # One minus sign outside, because it cancels the one of descent: its steps take a tenth less time this way.
        return Point(-(of_W + lam_W * point.W), -(of_X + lam_H * point.X), b_velocity)

    def decays(self, dtype) -> tuple[Float[Array, "*lanes"], ...]:
        """`(lam_W, lam_H, lam_b)` in the precision of the state."""
        return tuple(decay.astype(dtype) for decay in self.model.decays)

    def split(self, X: Float[Array, "p n"]) -> tuple[Float[Array, "p C"], Float[Array, "p r"]]:
        """`(B, L)`, see `Columns.split`."""
        return self.columns.split(X)


def products(W, X, G):
    """`G X^T` and `W^T G`. Lanes, if any, come last."""
    return times(G, jnp.swapaxes(X, 0, 1)), times(jnp.swapaxes(W, 0, 1), G)


# With lanes, products are sums, which a fusion would compute anew for each entry that reads them.
_residual_of_lanes, _scaled_residual_of_lanes = called(Problem.residual), called(Problem.scaled_residual)
_products_of_lanes = called(products)


def problem_of(model: UFM, state: State) -> tuple[Problem, Point]:
    """The model in the state's columns, and the state as a point of that problem.

    Args:
        model: the model.
        state: one state of it, with H of shape (p, n_tot), W of shape (C, p) and b of shape (C,), or in class means.

    Returns:
        `(problem, point)`.

    Raises:
        UsageError: if the state's shapes do not fit the model, or its class means the loss.

    Source: derived here; see `columns.py`.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=5, num_features=4)
        >>> start = fc.initial.sphere(model, eps=0.1, key=jax.random.key(0))
        >>> problem, point = fc.model.problem_of(model, start)
        >>> problem.logits(point).shape
        (3, 15)
    """
    check_state(model, state)
    return Problem(model, state.columns.of_counts(model.counts)), Point(state.W, state.X, state.b)


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
        The velocity, as a `State` in the columns of the given state.

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

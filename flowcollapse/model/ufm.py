"""The unconstrained-features model: its sizes, its loss and its weight decay."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_choice, check_flag, check_integer, is_traced, real_numbers, shown
from .._errors import UsageError
from .._registry import fields_of
from ..losses.base import AbstractLoss
from ..losses.registry import loss_of

REDUCTIONS = ("sum", "mean")


class UFM(eqx.Module):
    """The unconstrained-features model: sizes, loss and weight decay.

    Args:
        num_classes: C, at least 2.
        samples_per_class: N, or a tuple with one count per class.
        num_features: p, at least 1.
        weight_decay: one number for all, or three in the order (W, H, b); adds `1/2 lam ||.||^2` of each to the risk.
        use_bias: whether the model has a bias. Without one, `b` stays zero.
        loss: a loss of the logits (`fc.losses`) or its text: `"squared"`, the paper's, `"cross-entropy"`,
            `"label-smoothing:0.1"`, `"focal:2"`, or your own as `"module:name"`.
        reduction: `"sum"`, the paper's, or `"mean"`: the loss is summed over the samples, or averaged, while the decay
            stays. Most papers on cross-entropy average. A model with the mean is the model `summed`, with its decay
            times the number of samples, and time runs slower by that factor.

    Raises:
        UsageError: for sizes that are not positive integers, counts that do not match `num_classes`, a decay that is
            negative or not finite, a use_bias that is neither True nor False, an unknown loss, or another reduction.

    Source: Mixon, Parshall and Pi, "Neural collapse with unconstrained features" (arXiv 2011.11619).

    Example:
        >>> import flowcollapse as fc
        >>> fc.UFM(num_classes=3, samples_per_class=3, num_features=15).num_samples
        9
    """

    num_classes: int = eqx.field(static=True)
    samples_per_class: int | tuple[int, ...] = eqx.field(static=True)
    num_features: int = eqx.field(static=True)
    weight_decay: float | Array | tuple
    use_bias: bool = eqx.field(static=True)
    loss: AbstractLoss
    reduction: str = eqx.field(static=True)

    def __init__(
        self,
        *,
        num_classes: int,
        samples_per_class: int | tuple[int, ...],
        num_features: int,
        weight_decay: Any = 0.0,
        use_bias: bool = True,
        loss: Any = "squared",
        reduction: Any = "sum",
    ):
        check_integer("num_classes", num_classes, least=2)
        check_integer("num_features", num_features)
        counts = check_counts(samples_per_class, num_classes)
        check_flag("use_bias", use_bias)
        check_choice("reduction", reduction, REDUCTIONS)
        self.num_classes = int(num_classes)
        self.samples_per_class = counts[0] if len(set(counts)) == 1 else counts
        self.num_features = int(num_features)
        self.weight_decay = _checked_decay(weight_decay)
        self.use_bias = bool(use_bias)
        self.loss = loss_of(loss)
        self.reduction = str(reduction)

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of samples of each class."""
        n = self.samples_per_class
        return (n,) * self.num_classes if isinstance(n, int) else n

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that can vary without a new compilation: the decay, and the numbers of the loss."""
        return ("weight_decay", *self.loss.numbers)

    def with_numbers(self, numbers: Mapping[str, Any]) -> "UFM":
        """The same model with some of its `numbers` or sizes replaced; the new model is checked."""
        if not numbers:
            return self
        of_loss = {name: value for name, value in numbers.items() if name in self.loss.numbers}
        fields = fields_of(self) | {name: value for name, value in numbers.items() if name not in of_loss}
        fields["loss"] = self.loss.with_numbers(of_loss) if of_loss else self.loss
        return UFM(**fields)

    @property
    def scale(self) -> float:
        """The factor of the summed loss in the risk: 1, or 1 over the number of samples for the mean."""
        return 1.0 if self.reduction == "sum" else 1 / self.num_samples

    @property
    def summed(self) -> "UFM":
        """The model with the sum over the samples whose risk is this model's over `scale`."""
        if self.reduction == "sum":
            return self
        decay = jax.tree.map(lambda lam: lam * self.num_samples, self.weight_decay)
        return UFM(**(fields_of(self) | {"weight_decay": decay, "reduction": "sum"}))

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same number of samples."""
        return isinstance(self.samples_per_class, int)

    @property
    def num_samples(self) -> int:
        """`n_tot`, which is C N if the classes are balanced."""
        return sum(self.counts)

    @property
    def decays(self) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"], Float[Array, "*lanes"]]:
        """The weight decays `(lam_W, lam_H, lam_b)`."""
        decay = self.weight_decay if isinstance(self.weight_decay, tuple) else jnp.asarray(self.weight_decay)
        w, h, b = (decay,) * 3 if isinstance(decay, Array) and decay.ndim == 0 else decay
        return jnp.asarray(w), jnp.asarray(h), jnp.asarray(b)


def _checked_decay(decay):
    """The decay as given, after a check of its length and, if they are known, its signs."""
    values = tuple(decay) if isinstance(decay, list | tuple) else decay
    parts = values if isinstance(values, tuple) else (values,)
    known = [None if is_traced(x) else real_numbers(x) for x in parts]
    if any(numbers is None and not is_traced(x) for x, numbers in zip(parts, known, strict=True)):
        raise UsageError(f"weight_decay must be one number or three, for W, H and b, got {shown(decay)}: use either.")
    shape = tuple(map(np.shape, values)) if isinstance(values, tuple) else np.shape(values)
    if shape not in ((), (3,), ((), (), ())):
        raise UsageError(
            f"weight_decay must be one number or three, for W, H and b, got {shown(decay)} of shape {shape}: use one."
        )
    if not all(np.all((x >= 0) & (x < np.inf)) for x in known if x is not None):
        raise UsageError(f"weight_decay must be finite and not be negative, got {shown(decay)}: use numbers from 0 on.")
    return values


def check_counts(counts: object, num_classes: int) -> tuple[int, ...]:
    """The counts as a tuple of `num_classes` positive integers, from one integer or a sequence of them."""
    given = (counts,) * num_classes if isinstance(counts, int | np.integer) else counts
    if not isinstance(given, tuple | list | np.ndarray) or (isinstance(given, np.ndarray) and given.ndim != 1):
        raise UsageError(
            f"samples_per_class must be a positive integer or a tuple of {num_classes}, got {counts!r}: use either."
        )
    if len(given) != num_classes:
        raise UsageError(
            f"samples_per_class has {len(given)} counts but num_classes is {num_classes}: give one count a class."
        )
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in given):
        raise UsageError(f"samples_per_class must hold positive integers, got {counts!r}: give each class at least 1.")
    return tuple(int(n) for n in given)

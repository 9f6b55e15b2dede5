"""The groups of flags that several commands share: the model, the start, the method."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from .._errors import UsageError

if TYPE_CHECKING:
    from ..descent import Descent
    from ..flow import Flow
    from ..model import UFM, State


@dataclasses.dataclass(frozen=True)
class Model:
    """The model."""

    num_classes: int = 3
    """C, at least 2."""
    samples_per_class: tuple[int, ...] = (3,)
    """N, or one count for each class."""
    num_features: int = 15
    """p."""
    weight_decay: tuple[float, ...] = (0.0,)
    """One number, or three in the order W, H, b."""
    use_bias: bool = True
    """Without a bias, b is zero and stays there."""
    loss: str = "squared"
    """Loss of the logits."""

    def build(self) -> "UFM":
        from ..model import UFM

        return UFM(
            num_classes=self.num_classes,
            samples_per_class=one_or_all(self.samples_per_class),
            num_features=self.num_features,
            weight_decay=one_or_all(self.weight_decay),
            use_bias=self.use_bias,
            loss=self.loss,
        )


@dataclasses.dataclass(frozen=True)
class Start:
    """The start."""

    start: Literal["sphere", "on-subspace", "balanced", "collapsed"] = "sphere"
    """Random directions as in the paper; a point of the invariant subspace S; W^T W = H H^T; strong collapse itself."""
    eps: float = 0.1
    """Norm of H and of W (not for collapsed)."""
    seed: int = 0
    """Seed of the random key."""
    reduced: bool | None = None
    """Draw class means and within-class part themselves (sphere only). Default: for large problems."""

    def build(self, model: "UFM") -> "State":
        import jax

        from .. import initial

        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be an integer from 0 to 2^63 - 1, got {self.seed}.")
        if self.reduced is not None and self.start != "sphere":
            raise UsageError(f"reduced is for sphere starts, not for {self.start}: leave it out.")
        key = jax.random.key(self.seed)
        if self.start == "collapsed":
            return initial.collapsed(model, key=key)
        if self.start == "sphere":
            return initial.sphere(model, self.eps, key=key, reduced=self.reduced)
        make = {"on-subspace": initial.on_subspace, "balanced": initial.balanced}[self.start]
        return make(model, self.eps, key=key)


@dataclasses.dataclass(frozen=True)
class Method:
    """The method. Flow reads solver, tolerances, t1 and max-steps, descent the rest."""

    method: Literal["flow", "descent"] = "flow"
    """Gradient flow or discrete descent."""
    coordinates: str = "auto"
    """auto (class means where exact, compressed rows where it pays), class-mean or sample."""
    solver: str = "exponential"
    """exponential, tsit5, dopri5, dopri8, kvaerno5 or kencarp5."""
    rtol: float = 1e-8
    """Relative tolerance of each block."""
    atol: float | None = None
    """Absolute tolerance of each block's norm. Default: rtol times that norm at the start."""
    t1: float | None = None
    """End of the flow. Default: the plateau time of the start, or the last of ts."""
    max_steps: int = 65_536
    """Most steps of the flow, accepted and rejected together."""
    optimizer: str = "sgd"
    """Name of an optax optimizer."""
    learning_rate: float = 0.02
    """Its step size."""
    momentum: float | None = None
    """Its momentum, if it has any."""
    hyperparameters: dict[str, float] = dataclasses.field(default_factory=dict)
    """Its other numbers, in pairs: b1 0.9 b2 0.99"""
    num_steps: int = 1000
    """Steps of the descent."""

    def build(self) -> "Flow | Descent":
        from ..descent import Descent
        from ..flow import Flow

        if self.method == "flow":
            options: dict[str, Any] = {name: getattr(self, name) for name in ("rtol", "atol", "t1", "max_steps")}
            return Flow(self.solver, coordinates=self.coordinates, **options)
        numbers = {"learning_rate": self.learning_rate} | self.hyperparameters
        if self.momentum is not None:
            numbers["momentum"] = self.momentum
        return Descent(self.optimizer, self.num_steps, coordinates=self.coordinates, **numbers)


def one_or_all(numbers: tuple) -> Any:
    """A single number for a tuple of one."""
    return numbers[0] if len(numbers) == 1 else numbers


def draw_without_a_window() -> None:
    """Pictures go to files only."""
    import matplotlib

    matplotlib.use("Agg")

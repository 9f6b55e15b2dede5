"""The groups of flags that several commands share: the model, the start, the method."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .._errors import UsageError
from .words import Kind, split

if TYPE_CHECKING:
    from ..methods.descent import Descent
    from ..methods.flow import Flow
    from ..model.state import State
    from ..model.ufm import UFM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of every command."""

    config: Path | None = None
    """TOML file with any of these flags; flags on the command line override it. Its sections have the names of the
    groups below, and a flag may also be outside all sections."""
    quiet: bool = False
    """Print only errors: results are in the files, and the exit code says whether the command succeeded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computing(Command):
    """The flags of every command that computes."""

    cache: bool = True
    """Keep compiled programs for later commands, in the folder flowcollapse of the user's cache folder (~/.cache), or
    in JAX_COMPILATION_CACHE_DIR if it is set."""

    def prepare(self, precision: str = "float64") -> None:
        """Set up JAX before anything else: the precision, and where compiled programs are kept."""
        from ..compilation_cache import disable_compilation_cache, enable_compilation_cache
        from ..settings import enable_x64

        enable_x64(precision == "float64")
        if self.cache:
            enable_compilation_cache()
        else:
            disable_compilation_cache()


@dataclasses.dataclass(frozen=True)
class Model:
    """The model."""

    num_classes: int = 3
    """C, at least 2."""
    samples_per_class: Annotated[tuple[int, ...], Kind.ROW] = (3,)
    """N, or one count for each class."""
    num_features: int = 15
    """p."""
    weight_decay: Annotated[tuple[float, ...], Kind.ROW] = (0.0,)
    """One number, or three in the order W, H, b."""
    use_bias: bool = True
    """Whether the model has a bias. Without one, b stays zero."""
    loss: str = "squared"
    """Loss of the logits: squared, cross-entropy, label-smoothing:0.1, focal:2, or module:name for your own, with its
    numbers as in name:number=0.1."""
    reduction: Literal["sum", "mean"] = "sum"
    """The loss summed over the samples, as in the paper, or averaged. Decays are not averaged."""

    def build(self) -> "UFM":
        from ..model.ufm import UFM

        return UFM(
            num_classes=self.num_classes,
            samples_per_class=one_or_all(self.samples_per_class),
            num_features=self.num_features,
            weight_decay=one_or_all(self.weight_decay),
            use_bias=self.use_bias,
            loss=self.loss,
            reduction=self.reduction,
        )


@dataclasses.dataclass(frozen=True)
class Start:
    """The start."""

    start: str = "sphere"
    """Kind of start. sphere: random directions, as in the paper. class-means: the same without differences within the
    classes. on-subspace: a point of the invariant subspace S. balanced: W^T W = H H^T. collapsed: strong collapse
    itself. module:name: a start of your own."""
    eps: float = 0.1
    """Norm of H and of W (not for collapsed)."""
    seed: int = 0
    """Seed of the random key."""
    reduced: bool | None = None
    """Draw the class means and the within-class part directly (sphere only). Default: only for large problems."""

    def build(self, model: "UFM") -> "State":
        import jax

        from .. import initial

        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be an integer from 0 to 2^63 - 1, got {self.seed}: choose another.")
        if self.reduced is not None and self.start != "sphere":
            raise UsageError(f"reduced is for sphere starts, not for {self.start}: leave it out.")
        key = jax.random.key(self.seed)
        if self.start == "collapsed":
            return initial.collapsed(model, key=key)
        if self.reduced is not None:
            return initial.sphere(model, self.eps, key=key, reduced=self.reduced)
        return initial.Start(self.start)(model, self.eps, key=key)


READ_BY = {
    "flow": ("solver", "rtol", "atol", "t1", "max_steps", "clock"),
    "descent": ("optimizer", "learning_rate", "momentum", "hyperparameters", "num_steps"),
}
"""The flags that only one of the methods reads."""


def check_read(given: Iterable[str], method: str) -> None:
    """Raise `UsageError` for a flag on the command line that the method does not read."""
    other = "descent" if method == "flow" else "flow"
    for name in given:
        if name in READ_BY[other]:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for a {other}, and the method is {method}: add --method {other} or drop it.")


@dataclasses.dataclass(frozen=True)
class Method:
    """The method. The flow uses solver, rtol, atol, t1, max-steps and clock; descent uses the others."""

    method: Literal["flow", "descent"] = "flow"
    """Gradient flow or discrete descent."""
    coordinates: str = "auto"
    """auto (class means if they are exact, compressed rows if they are faster), class-mean or sample."""
    solver: str = "exponential"
    """exponential, tsit5, dopri5, dopri8, kvaerno5 or kencarp5."""
    rtol: float = 1e-8
    """Relative tolerance of each block."""
    atol: float | None = None
    """Absolute tolerance of each block's norm. Default: rtol times that norm at the start."""
    t1: float | None = None
    """End time of the flow. Default: the plateau time of the start, or the last of ts."""
    max_steps: int = 65_536
    """The most steps of the flow, accepted and rejected together."""
    clock: str = "auto"
    """Clock of the flow: auto, time, or log, in which t1 and ts are ln(1 + t), for losses without minimum."""
    optimizer: str = "sgd"
    """Name of an optax optimizer."""
    learning_rate: float = 0.02
    """Step size of the optimizer."""
    momentum: float | None = None
    """Momentum of the optimizer, if it has one."""
    hyperparameters: dict[str, float] = dataclasses.field(default_factory=dict)
    """Other numbers of the optimizer, in pairs: b1 0.9 b2 0.99"""
    num_steps: int = 1000
    """Number of steps of the descent."""

    def build(self) -> "Flow | Descent":
        coordinates = self.coordinates.lower()
        if self.method == "flow":
            from ..methods.flow import Flow

            options: dict[str, Any] = {
                name: getattr(self, name) for name in ("rtol", "atol", "t1", "max_steps", "clock")
            }
            return Flow(self.solver, coordinates=coordinates, **options)
        from ..methods.descent import Descent

        numbers = {"learning_rate": self.learning_rate}
        if self.momentum is not None:
            numbers["momentum"] = self.momentum
        for name in numbers.keys() & self.hyperparameters.keys():
            flag = name.replace("_", "-")
            raise UsageError(f"hyperparameters gives {name} as {self.hyperparameters[name]}: use --{flag} alone.")
        numbers |= self.hyperparameters
        return Descent(self.optimizer.lower(), self.num_steps, coordinates=coordinates, **numbers)


@dataclasses.dataclass(frozen=True)
class Lanes:
    """The lanes: their starts, and the axes along which they vary. A lane's start depends only on its seed and eps."""

    eps: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3)
    """Norms of H and W at the start."""
    seeds: Annotated[tuple[str, ...], Kind.SEEDS] = ("256",)
    """Random starts for each eps: a count (the seeds 0, 1, 2, ...), a range such as 0:256 or 0:256:2, or a list such as
    3,5,8."""
    axis: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, Kind.AXES] = ()
    """A further axis, as in: --axis learning_rate=0.01,0.02 --axis samples_per_class=3,10,30. Write values of several
    numbers with colons: --axis weight_decay=0:0:0,0.01:0.01:0. In a TOML file, use the section [axes]."""
    start: str = "sphere"
    """Kind of start. sphere: random directions, as in the paper. class-means: the same without differences within the
    classes. on-subspace: a point of the invariant subspace S. balanced: W^T W = H H^T. module:name: a start of your
    own."""

    def axes(self, function: Callable) -> dict[str, list[Any]]:
        """The further axes by name, for a function that takes them as extra keywords."""
        found: dict[str, list[Any]] = {}
        for text in self.axis:
            name, equals, values = text.partition("=")
            if equals and name in inspect.signature(function).parameters:
                raise UsageError(f"axis {name!r} is not a further axis: give its values with the flag --{name}.")
            try:
                found[name] = [one_or_all(tuple(map(_number, value.split(":")))) for value in split([values])]
            except ValueError:
                equals = ""
            if not equals:
                raise UsageError(
                    f"axis {text!r} is not of the form name=number,number: write it as learning_rate=0.01,0.02."
                )
        return found


MOST_SEEDS = 10**8
"""The most seeds that fit into memory as the values of an axis."""


def seeds_of(words: Sequence[str]) -> int | Sequence[int]:
    """The number of seeds or a list of them, from a count, ranges or a list.

    Raises:
        UsageError: for any other form, an empty range, or too many seeds.
    """
    parts: list[Sequence[int]] = []
    for word in words:
        if not re.fullmatch(r"-?\d+(:-?\d+){0,2}", word):
            raise UsageError(f"seeds {word!r} is not a count, a range or a list: write 256, 0:256, 0:256:2 or 3,5,8.")
        numbers = list(map(int, word.split(":")))
        step = numbers[2] if len(numbers) > 2 else 1
        parts.append(numbers if len(numbers) == 1 else range(numbers[0], numbers[1], max(step, 1)))
        if step < 1 or not parts[-1] or (len(numbers) > 1 and numbers[0] < 0):
            raise UsageError(f"seeds {word!r} is not a range of seeds: write it as 0:256, or 0:256:2 for every other.")
        if len(parts[-1]) > MOST_SEEDS or (len(words) == 1 == len(numbers) and numbers[0] > MOST_SEEDS):
            raise UsageError(f"seeds {word!r} is more than {MOST_SEEDS} seeds: run them in several sweeps.")
    if len(parts) == 1:
        return parts[0] if isinstance(parts[0], range) else parts[0][0]
    seeds = [seed for part in parts for seed in part]
    return list(dict.fromkeys(seeds)) if any(isinstance(part, range) for part in parts) else seeds


def one_or_all(numbers: tuple) -> Any:
    """The number in a tuple of one, or the whole tuple."""
    return numbers[0] if len(numbers) == 1 else numbers


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def check_devices(devices: int | None) -> None:
    """Raise `UsageError` unless the number of devices is positive, if it is given."""
    from .._checks import check_integer

    if devices is not None:
        check_integer("devices", devices)

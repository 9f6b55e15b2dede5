"""The tools with which laws are measured: small systems, starts in NumPy, and shared runs of `fc.simulate`.

A `Lab` keeps its programs and its runs for one certificate. Compiling costs far more than running, so one program
serves all starts, decays, times and tolerances of a system: it takes batches of `LANES` starts, observed at `TIMES`
times.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...methods.descent import Descent
from ...methods.flow import Flow
from ...model.state import State
from ...model.ufm import UFM
from ...programs import QUICK
from ...simulation import simulate
from ..small_starts import limits

LANES, TIMES = 16, 9
NUM_STEPS = 2000
EPS = float(np.finfo(np.float64).eps)
METRICS = ("snc1", "snc2", "snc3", "distance", "relative_distance", "nc1", "nc1_trace", "nc3", "risk", "balancedness")


class Point(NamedTuple):
    """H, W and b as NumPy arrays, possibly with leading axes."""

    H: Float[np.ndarray, "*batch p samples"]
    W: Float[np.ndarray, "*batch C p"]
    b: Float[np.ndarray, "*batch C"]


class System(NamedTuple):
    """The sizes of a model, and its loss."""

    counts: tuple[int, ...]
    p: int
    use_bias: bool = True
    loss: str = "squared"
    reduction: str = "sum"

    @property
    def C(self) -> int:
        return len(self.counts)

    @property
    def N(self) -> int:
        return self.counts[0]

    @property
    def s(self) -> float:
        return math.sqrt(self.N)

    @property
    def balanced(self) -> bool:
        return len(set(self.counts)) == 1

    @property
    def num_modes(self) -> int:
        """The number of modes of the targets."""
        return self.C - 1 if self.use_bias else self.C

    @property
    def P(self) -> Float[np.ndarray, "C C"]:
        """`I - 1 1^T / C`, the identity without a bias."""
        return np.eye(self.C) - (1 / self.C if self.use_bias else 0.0)

    def model(self, decay=(0.0, 0.0, 0.0)) -> UFM:
        """The model. Its decay is always three numbers, so that another decay does not need another program."""
        return UFM(
            num_classes=self.C,
            samples_per_class=self.counts,
            num_features=self.p,
            weight_decay=tuple(map(float, decay)),
            use_bias=self.use_bias,
            loss=self.loss,
            reduction=self.reduction,
        )

    @property
    def a(self) -> float:
        """The weight of a sample in the risk."""
        return 1.0 if self.reduction == "sum" else 1 / sum(self.counts)


def balanced_system(C: int, N: int, p: int, use_bias: bool = True) -> System:
    return System((N,) * C, p, use_bias)


# Systems with p above C - 1, equal to it, and below it.
ABOVE = (balanced_system(3, 3, 15), balanced_system(4, 7, 6), balanced_system(3, 2, 4))
REACHED = (*ABOVE, balanced_system(4, 2, 3))
EVERY = (*REACHED, balanced_system(5, 2, 3))
NO_BIAS = tuple(balanced_system(*sizes, use_bias=False) for sizes in ((3, 4, 3), (3, 2, 5), (4, 3, 2)))
IMBALANCED = (System((5, 1, 3), 4), System((1, 2, 3, 4), 3), System((6, 2), 2))

# Balanced systems of the kind of cross-entropy: p above C - 1 and equal to it, with and without a bias, sum and mean.
CROSS_ENTROPY = (
    System((4, 4, 4), 4, loss="cross-entropy"),
    System((2,) * 4, 3, loss="cross-entropy", reduction="mean"),
    System((3, 3), 2, False, loss="cross-entropy"),
)
SMOOTHED = tuple(system._replace(loss="label-smoothing:0.1") for system in CROSS_ENTROPY)
FOCUSED = tuple(system._replace(loss="focal:2") for system in CROSS_ENTROPY)
# Two groups of counts each, the smaller one with at least two classes.
TWO_GROUPS = (
    System((9, 4, 4), 3, False, loss="cross-entropy"),
    System((16, 16, 4, 4), 5, loss="cross-entropy", reduction="mean"),
    System((5, 2, 2, 2), 4, loss="label-smoothing:0.2"),
)
UNEQUAL = (System((9, 4, 1), 3, False), System((16, 9, 4, 1), 4, False), System((25, 1), 3, False))


class Paths(NamedTuple):
    """Runs, one per lane: metrics and states with axes (lane, time)."""

    metrics: dict[str, Float[np.ndarray, "lanes time"]]
    states: Point

    def at(self, lane: int, time: int = -1) -> Point:
        """One state."""
        return Point(*(part[lane, time] for part in self.states))


class Lab:
    """Programs and runs of one certificate."""

    def __init__(self):
        self._programs: dict[Any, Any] = {}
        self._kept: dict[Any, Any] = {}

    def keep(self, make, *key):
        """`make(self, *key)`, computed once."""
        if (make, *key) not in self._kept:
            self._kept[make, *key] = make(self, *key)
        return self._kept[make, *key]

    def program(self, function, *key, quick=True):
        """`function`, compiled once per key; the key must name everything it closes over. `quick` for short runs."""
        if key not in self._programs:
            self._programs[key] = jax.jit(function, compiler_options=QUICK if quick else None)
        return self._programs[key]

    def flow(self, system: System, starts: list[Point], ts, *, decays=(0.0, 0.0, 0.0), rtol=1e-12) -> Paths:
        """`fc.simulate` with `fc.Flow` from each start at the times `ts`: one row of times for all lanes, or one each.

        Balanced systems with a bias use the default solver. The others use an explicit solver, which compiles faster;
        the balanced systems already test the default one. `fc.simulate` chooses the approach by numbers that are
        unknown inside a program, so it is set here to its usual choice, explicit steps to the end. Systems that run a
        thousand starts (`rms`) are compiled with full optimisation.
        """
        solver, many = "exponential" if system in EVERY else "tsit5", system in REACHED

        def method(rtol) -> Flow:
            return Flow(solver, rtol=rtol, coordinates="class-mean", approach="explicit")

        return self._run(system, method, "flow", starts, ts, decays, rtol, quick=not many)

    def descent(
        self, system: System, starts: list[Point], steps, rates, *, decays=(0.0, 0.0, 0.0), coordinates="auto"
    ) -> Paths:
        """`fc.simulate` with gradient descent from each start, saved after `steps` steps, at most 2000."""
        rates = np.broadcast_to(rates, len(starts))

        def method(rate) -> Descent:
            return Descent("sgd", NUM_STEPS, learning_rate=rate, coordinates=coordinates)

        ts = rates[:, None] * np.asarray(steps)
        return self._run(system, method, f"descent, {coordinates}", starts, ts, decays, rates)

    def _run(self, system, method, name, starts, ts, decays, number, quick=True) -> Paths:
        """Runs of `method(number)`, with one program for each `name` of a method."""
        lanes = len(starts)
        names = tuple(name for name in METRICS if system.balanced or not name.startswith(("snc", "dist", "rel")))

        def run(start: State, ts, decay, number):
            model = eqx.tree_at(lambda one: one.weight_decay, system.model(), tuple(decay))
            path = simulate(model, start, method(number), ts, save_states=True, metrics=names)
            assert path.states is not None
            return path.metrics, (path.states.H, path.states.W, path.states.b)

        program = self.program(jax.vmap(run), system, name, quick=quick)
        ts = np.broadcast_to(ts, (lanes, TIMES))
        decays, number = np.broadcast_to(decays, (lanes, 3)), np.broadcast_to(number, lanes)
        batches = []
        for first in range(0, lanes, LANES):
            index = np.minimum(np.arange(first, first + LANES), lanes - 1)  # the last lane fills the last batch
            start = State(*(jnp.asarray(np.stack([starts[i][part] for i in index])) for part in range(3)))
            batches.append(jax.device_get(program(start, ts[index], decays[index], number[index])))
        metrics, states = jax.tree.map(lambda *parts: np.concatenate(parts)[:lanes], *batches)
        return Paths(metrics, Point(*states))


# ---- states in NumPy


def as_state(point: Point) -> State:
    """The point as a state of the package."""
    return State(*map(jnp.asarray, point))


def as_point(state: State) -> Point:
    """A state of the package in NumPy."""
    return Point(np.asarray(state.H), np.asarray(state.W), np.asarray(state.b))


def split(system: System, H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(B, H_dev)`: the class means times `sqrt n`, and the within-class part with one column per sample."""
    edges = np.cumsum((0, *system.counts[:-1]))
    means = np.add.reduceat(H, edges, axis=-1) / np.array(system.counts)
    return means * np.sqrt(system.counts), H - np.repeat(means, system.counts, axis=-1)


def sphere(system: System, eps: float, seed: int, b=0.0) -> Point:
    """A random start with `||H|| = ||W|| = eps`."""
    rng = np.random.default_rng([seed, *system.counts, system.p])
    H, W = rng.standard_normal((system.p, sum(system.counts))), rng.standard_normal((system.C, system.p))
    return Point(eps * H / np.linalg.norm(H), eps * W / np.linalg.norm(W), np.full(system.C, float(b)))


def on_subspace(system: System, W: np.ndarray, beta: float) -> Point:
    """The point of S with the classifier W."""
    return Point(np.repeat(W.T, system.counts, axis=1) / system.s, W, np.full(system.C, float(beta)))


def random_on_subspace(system: System, size: float, seed: int, beta: float = 0.0, rank: int | None = None) -> Point:
    """A random point of S with `||W|| = size`, of full rank or of a given rank."""
    W = system.P @ np.random.default_rng([seed, *system.counts, system.p]).standard_normal((system.C, system.p))
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    rank = min(system.num_modes, system.p) if rank is None else rank
    W = U[:, :rank] * sigma[:rank] @ Vt[:rank]
    return on_subspace(system, size * W / np.linalg.norm(W), beta)


def modes(system: System, start: Point) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The modes of a start: the singular value decomposition of `V0 = P (W + B^T)/2`."""
    B, _ = split(system, start.H)
    k = min(system.num_modes, system.p)
    U, sigma, Vt = np.linalg.svd(system.P @ (start.W + B.T) / 2, full_matrices=False)
    return U[:, :k], sigma[:k], Vt[:k]


def mean_modes(system: System, start: Point, turned: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`u = W^T 1/sqrt C` and `v = B 1/sqrt C`; with `turned`, after the turn that the relaxing bias gives them."""
    B, _ = split(system, start.H)
    u, v = start.W.sum(axis=0) / math.sqrt(system.C), B.sum(axis=1) / math.sqrt(system.C)
    c = (1 - system.C * float(start.b.mean())) / (system.C * system.s) if turned else 0.0
    return u * math.cosh(c) + v * math.sinh(c), v * math.cosh(c) + u * math.sinh(c)


def end_time(system: System, start: Point, decay: float) -> float:
    """The time by which every mode has escaped and the decaying parts have fallen by `e^-decay`."""
    return (math.log(math.sqrt(system.s) / modes(system, start)[1][-1]) + decay) / system.s


def gap(found, expected) -> float:
    """The distance between two points, divided by the norm of the second."""
    difference = sum(np.sum((np.asarray(f) - np.asarray(e)) ** 2) for f, e in zip(found, expected, strict=True))
    return float(np.sqrt(difference / sum(np.sum(np.asarray(e) ** 2) for e in expected)))


# ---- runs that several laws share

SIZES = (1e-2, 3e-3, 1e-3)


class SmallStarts(NamedTuple):
    """Starts of the sizes `SIZES`, two directions each, with their flow to the plateau and their predicted plateau."""

    sizes: np.ndarray
    starts: list[Point]
    ts: Float[np.ndarray, "lanes time"]
    paths: Paths
    plateaus: list[limits.Plateau]


def _directions(system: System) -> Iterator[Point]:
    """Random starts of norm 1."""
    return (sphere(system, 1.0, seed) for seed in itertools.count())


def _is_generic(system: System, start: Point) -> bool:
    """Whether every mode is of the order of the start. A much smaller mode would make the next orders larger."""
    return bool(modes(system, start)[1][-1] > 0.03)


def small_starts(lab: Lab, system: System) -> SmallStarts:
    """The small starts of a system. The exponent is 30 because NC1 by the pseudo-inverse is of order eps^6."""
    sizes = np.repeat(SIZES, 2)
    directions = itertools.islice(filter(lambda start: _is_generic(system, start), _directions(system)), 2)
    starts = [Point(eps * z.H, eps * z.W, z.b) for eps, z in zip(sizes, itertools.cycle(directions), strict=False)]
    ts = np.array([end_time(system, start, 30.0) for start in starts])[:, None] * np.linspace(0.0, 1.0, TIMES)
    paths = lab.flow(system, starts, ts)
    plateaus = [jax.device_get(limits.plateau(system.model(), as_state(start))) for start in starts]
    return SmallStarts(sizes, starts, ts, paths, plateaus)

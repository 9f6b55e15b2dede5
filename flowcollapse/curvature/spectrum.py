"""The spectrum of the Hessian: all of it, its ends, or its density, without a matrix as large as the samples.

In the coordinates of `coordinates.enter` a state has q rows and n columns, whatever p and the number of samples are.
The directions that these coordinates hide are eigenvectors of the Hessian (derived here). With the residual `G`:

- For columns orthogonal to those of X and to u, `dX = x k^T` moves the logits only by `(W x) k^T`, so the eigenvalues
  are those of `W^T W + lam_H`, each `n_tot - n` times.
- For rows orthogonal to those of W^T and X, `dW = w k^T` and `dX = k g^T` leave the logits unchanged and interact only
  through `dW dX = w g^T`, so the eigenvalues are those of `[[lam_W, G], [G^T, lam_H]]`, each `p - q` times.

No hidden eigenvalue exceeds the largest visible one: replacing k by a visible unit vector makes the quadratic form at
least as large.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_choice, check_integer, check_key, is_traced
from .._errors import UsageError
from .._linalg.algebra import eigh, eigvalsh, singular_values
from .._linalg.lanczos import krylov
from ..model.batch import floating, is_small, over_batch
from ..model.coordinates import enter
from ..model.problem import Point, Problem
from ..model.requirements import check_one, check_state
from ..model.state import State
from ..model.ufm import UFM
from ..programs import Program
from .hessian import ITERATIONS, operator

MAX_DENSE = 2**13
"""The most visible directions for which the matrix is formed: half a gigabyte in float64."""


class Spectrum(eqx.Module):
    """Eigenvalues with multiplicities.

    - `values`: in no particular order; a value may occur more than once.
    - `multiplicities`: the multiplicity of each value.
    - `total`: the number of eigenvalues, which is the number of parameters if the spectrum is complete.
    - `eigenvalues`: every eigenvalue, repeated by its multiplicity, in ascending order, shape (total,).

    Example:
        >>> import flowcollapse as fc
        >>> model = fc.UFM(num_classes=2, samples_per_class=1, num_features=1)
        >>> fc.theory.landscape.spectrum(model).eigenvalues.round().tolist()
        [0.0, 0.0, 1.0, 2.0, 2.0, 3.0]
    """

    values: Float[Array, "*batch values"]
    multiplicities: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, *parts: tuple[Float[Array, " _"], int]) -> "Spectrum":
        """From arrays of eigenvalues, each with the multiplicity of its entries; multiplicity 0 is left out."""
        parts = tuple((values, times) for values, times in parts if times > 0)
        multiplicities = (times for values, times in parts for _ in range(values.size))
        return cls(jnp.concatenate([values for values, _ in parts]), tuple(multiplicities))

    @property
    def total(self) -> int:
        return sum(self.multiplicities)

    @property
    def eigenvalues(self) -> Float[Array, "*batch total"]:
        places = np.repeat(np.arange(len(self.multiplicities)), self.multiplicities)
        return jnp.sort(jnp.take(self.values, places, axis=-1), axis=-1)

    def __repr__(self) -> str:
        if is_traced(self.values) or not eqx.is_array(self.values) or self.values.ndim > 1:
            return f"Spectrum({self.total} eigenvalues)"
        order = np.argsort(self.values)[::-1]
        rows = [f"  {float(self.values[i]): .6g} x {self.multiplicities[i]}" for i in order]
        rows = rows if len(rows) <= 12 else [*rows[:6], "  ...", *rows[-5:]]
        return "\n".join([f"Spectrum ({self.total} eigenvalues)", *rows])


class SpectralDensity(NamedTuple):
    """The spectrum as a measure: eigenvalues are counted by the sum of the `weights` of the `nodes` near them.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=4)
        >>> state = fc.initial.sphere(model, eps=1.0, key=jax.random.key(0))
        >>> density = fc.curvature.spectral_density(model, state, key=jax.random.key(1), probes=2, iterations=4)
        >>> density.nodes.shape == density.weights.shape
        True
    """

    nodes: Float[Array, " points"]
    weights: Float[Array, " points"]


def hessian_spectrum(
    model: UFM, state: State, num: int | None = None, which: str = "largest", *, iterations: int = ITERATIONS
) -> Spectrum:
    """The eigenvalues of the Hessian of the risk: all of them, or the largest or smallest few.

    No matrix as large as the samples is formed. The directions that the exact coordinates hide have eigenvalues in
    closed form, with multiplicities (see the module). The other eigenvalues come from the matrix in these coordinates,
    or, if only some are requested, from the block Lanczos method. A block then has as many vectors as there are
    requested eigenvalues, so that multiple eigenvalues are found with their multiplicity.

    Args:
        model: the model.
        state: a state of it, with any leading axes.
        num: how many eigenvalues; default all.
        which: `"largest"` or `"smallest"` (the most negative), if `num` is given.
        iterations: steps of the block Lanczos method. Eigenvalues at the edge of a dense cluster need many steps.

    Returns:
        The `Spectrum`.

    Raises:
        UsageError: if the state does not fit the model, for a `num` that is not positive or exceeds the number of
            eigenvalues, an unknown `which`, or more than 2^13 visible directions without a `num`.

    Source: Lanczos 1950 and, for blocks, Golub and Underwood 1977; the hidden eigenvalues are derived here.

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.curvature import hessian_spectrum
        >>> model = fc.UFM(num_classes=3, samples_per_class=10_000, num_features=4)
        >>> state = fc.initial.collapsed(model, key=jax.random.key(0))
        >>> hessian_spectrum(model, state).total == 4 * 30_000 + 3 * 4 + 3
        True
        >>> hessian_spectrum(model, state, 3).eigenvalues.round().tolist()
        [30000.0, 30100.0, 30100.0]
    """
    iterations = check_integer("iterations", iterations)
    check_state(model, state)
    model, state = floating(model, state)
    check_choice("which", which, ("largest", "smallest"))
    if num is not None:
        num = check_integer("num", num)
        if num > num_parameters(model):
            raise UsageError(f"num is {num} but the Hessian has {num_parameters(model)} eigenvalues: ask for fewer.")
    return _hessian_spectrum(model, state, num, which, iterations, quick=is_small(state))


@Program
def _hessian_spectrum(model: UFM, state: State, num: int | None, which: str, iterations: int) -> Spectrum:
    def of_one(one: State) -> Spectrum:
        _, problem, point = enter(model, one, "auto")
        hidden = hidden_eigenvalues(problem, point)
        if num is None:
            return Spectrum.of((_visible_eigenvalues(problem, point, iterations), 1), *hidden)
        sign = 1.0 if which == "largest" else -1.0
        candidates = [_extreme_eigenvalues(problem, point, num, sign, iterations)]
        candidates += [jnp.repeat(values, min(times, num)) for values, times in hidden]
        return Spectrum.of((sign * jnp.sort(sign * jnp.concatenate(candidates))[-num:], 1))

    return over_batch(of_one, state)


def spectral_density(
    model: UFM, state: State, *, key: PRNGKeyArray, probes: int = 8, iterations: int = ITERATIONS
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues by random probes, for problems too large to compute all eigenvalues.

    Args:
        model: the model.
        state: one state of it (use `jax.vmap` for more).
        key: `jax.random.key(seed)`, for the probes.
        probes: how many random vectors to average over; the relative error of the weights is of order `1/sqrt(probes)`.
        iterations: steps of the Lanczos method, which is also the number of nodes per probe.

    Returns:
        The `SpectralDensity`. Its weights add up to the number of parameters; hidden directions are counted exactly.

    Raises:
        UsageError: if the state does not fit the model, or probes or iterations is not a positive integer.

    Source: stochastic Lanczos quadrature (Golub and Welsch 1969; Ubaru, Chen and Saad 2017).

    Example:
        >>> import jax, flowcollapse as fc
        >>> from flowcollapse.curvature import spectral_density
        >>> model = fc.UFM(num_classes=3, samples_per_class=10_000, num_features=4)
        >>> state = fc.initial.sphere(model, eps=1.0, key=jax.random.key(0), reduced=True)
        >>> round(float(spectral_density(model, state, key=jax.random.key(1)).weights.sum()))
        120015
    """
    check_key(key)
    probes = check_integer("probes", probes)
    iterations = check_integer("iterations", iterations)
    check_state(model, state)
    model, state = floating(model, state)
    check_one(state, "state")
    return _spectral_density(model, state, key, probes, iterations, quick=is_small(state))


@Program
def _spectral_density(model: UFM, state: State, key: PRNGKeyArray, probes: int, iterations: int) -> SpectralDensity:
    _, problem, point = enter(model, state, "auto")
    apply, _, size = operator(problem, point)

    def of_probe(key: PRNGKeyArray):
        start = jax.random.normal(key, (size, 1), point.X.dtype)
        nodes, vectors = eigh(krylov(apply, start, min(iterations, size))[1])
        return nodes, vectors[0] ** 2

    nodes, shares = jax.vmap(of_probe)(jax.random.split(key, probes))
    hidden = Spectrum.of((nodes.ravel(), 1), *hidden_eigenvalues(problem, point))
    counts = jnp.asarray(hidden.multiplicities[nodes.size :], nodes.dtype)
    return SpectralDensity(hidden.values, jnp.concatenate([shares.ravel() * size / probes, counts]))


def num_parameters(model: UFM) -> int:
    """The number of eigenvalues of the Hessian: the entries of H, W and, if the model has a bias, b."""
    C, p = model.num_classes, model.num_features
    return p * (C + model.num_samples) + (C if model.use_bias else 0)


def hidden_eigenvalues(problem: Problem, point: Point) -> list[tuple[Float[Array, " _"], int]]:
    """The eigenvalues of the directions that the point's coordinates hide, with multiplicities; see the module."""
    model, (C, q), n = problem.model, point.W.shape, point.X.shape[1]
    hidden_rows, hidden_columns = model.num_features - q, model.num_samples - n
    lam_W, lam_H, _ = problem.decays(point.X.dtype)
    of_W = singular_values(point.W) ** 2 + lam_H
    of_G = singular_values(problem.residual(point))
    middle, half = (lam_W + lam_H) / 2, jnp.hypot((lam_W - lam_H) / 2, of_G)
    return [
        (of_W, hidden_columns),
        (lam_H[None], (model.num_features - min(C, q)) * hidden_columns + (n - C) * hidden_rows),
        (middle + half, hidden_rows),
        (middle - half, hidden_rows),
    ]


def _visible_eigenvalues(problem: Problem, point: Point, iterations: int) -> Float[Array, " size"]:
    apply, _, size = operator(problem, point)
    if size > MAX_DENSE:
        raise UsageError(
            f"the Hessian has {size} eigenvalues that need a matrix of that size, more than {MAX_DENSE}: ask for num "
            f"of them, at most {size // iterations}, or use spectral_density."
        )
    return eigvalsh(jax.vmap(apply)(jnp.eye(size, dtype=point.X.dtype)))


def _extreme_eigenvalues(problem: Problem, point: Point, num: int, sign: float, iterations: int) -> Array:
    """The `num` largest (or, for `sign = -1`, smallest) visible eigenvalues, or all if there are fewer."""
    apply, _, size = operator(problem, point)
    if num * iterations > size:
        values = _visible_eigenvalues(problem, point, iterations)
    else:
        start = jax.random.normal(jax.random.key(0), (size, num), point.X.dtype)
        values = eigvalsh(krylov(apply, start, iterations)[1])
    return sign * jnp.sort(sign * values)[-num:]

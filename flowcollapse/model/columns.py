"""The columns of the features: the meaning of a column of `X`, and the data `u` and `T` of the risk in those columns.

The features enter the squared-error risk only through `1/2 ||W X + b u^T - T||_F^2`, with

- one column per sample:   `X = H` (p x n_tot),  `u = 1`,             `T = I_C (x) 1^T`;
- class-mean columns:      `X = [B, L]`,         `u = [sqrt n; 0]`,   `T = [diag(sqrt n), 0]`.

Here `B = Hbar diag(sqrt n)` holds the class means and `L` the part within the classes, `H - Hbar (x) 1^T = L Q^T`
with orthonormal columns in `Q`, which never changes. The map is an isometry, so gradients, descent steps and
Runge-Kutta steps commute with it (derived here).
"""

import abc
import functools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._errors import UsageError
from .._linalg.algebra import beside, lower_factor, positive_qr, times
from ..losses.base import AbstractLoss
from ..programs import inlined

MAX_LIFT_BYTES = 2 * 2**30


class Columns(eqx.Module):
    """The meaning of the columns of `X`. `counts` holds the number of samples of each class."""

    counts: eqx.AbstractVar[tuple[int, ...]]

    reduced: ClassVar[bool]
    """Whether there may be fewer columns than samples."""

    def of_counts(self, counts: tuple[int, ...]) -> "Columns":
        """The same columns for a problem with these samples a class."""
        return self

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @property
    def num_samples(self) -> int:
        return sum(self.counts)

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name that `coordinates=` and a trajectory use."""

    @abc.abstractmethod
    def targets(self, n: int, dtype) -> Float[Array, "C n"]:
        """`T` for `n` columns."""

    @abc.abstractmethod
    def ones(self, n: int, dtype) -> Float[Array, " n"]:
        """`u`, the vector that multiplies the bias; `||u||^2` is the number of samples."""

    @abc.abstractmethod
    def times_ones(self, X: Float[Array, "m n *lanes"]) -> Float[Array, "m *lanes"]:
        """`X u`, reading as little of X as possible. Lanes, if any, come last."""

    @abc.abstractmethod
    def split(self, X: Float[Array, "p n"]) -> tuple[Float[Array, "p C"], Float[Array, "p r"]]:
        """`(B, L)`: the class means times sqrt n, and a part within the classes with `L L^T = H_dev H_dev^T`."""

    @abc.abstractmethod
    def lift(self, X: Float[Array, "*batch p n"]) -> Float[Array, "*batch p samples"]:
        """`H`, one column per sample, classes one after the other."""

    @abc.abstractmethod
    def lift_some(self, X: Float[Array, "*batch p n"], samples: np.ndarray) -> Float[Array, "*batch p some"]:
        """`H` at some samples, without the others."""

    def admits(self, loss: AbstractLoss, num_columns: int | None = None) -> bool:
        """Whether a loss of the samples is the same loss of these `num_columns` columns.

        This holds for any loss if there are only class means. With a part within the classes, it holds for quadratic
        losses.
        """
        return loss.quadratic or num_columns == self.num_classes

    def without_arrays(self) -> "Columns":
        """The same columns without the map back to the samples, which the risk and its field do not need."""
        return self

    def leading_to(self, H: Float[Array, "*lanes p samples"]) -> "Columns":
        """The same columns with the map back to the samples that they were made from."""
        return self

    def ready(self, X: Float[Array, "p n"]) -> "Columns":
        """The same columns with the map back to single samples of X computed once, for use inside one program."""
        return self

    @property
    def batch_ndim(self) -> int:
        """The number of leading axes (lanes) of the arrays in the columns."""
        return 0

    @property
    @abc.abstractmethod
    def knows_samples(self) -> bool:
        """Whether single samples are known, as NC4 and CDNV require."""

    def variances(self, L: Float[Array, "p r"]) -> Float[Array, " C"]:
        """`||h_i - mu_c||^2` averaged over the samples of each class."""
        return jnp.sum(class_means(self.deviations(L) ** 2, self.counts), axis=0)

    @abc.abstractmethod
    def deviations(self, L: Float[Array, "p r"]) -> Float[Array, "p samples"]:
        """`H - Hbar (x) 1^T`, one column per sample."""


class SampleColumns(Columns):
    """One column per sample: `X = H`. In a state these columns do not know the counts, because the model has them."""

    counts: tuple[int, ...] = eqx.field(static=True, default=())

    reduced: ClassVar[bool] = False

    def of_counts(self, counts: tuple[int, ...]) -> Columns:
        return SampleColumns(counts)

    @property
    def name(self) -> str:
        return "sample"

    def admits(self, loss: AbstractLoss, num_columns: int | None = None) -> bool:
        return True

    @property
    def knows_samples(self) -> bool:
        return True

    def targets(self, n: int, dtype) -> Float[Array, "C n"]:
        labels = np.repeat(np.arange(self.num_classes), self.counts)
        return (jnp.asarray(labels)[None, :] == jnp.arange(self.num_classes)[:, None]).astype(dtype)

    def ones(self, n: int, dtype) -> Float[Array, " n"]:
        return jnp.ones(n, dtype)

    def times_ones(self, X: Float[Array, "m n *lanes"]) -> Float[Array, "m *lanes"]:
        return jnp.sum(X, axis=1)

    def split(self, X: Float[Array, "p n"]) -> tuple[Float[Array, "p C"], Float[Array, "p n"]]:
        means = class_means(X, self.counts)
        return means * root_counts(self.counts, X.dtype), X - repeat_columns(means, self.counts)

    def lift(self, X: Float[Array, "*batch p n"]) -> Float[Array, "*batch p n"]:
        return X

    def lift_some(self, X: Float[Array, "*batch p n"], samples: np.ndarray) -> Float[Array, "*batch p some"]:
        return X[..., samples]

    def deviations(self, L: Float[Array, "p n"]) -> Float[Array, "p n"]:
        return L


SAMPLES = SampleColumns()
"""The columns of a state of samples."""


class ClassMeanColumns(Columns):
    """Class-mean columns: `X = [B, L]`. No size depends on the number of samples.

    The rotation `Q` that leads back to the samples is one of three:

    - neither `origin` nor `key`: the fixed Helmert basis of the within-class space (`r = n_tot - C`, for few samples);
    - `origin` (p x n_tot): the features that the state came from, held without a copy. `Q` is computed from their QR
      factorisation on request;
    - `key`: the state was drawn already reduced. When `H` is requested, `Q` is drawn from this key, uniformly among the
      orthonormal frames of the within-class space. Single samples are unknown before that.
    """

    counts: tuple[int, ...] = eqx.field(static=True)
    origin: Float[Array, "*lanes p samples"] | None = None
    key: PRNGKeyArray | None = None
    frame: Float[Array, "*lanes samples r"] | None = None
    """Q itself, if it has been computed (`ready`)."""

    reduced: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "class-mean"

    def without_arrays(self) -> Columns:
        return ClassMeanColumns(self.counts)

    def leading_to(self, H: Float[Array, "*lanes p samples"]) -> Columns:
        if self.num_samples - self.num_classes <= H.shape[-2]:
            return self.without_arrays()
        return ClassMeanColumns(self.counts, origin=H)

    def ready(self, X: Float[Array, "p n"]) -> Columns:
        return ClassMeanColumns(self.counts, self.origin, self.key, self._frame(self.split(X)[1]))

    @property
    def batch_ndim(self) -> int:
        if self.key is not None:
            return self.key.ndim
        return 0 if self.origin is None else self.origin.ndim - 2

    @property
    def knows_samples(self) -> bool:
        return self.key is None

    def targets(self, n: int, dtype) -> Float[Array, "C n"]:
        return jnp.eye(self.num_classes, n, dtype=dtype) * root_counts(self.counts, dtype)[:, None]

    def ones(self, n: int, dtype) -> Float[Array, " n"]:
        roots = np.sqrt(np.array(self.counts, np.float64))
        return jnp.asarray(np.append(roots, np.zeros(n - len(roots))), dtype)

    def times_ones(self, X: Float[Array, "m n *lanes"]) -> Float[Array, "m *lanes"]:
        return times(X[:, : self.num_classes], beside(root_counts(self.counts, X.dtype), X[0, 0]))

    def split(self, X: Float[Array, "p n"]) -> tuple[Float[Array, "p C"], Float[Array, "p r"]]:
        return X[:, : self.num_classes], X[:, self.num_classes :]

    def lift(self, X: Float[Array, "*batch p n"]) -> Float[Array, "*batch p samples"]:
        self._check_size(X)
        B, L = X[..., : self.num_classes], X[..., self.num_classes :]
        return repeat_columns(B / root_counts(self.counts, X.dtype), self.counts) + self.deviations(L)

    def lift_some(self, X: Float[Array, "*batch p n"], samples: np.ndarray) -> Float[Array, "*batch p some"]:
        B, L = X[..., : self.num_classes], X[..., self.num_classes :]
        means = B / root_counts(self.counts, X.dtype)
        classes = np.repeat(np.arange(self.num_classes), self.counts)[samples]
        unit = jnp.eye(L.shape[-1], dtype=L.dtype)
        self._check_size(unit)
        return means[..., classes] + jnp.matmul(L, self.deviations(unit)[..., samples], precision="highest")

    def deviations(self, L: Float[Array, "*batch p r"]) -> Float[Array, "*batch p samples"]:
        if L.shape[-1] == 0:  # only class means
            return jnp.zeros((*L.shape[:-1], self.num_samples), L.dtype)
        Q = self._frame(L)
        if Q is None:
            return from_within_basis(L, self.counts)
        Q = Q.reshape(Q.shape[:-2] + (1,) * (L.ndim - Q.ndim) + Q.shape[-2:])
        return jnp.matmul(L, jnp.swapaxes(Q, -1, -2), precision="highest")

    def _frame(self, L: Float[Array, "*batch p r"]) -> Float[Array, "*lanes samples r"] | None:
        """Q, or None for Helmert's basis, which is applied by running sums."""
        if self.frame is not None:
            return self.frame
        if self.key is not None:
            make, given = functools.partial(_random_within_basis, self.counts, L.shape[-1], dtype=L.dtype), self.key
        elif self.origin is not None:
            make, given = functools.partial(_within_basis_of, self.counts), self.origin
        else:
            return None
        for _ in range(self.batch_ndim):
            make = jax.vmap(make)
        return make(given)

    def variances(self, L: Float[Array, "p r"]) -> Float[Array, " C"]:
        if self.key is not None or len(set(self.counts)) > 1 or L.shape[-1] == 0:
            return super().variances(L)
        C, N = len(self.counts), self.counts[0]
        Q = self._frame(L)
        if Q is None:  # each class has separate columns
            return jnp.sum(L.reshape(len(L), C, N - 1) ** 2, axis=(0, 2)) / N
        # `||L Q_c^T||^2 = <L^T L, Q_c^T Q_c>`, and the second factor is constant along a run.
        Q = Q.reshape(C, N, -1)
        return jnp.sum(jnp.swapaxes(Q, 1, 2) @ Q * (L.T @ L), axis=(1, 2)) / N

    def _check_size(self, X) -> None:
        size = int(np.prod(X.shape[:-1])) * self.num_samples * X.dtype.itemsize
        if size > MAX_LIFT_BYTES:
            raise UsageError(
                f"H has shape {(*X.shape[:-1], self.num_samples)}, {size / 2**30:.1f} GiB, more than the "
                f"{MAX_LIFT_BYTES / 2**30:.0f} GiB that H may take. Use the class-mean columns instead: state.B "
                "(class means times sqrt n) and state.L (the part within the classes) hold the same information."
            )


def class_mean_columns(H: Float[Array, "p samples"], counts: tuple[int, ...]):
    """Class-mean columns of the features.

    Args:
        H: features, shape (p, n_tot), one column per sample, classes one after the other.
        counts: the number of samples of each class.

    Returns:
        `(X, columns)` with `X = [B, L]` of shape (p, C + r), `r = min(p, n_tot - C)`, such that
        `columns.lift(X)` is `H`. If `n_tot - C <= p`, the within-class basis is fixed and nothing is factorised.
        Otherwise `L` and `Q` come from the QR factorisation of the deviations with no negative diagonal entry in R
        (derived here).
    """
    p, num_samples = H.shape
    sample = SampleColumns(counts)
    B, deviations = sample.split(H)
    if num_samples - len(counts) <= p:
        L = times_within_basis(deviations, counts)
        return jnp.concatenate([B, L], axis=1), ClassMeanColumns(counts)
    return jnp.concatenate([B, lower_factor(deviations)], axis=1), ClassMeanColumns(counts, origin=H)


def _within_basis_of(counts: tuple[int, ...], H: Float[Array, "p samples"]) -> Float[Array, "samples r"]:
    """The orthonormal frame Q of the within-class space that `class_mean_columns` uses for these features."""
    return positive_qr(SampleColumns(counts).split(H)[1].T)[0]


def root_counts(counts: tuple[int, ...], dtype) -> Float[Array, " C"]:
    """`sqrt n_c`."""
    return jnp.asarray(np.sqrt(np.array(counts, dtype=np.float64)), dtype)


@functools.partial(inlined, static="counts")
def class_means(H: Float[Array, "*batch p samples"], counts: tuple[int, ...]) -> Float[Array, "*batch p C"]:
    """`Hbar`: the mean column of each class."""
    if len(set(counts)) == 1:
        return jnp.mean(H.reshape(*H.shape[:-1], len(counts), counts[0]), axis=-1)
    starts = np.cumsum((0, *counts[:-1]))
    return jnp.add.reduceat(H, starts, axis=-1) / jnp.asarray(counts, H.dtype)


@functools.partial(inlined, static="counts")
def repeat_columns(M: Float[Array, "*batch p C"], counts: tuple[int, ...]) -> Float[Array, "*batch p samples"]:
    """`M (x) 1^T`: the column of each class, repeated once per sample."""
    if len(set(counts)) == 1:
        return jnp.broadcast_to(M[..., None], (*M.shape, counts[0])).reshape(*M.shape[:-1], sum(counts))
    return jnp.repeat(M, np.array(counts), axis=-1, total_repeat_length=sum(counts))


def within_class_basis(counts: tuple[int, ...], dtype) -> Float[Array, "samples r"]:
    """Helmert's orthonormal basis of the vectors that sum to zero over each class, shape (n_tot, n_tot - C)."""
    basis = np.zeros((sum(counts), sum(counts) - len(counts)))
    row = column = 0
    for n in counts:
        for k in range(1, n):
            basis[row : row + k, column] = 1.0
            basis[row + k, column] = -k
            basis[:, column] /= np.sqrt(k * (k + 1.0))
            column += 1
        row += n
    return jnp.asarray(basis, dtype)


DENSE_UP_TO = 128
"""Up to this many samples, Helmert's basis is a matrix; for more samples, running sums replace it."""


@functools.partial(jax.jit, static_argnames="counts")
def times_within_basis(D: Float[Array, "*batch samples"], counts: tuple[int, ...]) -> Float[Array, "*batch r"]:
    """`D Q` with Helmert's basis Q, computed without Q for many samples.

    In each class, entry k is `(d_0 + ... + d_{k-1} - k d_k) / sqrt(k (k + 1))`.
    """
    if sum(counts) <= DENSE_UP_TO:
        return jnp.matmul(D, within_class_basis(counts, D.dtype), precision="highest")
    place, inside, root = _helmert(counts, D.dtype)
    before = _running_sums(D, place == 0) - D
    return ((before - place * D) / root)[..., inside]


@functools.partial(jax.jit, static_argnames="counts")
def from_within_basis(L: Float[Array, "*batch r"], counts: tuple[int, ...]) -> Float[Array, "*batch samples"]:
    """`L Q^T` with Helmert's basis Q, see `times_within_basis`."""
    if sum(counts) <= DENSE_UP_TO:
        return jnp.matmul(L, within_class_basis(counts, L.dtype).T, precision="highest")
    place, inside, root = _helmert(counts, L.dtype)
    scaled = jnp.zeros((*L.shape[:-1], sum(counts)), L.dtype).at[..., inside].set(L) / root
    last = np.append(place[1:] == 0, True)
    after = jnp.flip(_running_sums(jnp.flip(scaled, -1), last[::-1]), -1) - scaled
    return after - place * scaled


def _helmert(counts: tuple[int, ...], dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each sample, its place k in its class and `sqrt(k (k + 1))`; and the samples that own a basis column."""
    place = np.concatenate([np.arange(n) for n in counts])
    root = np.sqrt(place * (place + 1.0))
    return place.astype(dtype), np.flatnonzero(place), np.where(place == 0, 1.0, root).astype(dtype)


def _running_sums(x: Float[Array, "*batch n"], first: np.ndarray) -> Float[Array, "*batch n"]:
    """Sums of x from the latest `first` entry on. They restart in each class, so no class loses digits to another."""

    def add(a, b):
        (sum_a, first_a), (sum_b, first_b) = a, b
        return jnp.where(first_b, sum_b, sum_a + sum_b), first_a | first_b

    flags = jnp.broadcast_to(jnp.asarray(first), x.shape)
    return jax.lax.associative_scan(add, (x, flags), axis=-1)[0]


def _random_within_basis(counts: tuple[int, ...], r: int, key: PRNGKeyArray, *, dtype) -> Float[Array, "samples r"]:
    """A uniformly random orthonormal frame of `r` vectors in the within-class space."""
    return _within_basis_of(counts, jax.random.normal(key, (r, sum(counts)), dtype))

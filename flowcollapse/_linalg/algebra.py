"""Norms, products and factorisations for blocks of lanes on a CPU: they use vector code and never block a thread."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..programs import called, full_precision, inlined

WRITTEN_OUT_UP_TO = 256
"""Products with up to this many multiplications are written out as sums. In blocks of lanes, sums are 1.2 to 3 times as
fast as calls at 243 multiplications, and slower from about 500 on."""


def square_norm(A: Float[Array, "m n"]) -> Float[Array, ""]:
    """`||A||_F^2`. Columns are summed in parallel first, since in a single sum each addition waits for the last."""
    return jnp.sum(jax.lax.optimization_barrier(jnp.sum(A**2, axis=0)))  # otherwise XLA merges the two sums


def root(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root; 0 with the derivative 0 where x is not above 0, and NaN where it is NaN."""
    zero = x <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def product(A: Float[Array, "m k"], B: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """`A B`, for a result that is used once: XLA would recompute a small product at each use."""
    if A.shape[0] * A.shape[1] * B.shape[1] > WRITTEN_OUT_UP_TO:
        return jnp.matmul(A, B, precision="highest")
    return jnp.sum(A[:, :, None] * B[None], axis=1)


def beside(constants: Any, like: Float[Array, "*lanes"]) -> Float[Array, "*shape"]:
    """Constants in the precision of an array, with one trailing axis of length one for each axis of the array."""
    return jnp.asarray(constants, like.dtype).reshape(*np.shape(constants), *(1,) * like.ndim)


def times(A: Float[Array, "m k *lanes"], B: Float[Array, "k *shape"]) -> Float[Array, "m *outcome"]:
    """`A B` for a matrix A and a matrix or vector B, whose last axes are lanes.

    Without lanes it is a matrix product. With lanes it is a sum of elementwise products, which suits vector code:
    neighbouring lanes are adjacent in memory.
    """
    if A.ndim == 2:
        return jnp.matmul(A, B, precision="highest")
    matrix = B.ndim == A.ndim
    return total([(A[:, j, None] if matrix else A[:, j]) * B[j] for j in range(len(B))])


def total(terms: Sequence[Any]) -> Any:
    """The sum of the terms, 0 if there are none. Groups of five are added first, to shorten the chain of additions."""
    if not terms:
        return 0.0
    while len(terms) > 1:
        terms = [functools.reduce(operator.add, terms[i : i + 5]) for i in range(0, len(terms), 5)]
    return terms[0]


def sum_of_squares(parts: Sequence[Array], lanes: int = 0) -> Float[Array, "*lanes"]:
    """The sum of the squares of all entries of all parts, for each lane. The last `lanes` axes are lanes."""
    if lanes == 0:
        return total([jnp.sum(x**2) for x in parts])
    sums = []
    for part in (x for x in parts if x.size > 0):  # one call per axis, so that XLA does not merge the sums again
        added = _squares_added(part)
        while added.ndim > lanes:
            added = _added(added)
        sums.append(added)
    shape = parts[0].shape[parts[0].ndim - lanes :]
    return jnp.broadcast_to(jnp.asarray(total(sums), parts[0].dtype), shape)


@called
def _added(x: Float[Array, "m *shape"]) -> Float[Array, "*shape"]:
    return total(list(x))


@called
def _squares_added(x: Float[Array, "m *shape"]) -> Float[Array, "*shape"]:
    return total([row**2 for row in x])


AT_ONCE = 2**18
"""The most numbers in an intermediate array of a mapped function: 2 MiB in double precision, which fits in a cache."""


def in_blocks(function: Callable, xs: PyTree, numbers: int) -> Any:
    """`jax.vmap(function)(xs)`, computed in blocks of entries if all at once would take too much memory.

    Args:
        function: takes one entry of `xs`.
        xs: arrays with one common leading axis.
        numbers: the size of the largest intermediate array for one entry.
    """
    count, at_once = len(jax.tree.leaves(xs)[0]), max(1, AT_ONCE // max(1, numbers))
    if count <= at_once:
        return jax.vmap(function)(xs)
    blocks = -(-count // at_once)
    height = -(-count // blocks)
    # Copies of the last entry fill the last block: a shorter block would need a second program.
    fill = [(0, blocks * height - count)]
    filled = jax.tree.map(lambda x: jnp.pad(x, fill + [(0, 0)] * (x.ndim - 1), mode="edge"), xs)
    apart = jax.tree.map(lambda x: x.reshape(blocks, height, *x.shape[1:]), filled)
    outcome = jax.lax.map(jax.vmap(function), apart)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], outcome)


F = TypeVar("F", bound=Callable)


def one_by_one(factorise: F) -> F:
    """The same function of one matrix; on a CPU it takes the matrices of a batch one after the other.

    On a batch, LAPACK hands work to the threads that all CPU devices share, and waits for it on one of them. With as
    many devices as threads, all threads can end up waiting; jax 0.10.1 then deadlocks. A single matrix is computed on
    the calling thread, which takes a tenth of a microsecond more. Derivatives are those of `factorise`.
    """
    factorise = full_precision(factorise)  # pyright: ignore[reportAssignmentType]

    @jax.custom_batching.custom_vmap
    def single(*args):
        return factorise(*args)

    @single.def_vmap
    def batch(size, batched, *args):
        args = jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(batched))
        outcome = jax.lax.platform_dependent(
            *args, cpu=lambda *xs: jax.lax.map(lambda x: single(*x), xs), default=jax.vmap(factorise)
        )
        return outcome, jax.tree.map(lambda _: True, outcome)

    derived = jax.custom_jvp(single)
    derived.defjvp(lambda primals, tangents: jax.jvp(factorise, primals, tangents))
    return derived  # pyright: ignore[reportReturnType]


qr = one_by_one(jnp.linalg.qr)
svd = one_by_one(lambda A: jnp.linalg.svd(A, full_matrices=False))
singular_values = one_by_one(lambda A: jnp.linalg.svd(A, compute_uv=False))
triangle = one_by_one(lambda A: jnp.linalg.qr(A, mode="r"))
eigh = one_by_one(jnp.linalg.eigh)
eigvalsh = one_by_one(jnp.linalg.eigvalsh)
lu_factor = one_by_one(jsl.lu_factor)
lu_solve = one_by_one(jsl.lu_solve)
lu_solve_transposed = one_by_one(lambda factors, b: jsl.lu_solve(factors, b, trans=1))
_inverse = one_by_one(lambda R: jsl.solve_triangular(R, jnp.eye(len(R), dtype=R.dtype)))
_pinv_by_svd = one_by_one(jnp.linalg.pinv)


@inlined
def positive_qr(A: Float[Array, "m r"]) -> tuple[Float[Array, "m r"], Float[Array, "r r"]]:
    """`A = Q R` with no negative diagonal entry in R, so every computation gives the same factors."""
    Q, R = qr(A)
    signs = jnp.where(jnp.diagonal(R) < 0, -1.0, 1.0).astype(R.dtype)
    return Q * signs, signs[:, None] * R


@jax.custom_jvp
def lower_factor(A: Float[Array, "p m"]) -> Float[Array, "p p"]:
    """The lower triangular L of `A = L Q^T` for a wide matrix A.

    Its derivative is that of the factorisation where this has one. Where rows of A depend on each other, Q has none,
    and the derivative given here is right for all that depends on `L L^T` alone.
    """
    return positive_qr(A.T)[1].T


@lower_factor.defjvp
@full_precision
def _derivative_of_lower_factor(primals, tangents):
    Q, R = positive_qr(primals[0].T)
    change = tangents[0] @ Q
    return R.T, change + R.T @ triangular_turn(R.T, change)


def triangular_turn(lower: Float[Array, "m p"], change: Float[Array, "m p"]) -> Float[Array, "p p"]:
    """The rate Omega, antisymmetric, at which columns turn so that a lower triangular matrix stays triangular.

    The matrix A changes at the rate `change + A Omega`. Rows that depend on earlier ones do not turn anything: if they
    come to differ from these, A does not stay triangular, but `A A^T` still changes at the right rate. Derived here.
    """
    k, p = min(lower.shape), lower.shape[1]
    square = lower[:k, :k]
    rounding = jnp.finfo(square.dtype).eps * max(lower.shape) * jnp.max(jnp.abs(lower))
    there = (jnp.abs(jnp.diagonal(square)) > rounding)[:, None]
    inverse = _inverse(jnp.where(there, square, jnp.eye(k, dtype=square.dtype)).T).T
    omega = -jnp.triu(jnp.where(there, inverse @ change[:k], 0.0), 1)
    omega = jnp.concatenate([omega, jnp.zeros((p - k, p), omega.dtype)])
    return omega - omega.T


BY_COLUMNS_UP_TO = 4
"""Matrices with at most this many columns are orthogonalised column by column, in all lanes at once; wider matrices go
to LAPACK."""


@inlined
def pinv(A: Float[Array, "m n"]) -> Float[Array, "n m"]:
    """The pseudo-inverse, equal to `jnp.linalg.pinv`, by a QR factorisation if the rank is certainly full.

    `A = Q R` has the pseudo-inverse `R^-1 Q^T`. Its error is the condition number of A times eps, as with the singular
    values, in a seventh of their time. If `||A|| ||A^+||` is so large that a singular value may be rounding, the
    singular values are used.
    """
    return _pinv(A.T).T if A.shape[0] < A.shape[1] else _pinv(A)


@jax.custom_jvp
def _pinv(A: Float[Array, "m n"]) -> Float[Array, "n m"]:
    """The pseudo-inverse of a matrix with `m >= n`."""
    return _pinvs(A[None])[0]


@_pinv.defjvp
@full_precision
def _derivative_of_pinv(primals, tangents):
    (A,), (dA,) = primals, tangents
    P = _pinv(A)
    # Golub and Pereyra 1973, for constant rank, arranged so that no square matrix of the longer side is formed.
    inside, out, within = P @ dA @ P, dA.T - (dA.T @ A) @ P, dA.T @ P.T @ P
    return P, P @ (P.T @ out) + within - P @ (A @ within) - inside


@jax.custom_batching.custom_vmap
@full_precision
def _pinvs(A: Float[Array, "lanes m n"]) -> Float[Array, "lanes n m"]:
    if A.shape[2] <= BY_COLUMNS_UP_TO:
        found = _by_columns(A)
    else:
        Q, R = jax.vmap(qr)(A)
        found = jax.vmap(_inverse)(R) @ jnp.swapaxes(Q, 1, 2)
    squares = jnp.sum(A**2, (1, 2)) * jnp.sum(found**2, (1, 2))
    known = squares < (10 * A.shape[1] * jnp.finfo(A.dtype).eps) ** -2.0  # the relative size that jnp.linalg.pinv keeps
    # One branch for all lanes: with a branch per lane, `vmap` would compute both sides.
    by_svd = jax.vmap(lambda A, found, known: jnp.where(known, found, _pinv_by_svd(A)))
    return jax.lax.cond(jnp.all(known), lambda: found, lambda: by_svd(A, found, known))


@_pinvs.def_vmap
def _pinvs_of_batches(size, batched, A):
    lanes, m, n = A.shape[1:]
    return _pinvs(A.reshape(size * lanes, m, n)).reshape(size, lanes, n, m), True


def _by_columns(A: Float[Array, "lanes m n"]) -> Float[Array, "lanes n m"]:
    """Pseudo-inverses by the Gram-Schmidt method without square roots: `A = Q T`, where T has a unit diagonal.

    Each column is orthogonalised twice: after a single pass, the products with `Q^T` would contain the square of the
    condition number.
    """
    n = A.shape[2]
    Q, rows = [], []
    T: dict[tuple[int, int], Any] = dict.fromkeys([(i, j) for j in range(n) for i in range(j)], 0.0)
    for j in range(n):
        column = A[:, :, j]
        for i in 2 * list(range(j)):
            along = jnp.sum(rows[i] * column, axis=1, keepdims=True)
            column, T[i, j] = column - along * Q[i], T[i, j] + along
        Q.append(column)
        rows.append(column / jnp.sum(column**2, axis=1, keepdims=True))
    for i in reversed(range(n)):
        rows[i] = rows[i] - sum(T[i, j] * rows[j] for j in range(i + 1, n))
    return jnp.stack(rows, axis=1)

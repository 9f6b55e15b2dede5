"""Programs: functions that XLA compiles once per kind of arguments, with an effort that suits the length of the run."""

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from ._checks import is_traced

F = TypeVar("F", bound=Callable)

QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options for programs that run for milliseconds. Compiling takes 0.6 of the time, running up to twice as long
as with full optimisation."""

THOROUGH = {"xla_cpu_prefer_vector_width": 512, "xla_backend_optimization_level": 2}
"""Compiler options for programs that run for longer on a CPU. LLVM uses half of a processor's 512 bits unless told
otherwise. Its level 3 compiles for a seventh longer than level 2, and the programs are no faster."""

SMALL = 4096
"""Work on one state of up to this many numbers takes milliseconds, so its program is compiled with little effort."""


def thorough() -> dict[str, int]:
    """The compiler options `THOROUGH`, without those that the environment variable `XLA_FLAGS` sets."""
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in THOROUGH.items() if name not in given}


def full_precision(function: Callable) -> Callable:
    """The same function, whose matrix products keep the precision of their operands.

    By default, an accelerator multiplies float32 with 7 or 10 bits. JAX traces batching rules and derivatives after the
    function that holds them, so a context around that function does not reach them.
    """

    @functools.wraps(function)
    def precise(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return precise


class Program:
    """A function of pytrees as a compiled program, in full precision. Arrays are its inputs; everything else is static.

    On a CPU, if it is not part of a larger program or of a batch, it is compiled with the options `thorough`, or with
    little effort if `quick`.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        of_leaves = _of_leaves(full_precision(function))
        self._part = jax.jit(of_leaves, static_argnums=0)
        self._quick, self._thorough = (
            jax.jit(of_leaves, static_argnums=0, compiler_options=options) for options in (QUICK, thorough())
        )

    def __call__(self, *args: Any, quick: bool = False) -> Any:
        static, arrays = _leaves_of(args)
        if any(map(_in_program, arrays)) or jax.default_backend() != "cpu":
            return self._part(static, arrays)
        return (self._quick if quick else self._thorough)(static, arrays)


def _in_program(x: Any) -> bool:
    """Whether an array is part of a larger program or of a batch, not only differentiated outside of programs.

    Before jax 0.12, whatever is differentiated counts as part of a program, and takes no compiler options.
    """
    while jax.__version_info__ >= (0, 12) and is_traced(x) and hasattr(x, "primal"):
        x = x.primal
    return is_traced(x)


def inlined(function: F, static: str | None = None) -> F:
    """The same function of arrays, as one program if it is called outside of programs, not one for each operation.

    Args:
        function: takes arrays.
        static: the name of an argument that is not an array.
    """
    return jax.jit(function, inline=True, static_argnames=static)  # pyright: ignore[reportReturnType]


def called(function: Callable) -> Callable:
    """The same function as a call that XLA does not inline.

    It is compiled once, however often it is used, and its operands are computed once. A fusion would recompute them for
    each entry that reads them.
    """
    program = _program(function, inline=False)
    return lambda *args: _call(program, *_leaves_of(args))


def _program(function: Callable, inline: bool) -> Callable:
    """The function of `_leaves_of`, which JAX traces once for arguments of one kind, `inline` or as a call."""
    return jax.jit(_of_leaves(full_precision(function)), static_argnums=0, inline=inline)


def _call(program: Callable, static: Any, arrays: list[Any]) -> Any:
    with set_xla_metadata(inlineable="false"):
        return program(static, arrays)


_kept_program = functools.lru_cache(maxsize=64)(_program)
"""A program that is traced once for all loops that hold it. JAX maps the body of a loop several times."""


LANES_LAST_UP_TO = 2048
"""The most numbers per lane in the arguments of a function that takes its lanes last. A step has two states among its
arguments. Lanes last is faster up to 900 numbers in a state (`benchmarks/sweep.py --only width`); above that, the sums
of a step are too long."""


def lanes_last(function: Callable, mapped: Callable | None = None, up_to: int = LANES_LAST_UP_TO) -> Callable:
    """The same function of pytrees, but on a CPU it takes the lanes of a `jax.vmap` as the last axis of all its arrays.

    Equal entries of neighbouring lanes are then adjacent in memory, which suits vector instructions. The function must
    allow such trailing axes. If its arrays have at most `up_to` numbers per lane, it is called once for all lanes.
    Otherwise it is mapped as usual, or `mapped`, which must give the same results, is mapped instead. Derivatives are
    those of the original function.
    """

    def call(*args: Any) -> Any:
        static, arrays = _leaves_of(args)

        def alone(*arrays: Any) -> Any:
            return _kept_program(function, inline=True)(static, list(arrays))

        def in_lanes(*arrays: Any) -> Any:
            return _call(_kept_program(function, inline=False), static, list(arrays))

        def in_turn(*arrays: Any) -> Any:
            return _kept_program(mapped or function, inline=True)(static, list(arrays))

        return _lanes_last(alone, in_lanes, in_turn, up_to)(*arrays)

    return call


def _lanes_last(function: Callable, in_lanes: Callable, mapped: Callable, up_to: int) -> Callable:
    """`lanes_last` for functions of arrays. With lanes, the function is the call `in_lanes`: otherwise the code that
    turns the outcome would repeat the last operations for each entry."""

    @jax.custom_batching.custom_vmap
    def single(*arrays):
        return function(*arrays)

    @single.def_vmap
    def of_lanes(size, batched, *arrays):
        if jax.default_backend() != "cpu" or sum(x.size for x in arrays) > up_to * size:
            axes = tuple(0 if b else None for b in batched)
            outcome = jax.vmap(mapped, axes, axis_size=size)(*arrays)
        else:
            turned = (_turned(x, size, b) for x, b in zip(arrays, batched, strict=True))
            outcome = _lanes_last(in_lanes, in_lanes, mapped, up_to)(*turned)
            outcome = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), outcome)
        return outcome, jax.tree.map(lambda _: True, outcome)

    derived = jax.custom_jvp(single)
    derived.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return derived


def _turned(x: jax.Array, size: int, batched: bool) -> jax.Array:
    """An array with the lanes as its last axis."""
    return jnp.moveaxis(x, 0, -1) if batched else jnp.broadcast_to(x[..., None], (*x.shape, size))


_ARRAY = object()
"""Placeholder for an array among the static leaves."""


def _leaves_of(args: Any) -> tuple[Any, list[Any]]:
    """The static part of pytrees, and their arrays."""
    leaves, tree = jax.tree.flatten(args)
    others = tuple(_ARRAY if eqx.is_array(leaf) else leaf for leaf in leaves)
    return (tree, others), [leaf for leaf in leaves if eqx.is_array(leaf)]


def _of_leaves(function: Callable) -> Callable:
    """The function, with the output of `_leaves_of` as its arguments."""

    @functools.wraps(function)  # gives the program the name of the function
    def of_leaves(static: Any, arrays: list[Any]) -> Any:
        tree, others = static
        numbers = iter(arrays)
        return function(*jax.tree.unflatten(tree, [next(numbers) if x is _ARRAY else x for x in others]))

    return of_leaves

"""Programs: functions that XLA compiles once for each kind of arguments, with as much effort as a run is worth."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.experimental.xla_metadata import set_xla_metadata

from ._checks import is_traced

QUICK = {"xla_backend_optimization_level": 0}
"""How XLA compiles a program that runs for milliseconds: in 0.6 of the time, to code that takes up to twice as long."""

SMALL = 4096
"""Work on one state of up to this many numbers takes milliseconds, so it is compiled with little effort."""


class Program:
    """A function of pytrees as a program: arrays are its input, and all else decides which program it is.

    `quick=True` compiles it with little effort, on a CPU and where it is not part of a larger program.
    """

    def __init__(self, function: Callable):
        functools.update_wrapper(self, function)
        of_leaves = _of_leaves(function)
        self._thorough = jax.jit(of_leaves, static_argnums=0)
        self._quick = jax.jit(of_leaves, static_argnums=0, compiler_options=QUICK)

    def __call__(self, *args: Any, quick: bool = False) -> Any:
        static, arrays = _leaves_of(args)
        quick = quick and not any(map(is_traced, arrays)) and jax.default_backend() == "cpu"
        return (self._quick if quick else self._thorough)(static, arrays)


def called(function: Callable) -> Callable:
    """The same function as a call that XLA's inliner leaves alone, so that it is compiled once, however often it is
    used, and its operands are computed once: a fusion would compute them anew for each entry that reads them."""
    program = jax.jit(_of_leaves(function), static_argnums=0)

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return program(*_leaves_of(args))

    return call


_ARRAY = object()
"""Stands for an array among what is no array."""


def _leaves_of(args: Any) -> tuple[Any, list[Any]]:
    """The static part of some pytrees, and their arrays."""
    leaves, tree = jax.tree.flatten(args)
    others = tuple(_ARRAY if eqx.is_array(leaf) else leaf for leaf in leaves)
    return (tree, others), [leaf for leaf in leaves if eqx.is_array(leaf)]


def _of_leaves(function: Callable) -> Callable:
    """The function of what `_leaves_of` gives."""

    @functools.wraps(function)  # its name is that of the program
    def of_leaves(static: Any, arrays: list[Any]) -> Any:
        tree, others = static
        numbers = iter(arrays)
        return function(*jax.tree.unflatten(tree, [next(numbers) if x is _ARRAY else x for x in others]))

    return of_leaves


def under_vmap(x: jax.Array) -> bool:
    """Whether an array is one lane of many, as far as is known: not inside of a `jax.jit` that is mapped itself."""
    seen = []

    @jax.custom_batching.custom_vmap
    def look(x):
        return x

    @look.def_vmap
    def _(size, batched, x):
        seen.append(size)
        return x, batched[0]

    if is_traced(x):
        look(jax.lax.stop_gradient(x))
    return bool(seen)

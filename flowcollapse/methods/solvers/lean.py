"""Diffrax's driver without the parts that these runs can do without, which are half of a small program.

It checks at run time that times increase, which is checked before (`simulation.checked_times`), by callbacks to the
host, which no compilation cache takes; and it finds the number 100 roundings below the end by 100 steps. Diffrax looks
both up in `equinox.internal`. While a run is traced they stand replaced there, for this thread alone.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp

_here = threading.local()
_lock = threading.Lock()
_depth = 0

ROUNDINGS = 100
"""How many times diffrax asks for the number before the end."""


class _Replaced:
    """A function of `equinox.internal` that this thread has replaced by another; other threads get the original."""

    def __init__(self, name: str, other: Any):
        self.name, self.original, self.other = name, getattr(eqxi, name), other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.other if getattr(_here, "lean", 0) else self.original)(*args, **kwargs)


def _unchecked(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _well_before(x: Any) -> Any:
    """The number `ROUNDINGS` before x; that one itself if it is what this gave last."""
    if x is getattr(_here, "found", None):
        return x
    x = jax.lax.stop_gradient(jnp.asarray(x))
    _here.found = x - ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.abs(x)
    return _here.found


_replaced = (_Replaced("error_if", _unchecked), _Replaced("prevbefore", _well_before))


@contextlib.contextmanager
def lean_diffrax() -> Iterator[None]:
    """While this lasts, what this thread traces of diffrax is without these parts."""
    global _depth
    with _lock:
        _depth += 1
        for one in _replaced:
            setattr(eqxi, one.name, one)
    _here.lean = getattr(_here, "lean", 0) + 1
    try:
        yield
    finally:
        _here.lean -= 1
        _here.found = None
        with _lock:
            _depth -= 1
            for one in _replaced if _depth == 0 else ():
                setattr(eqxi, one.name, one.original)

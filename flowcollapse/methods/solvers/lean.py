"""Diffrax's driver without two parts that these runs do not need, which make up half of a small program.

First, diffrax checks at run time that times increase. `simulation.checked_times` has done so before, and the check uses
callbacks to the host, so programs with it cannot be cached on disk. Second, diffrax finds the number 100 roundings
below the end in 100 steps. Diffrax takes both functions from `equinox.internal`. While a run is traced, they are
replaced there, for this thread only.
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
"""How many times diffrax steps to the previous floating-point number, from the end."""


class _Replaced:
    """A replacement for a function of `equinox.internal` in this thread; other threads get the original function."""

    def __init__(self, name: str, other: Any):
        self.name, self.original, self.other = name, getattr(eqxi, name), other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (self.other if getattr(_here, "lean", 0) else self.original)(*args, **kwargs)


def _unchecked(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _well_before(x: Any) -> Any:
    """The number `ROUNDINGS` before x, or x itself if the previous call returned it."""
    if x is getattr(_here, "found", None):
        return x
    x = jax.lax.stop_gradient(jnp.asarray(x))
    _here.found = x - ROUNDINGS * jnp.finfo(x.dtype).eps * jnp.abs(x)
    return _here.found


_replaced = (_Replaced("error_if", _unchecked), _Replaced("prevbefore", _well_before))


@contextlib.contextmanager
def lean_diffrax() -> Iterator[None]:
    """A context in which this thread traces diffrax without these parts."""
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

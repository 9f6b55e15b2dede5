"""Functions of one state, applied over all leading axes of a state and compiled as one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..programs import SMALL, Program


def of_states(function: Callable, model: Any, state: Any, *options: Any) -> Any:
    """`function(model, state, *options)` over the leading axes of the state.

    Outside of a program it is compiled as one program, because JAX would compile each of its operations separately. One
    program serves all numbers of the model.
    """
    model, state = floating(model, state)
    return _of_states(function, model, state, options, quick=is_small(state))


@Program
def _of_states(function: Callable, model: Any, state: Any, options: tuple[Any, ...]) -> Any:
    return over_batch(lambda one: function(model, one, *options), state)


def is_small(state: Any) -> bool:
    """Whether work on these states takes only milliseconds, so that it should be compiled with little effort."""
    return state.W.size + state.X.size <= SMALL


def over_batch(function: Callable, state: Any) -> Any:
    """`function(state)` over its leading axes. The arrays of the columns may have only the first of them, the lanes."""
    if state.W.ndim == 2:
        return function(state)

    def one(X, W, b, columns):
        return over_batch(function, type(state)(X=X, W=W, b=b, columns=columns))

    mapped_columns = 0 if state.columns.batch_ndim > 0 else None
    return jax.vmap(one, (0, 0, 0, mapped_columns))(state.X, state.W, state.b, state.columns)


def floating(model: Any, state: Any) -> tuple[Any, Any]:
    """A model and a state with arrays of one precision, so that a new value of the decay does not recompile."""
    dtype = jnp.result_type(state.X, state.W, state.b, jnp.float32)
    X, W, b = (jnp.asarray(x, dtype) for x in (state.X, state.W, state.b))
    model = jax.tree.map(lambda x: jnp.asarray(x, dtype), model)
    return model, type(state)(X=X, W=W, b=b, columns=state.columns)

"""Many runs at once: a function of one lane over arrays of lanes, block by block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 16
"""Lanes that run in lockstep. Small states gain from blocks of 16 to 32 and lose from larger ones."""


def map_lanes(function: Callable[..., Any], *lanes: Any, done: Callable[[int], Any] | None = None) -> Any:
    """`function` of every lane, compiled once.

    Args:
        function: of one element of each array in `lanes`, to any pytree of arrays.
        lanes: arrays of shape (lanes, ...). Neighbours run in lockstep, so lanes of like cost should stand together.
        done: called after each block with the number of lanes that it finished.

    Returns:
        The results as NumPy arrays with the lanes in front.

    Example:
        >>> import numpy as np
        >>> from flowcollapse.lanes import map_lanes
        >>> map_lanes(lambda x, y: x + y, np.arange(3), np.ones(3, int)).tolist()
        [1, 2, 3]
    """
    total = len(lanes[0])
    width = min(WIDTH, total)
    block = jax.jit(jax.vmap(function))
    results = []
    for first in range(0, total, width):
        # The last block is filled up with copies of the last lane, so that it needs no program of its own.
        index = np.minimum(np.arange(first, first + width), total - 1)
        results.append(jax.device_get(block(*(jnp.asarray(x[index]) for x in lanes))))
        if done is not None:
            done(min(width, total - first))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *results)

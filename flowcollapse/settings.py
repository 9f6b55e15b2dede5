"""Precision is chosen by the program that runs, never on import."""

import jax


def enable_x64(enable: bool = True) -> None:
    """Let JAX compute in float64, or forbid it again. Call it before any state is made.

    float32 loses `b - 1/C`, `B - W^T` and SNC1 for eps <= 1e-2, whatever the solver.
    """
    jax.config.update("jax_enable_x64", enable)

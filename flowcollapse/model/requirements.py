"""The checks of models and states that functions of the package require."""

from typing import Any

import jax
import numpy as np

from .._checks import is_traced, shown
from .._errors import UsageError
from .columns import Columns
from .state import CURE, State
from .ufm import UFM


def check_model(model: Any) -> None:
    """Raise `UsageError` unless `model` is a model."""
    if not isinstance(model, UFM):
        raise UsageError(
            f"model must be an fc.UFM, got the {type(model).__name__} {shown(model)}: make one with fc.UFM."
        )


def require(
    model: Any,
    *,
    squared_error: bool = True,
    summed: bool = True,
    balanced: str | None = None,
    bias: str | None = None,
    no_decay: str | None = None,
    equal_decay: str | None = None,
    modes: int | None = None,
) -> None:
    """Raise `UsageError` unless a closed form holds for the model.

    Args:
        model: the model.
        squared_error: the loss must be the squared error.
        summed: the squared error must be summed over the samples, not averaged.
        balanced, bias, no_decay, equal_decay: the classes must have equal counts, there must be a bias, no weight
            decay, or equal decay of W and H. Each text ends the message: it gives the reason and, after a colon, the
            cure. Traced decays are not checked.
        modes: the number of growing modes; there must be at least as many features.
    """
    check_model(model)
    if squared_error and not model.loss.squared_error:
        raise UsageError(
            f"loss is {model.loss.text!r}, but this is known for the squared error only: "
            'use loss="squared", or fc.simulate.'
        )
    if squared_error and summed and model.reduction != "sum":
        raise UsageError(
            "reduction is 'mean', but this is known for the sum over the samples only: use model.summed, whose time "
            f"runs {model.num_samples} times as fast."
        )
    if balanced is not None and not model.balanced:
        raise UsageError(f"samples_per_class={model.samples_per_class} is imbalanced, but {balanced}.")
    if bias is not None and not model.use_bias:
        raise UsageError(f"use_bias is False, but {bias}.")
    decays = known_decays(model)
    if no_decay is not None and any(decays or ()):
        raise UsageError(f"weight_decay is {model.weight_decay!r}, but {no_decay}.")
    if equal_decay is not None and decays is not None and decays[0] != decays[1]:
        raise UsageError(f"weight_decay is {decays[0]:g} for W and {decays[1]:g} for H, but {equal_decay}.")
    if modes is not None and model.num_features < modes:
        raise UsageError(
            f"num_features is {model.num_features}, but {modes} modes grow and with fewer features the limit depends "
            "on the start: raise num_features, or use fc.theory.limits.plateau."
        )


def check_one(state: State, argument: str = "start") -> None:
    """Raise `UsageError` unless `state` is a single state, without leading axes."""
    if state.W.ndim != 2:
        raise UsageError(f"{argument} has leading axes {state.W.shape[:-2]}: map over them with jax.vmap.")


def check_columns(model: UFM, columns: Columns, num_columns: int | None = None) -> None:
    """Raise `UsageError` unless the model's loss is the same in these columns as among the samples."""
    if not columns.admits(model.loss, num_columns):
        raise UsageError(
            f"state has {columns.name} columns with a part within the classes, which are exact for quadratic losses "
            f"only, and the loss is {model.loss.text!r}: use a state of samples, fc.State(H=state.H, W=state.W, "
            "b=state.b)."
        )


def check_state(model: UFM, state: State, argument: str = "state") -> None:
    """Raise `UsageError` unless `state` has the model's shapes and fits its loss. Messages call it `argument`."""
    check_model(model)
    if not isinstance(state, State):
        kind = type(state).__name__
        raise UsageError(f"{argument} must be an fc.State, got the {kind} {shown(state)}: use fc.initial or fc.State.")
    for name, array in (("W", state.W), ("H", state.X), ("b", state.b)):
        if not hasattr(array, "shape"):
            raise UsageError(f"{argument}.{name} must be an array, got {shown(array)}: {CURE}.")
        if array.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
            raise UsageError(
                f"{argument}.{name} is float64 but JAX runs in 32 bits: call fc.enable_x64() first, or pass float32."
            )
    check_columns(model, state.columns, *state.X.shape[-1:])
    C, p = model.num_classes, model.num_features
    batch, columns = state.W.shape[:-2], state.columns
    if columns.reduced and columns.counts != model.counts:
        raise UsageError(
            f"{argument} was made for samples_per_class={columns.counts}, the model has {model.counts}: "
            "use the model that the state was made for."
        )
    wanted_X = (*batch, p, max(C, *state.X.shape[-1:]) if columns.reduced else model.num_samples)
    for name, array, wanted in (("W", state.W, (*batch, C, p)), ("H", state.X, wanted_X), ("b", state.b, (*batch, C))):
        if array.shape != wanted:
            raise UsageError(
                f"{argument}.{name} has shape {array.shape} but the model needs {wanted} "
                f"(num_classes={C}, num_features={p}, {model.num_samples} samples): reshape it or change the model."
            )


def known_decays(model: UFM) -> tuple[float, float, float] | None:
    """`(lam_W, lam_H, lam_b)`, or None if one of them is traced."""
    decay = model.weight_decay
    if any(is_traced(x) for x in jax.tree.leaves(decay)):
        return None
    w, h, b = decay if isinstance(decay, tuple) else np.broadcast_to(np.asarray(decay), 3)
    return float(w), float(h), float(b)

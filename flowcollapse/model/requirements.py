"""The guard of the package: what a model or a state must be for a function to answer."""

from typing import Any

import jax
import numpy as np

from .._checks import is_traced, shown
from .._errors import UsageError
from .columns import Columns
from .state import CURE, State
from .ufm import UFM, loss_of


def check_model(model: Any) -> None:
    """Raise `UsageError` unless `model` is a model."""
    if not isinstance(model, UFM):
        raise UsageError(
            f"model must be an fc.UFM, got the {type(model).__name__} {shown(model)}: make one with fc.UFM."
        )


def check_squared_error(model: UFM) -> None:
    """Raise `UsageError` unless the model has the loss that closed forms are known for."""
    check_model(model)
    if not loss_of(model).squared_error:
        raise UsageError(
            f"loss is {model.loss!r} but closed forms are known for the squared error: "
            'use loss="squared", or fc.simulate.'
        )


def check_columns(model: UFM, columns: Columns | None) -> None:
    """Raise `UsageError` unless the model's loss is the same in these columns as among the samples."""
    if columns is not None and not columns.admits(loss_of(model)):
        raise UsageError(
            f"state has {columns.name} columns, which are exact for the squared error only, and the loss is "
            f"{model.loss!r}: use a state of samples, fc.State(H=state.H, W=state.W, b=state.b)."
        )


def check_state(model: UFM, state: State, argument: str = "state") -> None:
    """Raise `UsageError` unless `state`, which users know as `argument`, has the model's shapes and fits its loss."""
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
    check_columns(model, state.columns)
    C, p = model.num_classes, model.num_features
    batch, columns = state.W.shape[:-2], state.columns
    if columns is not None and columns.counts != model.counts:
        raise UsageError(
            f"{argument} was made for samples_per_class={columns.counts}, the model has {model.counts}: "
            "use the model that the state was made for."
        )
    wanted_X = (*batch, p, model.num_samples if columns is None else max(C, *state.X.shape[-1:]))
    for name, array, wanted in (("W", state.W, (*batch, C, p)), ("H", state.X, wanted_X), ("b", state.b, (*batch, C))):
        if array.shape != wanted:
            raise UsageError(
                f"{argument}.{name} has shape {array.shape} but the model needs {wanted} "
                f"(num_classes={C}, num_features={p}, {model.num_samples} samples): reshape it or change the model."
            )


def check_plain(model: UFM) -> None:
    """Raise `UsageError` unless the classes are balanced, the loss is the squared error and nothing decays."""
    check_squared_error(model)
    if not model.balanced:
        raise UsageError(
            f"samples_per_class={model.samples_per_class} is imbalanced, and there the theory of small starts knows "
            "the limits of W W^T and b alone: use fc.theory.limits.imbalanced_limit, or fc.simulate."
        )
    if any(not is_traced(x) and np.any(np.asarray(x)) for x in jax.tree.leaves(model.weight_decay)):
        raise UsageError(
            f"weight_decay is {model.weight_decay!r}, and with decay the theory of small starts knows the limits of "
            "W W^T and b alone: use fc.theory.limits.decay_limit, or fc.simulate."
        )


def check_features(model: UFM, modes: int) -> None:
    """Raise `UsageError` unless there is a feature for each of the modes that grow."""
    if model.num_features < modes:
        raise UsageError(
            f"num_features is {model.num_features}, but {modes} modes grow and with fewer features the limit depends "
            "on the start: raise num_features, or use fc.theory.limits.plateau."
        )


def known_decays(model: UFM) -> tuple[float, float, float] | None:
    """`(lam_W, lam_H, lam_b)`, or None where one of them is traced."""
    decay = model.weight_decay
    if any(is_traced(x) for x in jax.tree.leaves(decay)):
        return None
    w, h, b = decay if isinstance(decay, tuple) else np.broadcast_to(np.asarray(decay), 3)
    return float(w), float(h), float(b)


def check_equal_decay(model: UFM, why: str) -> None:
    """Raise `UsageError` if the decays of W and H are known and differ."""
    known = known_decays(model)
    if known is not None and known[0] != known[1]:
        raise UsageError(f"weight_decay is {known[0]:g} for W and {known[1]:g} for H, and {why}: make them equal.")

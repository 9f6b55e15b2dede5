"""Demands on models that the theory of the logit losses shares."""

from .._errors import UsageError
from ..model.ufm import UFM


def require_balanced_contrastive(model: UFM, what: str) -> None:
    """Raise `UsageError` unless the model is balanced with a loss of the kind of cross-entropy."""
    if not model.loss.contrastive:
        raise UsageError(
            f"loss is {model.loss.text!r}, but {what} is known for losses of the kind of cross-entropy only: "
            'use loss="cross-entropy", "label-smoothing:0.1" or "focal:2".'
        )
    if not model.balanced:
        raise UsageError(
            f"samples_per_class={model.samples_per_class} is imbalanced, but {what} is known for equal counts: "
            "use equal counts."
        )


def require_features(model: UFM, least: int, what: str) -> None:
    """Raise `UsageError` if the model has fewer features than a closed form needs."""
    if model.num_features < least:
        raise UsageError(
            f"num_features is {model.num_features}, but {what} needs {least} and with fewer features it is not "
            f"known: raise num_features to {least}."
        )

"""The metrics by name, and which of them exist for a model and a state."""

from collections.abc import Iterable
from typing import Any

from .._checks import shown
from .._errors import UsageError, nearest
from ..model.ufm import UFM
from . import dynamics, neural_collapse, strong_collapse
from .view import Metric

METRICS: dict[str, Metric] = {**strong_collapse.METRICS, **neural_collapse.METRICS, **dynamics.METRICS}

SAMPLES_UP_TO = 2**20
"""The most entries of H for which metrics that need single samples are saved by default."""


def available(model: UFM, columns) -> tuple[str, ...]:
    """The metrics that exist for a model in the given columns (None means samples)."""
    knows_samples = columns is None or columns.knows_samples
    return tuple(
        name
        for name, metric in METRICS.items()
        if (model.balanced or not metric.equal_counts) and (knows_samples or not metric.samples)
    )


def checked_names(model: UFM, columns, names: Any) -> tuple[str, ...]:
    """The requested metrics, or the default ones of a run.

    The default is every available metric that is not costly and, if H has many entries, needs no single samples.

    Raises:
        UsageError: for an unknown metric, or one that does not exist for the model or the state.
    """
    known = available(model, columns)
    if names is None:
        large = model.num_features * model.num_samples > SAMPLES_UP_TO
        return tuple(name for name in _not_costly(known) if not (large and METRICS[name].samples))
    asked = asked_names(names)
    for name in asked:
        if name not in METRICS:
            hint = nearest(name, METRICS) or "."
            raise UsageError(f"metric {name!r} is not known: choose from {', '.join(METRICS)}{hint}")
        if name not in known and METRICS[name].equal_counts and not model.balanced:
            raise UsageError(f"metric {name!r} is defined for equal counts, not for {model.samples_per_class}.")
        if name not in known:
            raise UsageError(
                f"metric {name!r} needs single samples, and the state was drawn already reduced: "
                "start from fc.initial.sphere(..., reduced=False)."
            )
    return asked


def asked_names(names: Any) -> tuple[str, ...]:
    """Names of metrics in lower case, each once, from one text ("snc1" or "snc1,snc2") or any iterable of texts.

    The iterable is read once, so it may be a generator. A set is sorted into the order of `METRICS`.

    Raises:
        UsageError: for anything else.
    """
    wrong = "metrics must be names, such as 'snc1,nc1' or ['snc1', 'nc1'], got "
    try:
        texts = [names] if isinstance(names, str | bytes) else list(names)
    except TypeError:  # not iterable
        raise UsageError(f"{wrong}{shown(names)}.") from None
    found: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{wrong}{shown(text)} among them.")
        found |= dict.fromkeys(part.strip().lower() for part in text.split(","))
    if isinstance(names, set | frozenset):
        order = list(METRICS)
        return tuple(sorted(found, key=lambda name: (order.index(name) if name in METRICS else len(order), name)))
    return tuple(found)


def _not_costly(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not METRICS[name].costly)

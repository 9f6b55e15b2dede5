"""The metrics by name, and which of them exist for a model and a state."""

from collections.abc import Iterable
from typing import Any

from .._checks import shown
from .._errors import UsageError
from .._registry import Registry
from ..model.columns import SAMPLES, Columns
from ..model.ufm import UFM
from . import dynamics, geometry, margins, neural_collapse, strong_collapse
from .target import lack_of_target
from .view import Metric

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        **strong_collapse.METRICS,
        **neural_collapse.METRICS,
        **geometry.METRICS,
        **margins.METRICS,
        **dynamics.METRICS,
    },
    instead="name one module:name",
    admits=lambda entry: isinstance(entry, Metric),
)
"""The metrics by name. To add your own metric, assign `METRICS["name"] = Metric(function, "long name")`."""

SAMPLES_UP_TO = 2**20
"""The most entries of H for which metrics that need single samples are saved by default."""


def available(model: UFM, columns: Columns = SAMPLES) -> tuple[str, ...]:
    """The metrics that exist for a model in the given columns, by default samples."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if metric.of_model
        and (model.balanced or not metric.equal_counts)
        and (model.loss.squared_error or not metric.squared_error)
        and not (metric.target and lack_of_target(model))
        and (columns.knows_samples or not metric.samples)
    )


def checked_names(model: UFM, columns: Columns, names: Any) -> tuple[str, ...]:
    """The requested metrics, or the default ones of a run.

    The default is every available metric that is not costly, belongs to the loss and, if H has many entries, needs no
    single samples.

    Raises:
        UsageError: for an unknown metric, or one that does not exist for the model or the state.
    """
    if names is None:
        large = model.num_features * model.num_samples > SAMPLES_UP_TO
        return tuple(name for name in usual(model, columns) if not (large and METRICS[name].samples))
    asked = asked_names(names)  # first, because it registers metrics of other modules
    known = available(model, columns)
    for name in asked:
        if not METRICS[name].of_model:
            raise UsageError(
                f"metric {name!r} is for the features of a network, not for runs of the model: "
                "use fc.metrics.from_features."
            )
        if METRICS[name].squared_error and not model.loss.squared_error:
            raise UsageError(
                f"metric {name!r} measures against the collapse of the squared error, and the loss is "
                f"{model.loss.text!r}: leave it out, or use a metric that starts with nc."
            )
        if METRICS[name].target and (reason_and_cure := lack_of_target(model)):
            raise UsageError(f"metric {name!r} {reason_and_cure}.")
        if name not in known and METRICS[name].equal_counts and not model.balanced:
            raise UsageError(f"metric {name!r} is for equal counts, not for {model.samples_per_class}: leave it out.")
        if name not in known:
            raise UsageError(
                f"metric {name!r} needs single samples, and the state was drawn already reduced: "
                "start from fc.initial.sphere(..., reduced=False)."
            )
    return asked


def common_names(models: Iterable[UFM], columns: Columns, names: Any) -> tuple[str, ...]:
    """The requested metrics, checked, or the default metrics that all these models have."""
    asked = None if names is None else asked_names(names)
    first, *others = [checked_names(model, columns, asked) for model in models]
    return tuple(name for name in first if all(name in of_model for of_model in others))


def asked_names(names: Any) -> tuple[str, ...]:
    """Names of metrics in lower case, each once, from one text ("snc1" or "snc1,snc2") or any iterable of texts.

    The iterable is read once, so it may be a generator. A set is sorted into the order of `METRICS`.

    Raises:
        UsageError: for anything else.
    """
    wrong = "metrics must be names, got "
    cure = "write 'snc1,nc1' or ['snc1', 'nc1']"
    try:
        texts = [names] if isinstance(names, str | bytes) else list(names)
    except TypeError:  # not iterable
        raise UsageError(f"{wrong}{shown(names)}: {cure}.") from None
    found: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{wrong}{shown(text)} among them: {cure}.")
        found |= dict.fromkeys(METRICS.name(part.strip()) for part in text.split(","))
    if isinstance(names, set | frozenset):
        order = list(METRICS)
        return tuple(sorted(found, key=order.index))
    return tuple(found)


def usual(model: UFM, columns: Columns) -> tuple[str, ...]:
    """The available metrics that need not be requested by name."""
    return tuple(
        name
        for name in available(model, columns)
        if METRICS[name].usual and (model.loss.shift_invariant or not METRICS[name].shift_invariant)
    )

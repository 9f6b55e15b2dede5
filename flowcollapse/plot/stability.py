"""Where gradient descent comes to rest, against its step size: in collapse, away from it, or nowhere."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .._errors import UsageError
from ._read import Source, read_many
from ._select import attribute, end_label, ends, equals, header, metric_of, model_options, numbers, only, single_values
from ._style import DASHED, DOTTED, GREY, OKABE_ITO, log_scale, panels
from .sweeps import VERDICT_COLORS, codes_of, legend

SHAPES = ("num_classes", "samples_per_class", "num_features")

REGIMES = {
    "rest in collapse": "#009E73",
    "rest off collapse": "#E69F00",
    "no rest": "#D55E00",
}
"""The possible behaviours, from small step sizes to large ones, and their colours."""


def stability(dataset: Source, ax: Axes | None = None, *, name: str = "snc1") -> Axes:
    """Plot a metric at the end of gradient descent against the step size, divided by collapse's stability threshold.

    Up to the ratio 1 (the ratio is `eta (C N + sqrt N)/2`), strong collapse is stable, and descent ends in it as the
    flow does. From 1 to `1 + 1/(C sqrt N)`, descent may come to rest at points of similar risk that are less curved;
    these have `SNC1 >= sqrt(C - 1) (sqrt N - mu)` with `mu = 2/eta - C N`. Above that, it rests nowhere.

    Args:
        dataset: a sweep over `learning_rate` of descent by plain `"sgd"`, see `fc.sweep`, with one value of every axis
            except `learning_rate`, `seed` and `time`. Its last time is the end.
        name: the metric.
        ax: axes to draw on. Default: a new figure.

    Returns:
        The axes, with every run as a point, runs that have not come to rest as crosses, runs that have blown up as
        triangles at the upper edge, and the medians over the seeds. For SNC1 without decay, two lines are added: the
        smallest value possible at rest, and twice that value, which is the value to first order just above the ratio 1.

    Raises:
        UsageError: for an unknown metric, no learning rates, seeds or verdicts, another axis with more than one value,
            another optimizer, or a model whose stability threshold is not known (see
            `theory.landscape.stability_threshold`).

    Source: derived here. Self-stabilization (Damian, Nichani and Lee 2023) predicts twice the bound, in every
    direction: with `D = W W^T - mu P` and the mean residual e, two steps average to `e' = eta D e` and
    `D' = -k e e^T`, so `D' - eta D^2` is conserved, and D ends as the negative root of its own square.

    Example:
        >>> import numpy, xarray, flowcollapse as fc
        >>> flags = {"flag_values": [0, 4], "flag_meanings": "plateau non_finite"}
        >>> variables = {
        ...     "snc1": (("learning_rate", "seed", "time"), [[[0.002]], [[0.535]], [[numpy.nan]]]),
        ...     "verdict": (("learning_rate", "seed"), [[0], [0], [4]], flags),
        ... }
        >>> ax = fc.plot.stability(xarray.Dataset(variables, {"learning_rate": [0.183, 0.19, 0.22]}))
        >>> [round(float(ratio), 2) for ratio in ax.lines[0].get_xdata()]
        [0.98, 1.02]
    """
    dataset = read_many(dataset)
    from ..theory import landscape  # imported here because it needs JAX, unlike the other pictures

    name = metric_of(dataset, name, ends_too=True)
    _check_plain_descent(dataset)
    values = only(ends(dataset, name), "learning_rate", "seed")
    codes, names = codes_of(dataset)
    verdicts = np.vectorize(names.get, otypes=[object])(only(codes, "learning_rate", "seed").values)
    model = _model(dataset)
    plain = model.use_bias and not np.any(model.weight_decay)
    threshold = float(landscape.stability_threshold(model))
    thresholds = [1.0, float(landscape.divergence_threshold(model)) / threshold] if model.use_bias else [1.0]
    ratios = numbers(values, "learning_rate") / threshold
    with panels(ax, 1, (6.0, 4.1)) as (one,):
        lines = [*_runs(values, ratios, verdicts, one), *_regimes(ratios, thresholds, one)]
        if name == "snc1" and plain and model.num_features >= model.num_classes - 1:
            between = np.linspace(1, thresholds[-1], 201)[1:-1]
            mu = np.asarray(landscape.settled_eigenvalue(model, threshold * between))
            bound = (model.num_classes - 1) ** 0.5 * (model.counts[0] ** 0.5 - mu)
            looks = {"color": "black", "lw": 1}
            guides = [
                Line2D(between, bound, ls=DASHED, label="least at rest", **looks),
                Line2D(between, 2 * bound, ls=DOTTED, label="to first order", **looks),
            ]
            for guide in guides:
                one.add_artist(guide)  # unlike `plot`, this does not widen the axes
            lines += guides
        one.set_xlabel(r"$\eta\,(C N + \sqrt{N})\,/\,2$" if plain else r"$\eta\,/\,\eta_{\mathrm{stable}}$")
        one.set_ylabel(end_label(dataset, name))
        here = np.isfinite(values.values) & (verdicts != "non_finite")
        if np.any(values.values[here] > 0):
            log_scale(one, "y")
        sizes = [equals(size, getattr(model, size)) for size in SHAPES if size not in values.coords]
        missing = int(np.sum(~here & (verdicts != "non_finite")))
        legend(one, lines, header(values, missing=missing, more=sizes))
    return one


def _model(dataset: xr.Dataset) -> Any:
    """The model that all runs share."""
    from ..model.ufm import UFM

    return UFM(**model_options(dataset))


def _check_plain_descent(dataset: xr.Dataset) -> None:
    """Raise `UsageError` for anything but plain gradient descent: momentum, for example, has other thresholds."""
    method, single = attribute(dataset, "method"), single_values(dataset)
    numbers = dict(method.get("options", [])) | method.get("hyperparameters", {})
    more = {name: single.get(name, value) for name, value in numbers.items() if name != "learning_rate"}
    optimizer = method.get("optimizer", "sgd")
    if optimizer != "sgd" or any(more.values()):
        words = "".join(f", {name}={value}" for name, value in more.items())
        raise UsageError(
            f"dataset is of descent by {optimizer!r}{words}, but the thresholds hold for plain gradient descent: "
            'pass a sweep of fc.Descent("sgd", ...) over learning_rate only.'
        )


def _runs(values: xr.DataArray, ratios: np.ndarray, verdicts: np.ndarray, ax: Axes) -> list[Line2D]:
    """Draw every run, and the medians, in which runs that have blown up count as infinite."""
    blown_up, resting = verdicts == "non_finite", verdicts == "plateau"
    color, edge = VERDICT_COLORS["non_finite"], ax.get_xaxis_transform()
    kinds: list[tuple[Any, str, dict[str, Any]]] = [
        (resting, "one run, at rest", {"marker": ".", "color": OKABE_ITO[0], "mew": 0, "ms": 5}),
        (~resting & ~blown_up, "one run, not at rest", {"marker": "x", "color": GREY, "ms": 4}),
        (blown_up, "one run, blown up", {"marker": "^", "color": color, "mew": 0, "ms": 6, "transform": edge}),
    ]
    x, y = np.broadcast_arrays(ratios[:, None], np.where(blown_up, 0.965, values.values))
    lines: list[Line2D] = []
    for which, label, looks in kinds:
        which = which & np.isfinite(y)
        if which.any():
            # Thousands of points make slow vector files, so the points (and nothing else) are stored as pixels.
            lines += ax.plot(x[which], y[which], ls="", alpha=0.4, rasterized=True, label=label, **looks)
    medians = values.where(~blown_up, np.inf).median("seed")
    label = f"median of {values.sizes['seed']} seeds"
    lines += ax.plot(ratios, medians.where(np.isfinite(medians)), "_", color=OKABE_ITO[4], ms=8, mew=2, label=label)
    ax.margins(y=0.1)  # leaves room for the triangles at the upper edge
    return lines


def _regimes(ratios: np.ndarray, thresholds: list[float], ax: Axes) -> list[Any]:
    """Draw the thresholds as lines, and the behaviours between them as bands."""
    low, high = min(*ratios, *thresholds), max(*ratios, *thresholds)
    margin = 0.05 * (high - low) or 0.05
    edges = [low - margin, *thresholds, high + margin]
    ax.set_xlim(edges[0], edges[-1])
    for threshold in thresholds:
        ax.axvline(threshold, color=GREY, lw=0.8)
    kinds = zip(REGIMES.items(), edges, edges[1:], strict=False)
    return [ax.axvspan(*sides, color=color, alpha=0.1, lw=0, label=label) for (label, color), *sides in kinds]

"""Collapse metrics of a state: strong collapse, neural collapse, the distance to S, risk and conserved quantities.

Every metric is one function of `W`, `b` and the split of the features into class means `B = Hbar diag(sqrt n)` and a
part within the classes `L`, so it is the same in every kind of columns. `M = [mu_c - mu_G]` holds the class means
less their unweighted mean; `s = sqrt N`; `P = I - 1 1^T / C` (the identity without a bias).

| name | what it is | source |
|---|---|---|
| `snc1` | `||W W^T - s P||_F` | the paper, as its figures plot it |
| `snc2` | `||H - (W (x) 1_N)^T / s||_F / ||H||_F` | the paper |
| `snc3` | `||b - 1/C||_2` | the paper |
| `distance`, `relative_distance` | `||z - Pi_S z||_E`, and over `||z||_E` | the paper, Figure 2 |
| `nc1` | `tr(S_W S_B^+) / C` | Papyan, Han and Donoho 2020 |
| `nc1_trace` | `tr S_W / tr S_B` | Tirer, Huang and Niles-Weed 2023 |
| `nc2_norm_h`, `nc2_norm_w` | std over mean of the class means' lengths, of the classifier's rows | Papyan et al. |
| `nc2_angle_h`, `nc2_angle_w` | mean of `|cos + 1/(C-1)|` over pairs | Papyan et al. |
| `nc2_etf_h`, `nc2_etf_w` | `|| M^T M / ||M^T M|| - P / sqrt(C-1) ||_F`, `W W^T` likewise | Zhu et al. 2021 |
| `nc3` | `|| W^T/||W|| - M/||M|| ||_F` | Papyan et al. |
| `nc4` | share of samples where the classifier and the nearest class mean disagree | Papyan et al. |
| `cdnv` | `(s_i^2 + s_j^2) / (2 ||mu_i - mu_j||^2)` over pairs | Galanti, Gyorgy and Hutter 2021 |
| `risk`, `grad_norm` | the risk and the norm of its gradient | the paper |
| `balancedness` | `||W^T W - H H^T - (the same at the start)||_F / ||H at the start||_F^2` | conserved by the flow |
| `sharpness` | the largest eigenvalue of the risk's Hessian; costly, computed only if asked for | Lanczos 1950 |

Ratios whose denominator vanishes (near H = 0) are NaN.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from ._algebra import in_blocks
from ._checks import shown
from ._errors import UsageError, nearest
from ._states import of_states
from .balance import Reference
from .collapse import METRICS as METRICS, View
from .features import from_features as from_features
from .model import UFM, Point, Problem, State, check_state, problem_of

SAMPLES_UP_TO = 2**20
"""Up to this many entries of H, the metrics that need single samples are saved by default."""


def available(model: UFM, columns) -> tuple[str, ...]:
    """The metrics that exist for a model in given columns (None: samples)."""
    knows_samples = columns is None or columns.knows_samples
    return tuple(
        name
        for name, metric in METRICS.items()
        if (model.balanced or not metric.equal_counts) and (knows_samples or not metric.samples)
    )


def checked_names(model: UFM, columns, names: Any) -> tuple[str, ...]:
    """The metrics asked for, or the default ones of a run: all that are available and neither costly nor, for many
    entries of H, in need of single samples.

    Raises:
        UsageError: for a metric that is unknown, or that the model or the state cannot have.
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
    """Names of metrics in lower case, each once, from one text ("snc1" or "snc1,snc2") or anything that yields texts.

    What is given is read once, so that a generator will do; a set is put in the order of `METRICS`.

    Raises:
        UsageError: for anything else.
    """
    wrong = "metrics must be names, such as 'snc1,nc1' or ['snc1', 'nc1'], got "
    try:
        texts = [names] if isinstance(names, str | bytes) else list(names)
    except TypeError:  # what has no parts
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


def reference(start: Point | None, names: Sequence[str]) -> Reference | None:
    """The start as the named metrics need it, which is the same for all points of a run."""
    return None if start is None or "balancedness" not in names else Reference.of(start)


def prepared(problem: Problem, names: Sequence[str], point: Point, start: Point | None) -> tuple[Problem, Any]:
    """What the named metrics need and is made once for all points of a run: of single samples, in the problem, and of
    the start. `point` is any of them."""
    if any(METRICS[name].samples for name in names):
        problem = Problem(problem.model, problem.columns.ready(point.X))
    return problem, reference(start, names)


def observe(
    problem: Problem, point: Point, names: Sequence[str], start: Point | Reference | None
) -> dict[str, Float[Array, ""]]:
    """The named metrics of one point."""
    start = start if isinstance(start, Reference) else reference(start, names)
    view = View(problem, point, *problem.split(point.X), start)
    return {name: METRICS[name].function(view) for name in names}


def observe_many(
    problem: Problem, points: Point, names: Sequence[str], start: Point | None
) -> dict[str, Float[Array, " time"]]:
    """The named metrics of points with one leading axis, in blocks that take a bounded amount of memory."""
    first = jax.tree.map(lambda x: x[0], points)
    problem, origin = prepared(problem, names, first, start)
    return in_blocks(lambda point: observe(problem, point, names, origin), points, observed_size(first))


def observed_size(point: Point) -> int:
    """How many numbers an intermediate array of the metrics of a point may take: Gram matrices, logits, imbalances."""
    (C, p), n = point.W.shape, point.X.shape[1]
    return max(C, p) * max(C, p, n)


def evaluate(
    model: UFM, state: State, names: Any = None, *, start: State | None = None
) -> dict[str, Float[Array, "*batch"]]:
    """Metrics of a state, by name.

    Args:
        model: the model.
        state: a state of it, with any leading axes.
        names: which metrics, as a text with commas or any iterable of texts; default all that the model and the state
            have but `sharpness`.
        start: what `balancedness` is measured against, in the same columns; default the state itself, so 0.

    Raises:
        UsageError: for unknown or unavailable metrics and states that do not fit the model.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> state = fc.initial.collapsed(model, key=jax.random.key(0))
        >>> bool(fc.metrics.evaluate(model, state, ["snc2"])["snc2"] < 1e-6)
        True
    """
    check_state(model, state)
    names = _not_costly(available(model, state.columns)) if names is None else names
    names = checked_names(model, state.columns, names)
    reference = None
    if start is not None:
        check_state(model, start, "start")
        if start.W.ndim != 2:
            raise UsageError(
                f"start has leading axes {start.W.shape[:-2]}, and it must be one state: take one of them."
            )
        reference = problem_of(model, start)[1]
    return of_states(_observe, model, state, names, reference)


def _observe(model: UFM, state: State, names: tuple[str, ...], start: Point | None) -> dict[str, Float[Array, ""]]:
    return observe(*problem_of(model, state), names, start)


def snc(model: UFM, state: State) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The errors of strong neural collapse `(SNC1, SNC2, SNC3)` as the paper's figures plot them.

    Example:
        >>> import jax, flowcollapse as fc
        >>> model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
        >>> bool(max(fc.metrics.snc(model, fc.initial.collapsed(model, key=jax.random.key(0)))) < 1e-5)
        True
    """
    values = evaluate(model, state, ("snc1", "snc2", "snc3"))
    return values["snc1"], values["snc2"], values["snc3"]

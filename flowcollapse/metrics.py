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

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._algebra import pinv, product, square_norm
from ._errors import UsageError, nearest
from .columns import class_means, root_counts, within_class_basis
from .hessian import largest_eigenvalue
from .model import UFM, Point, Problem, State, check_state, over_batch, problem_of


class View(NamedTuple):
    """What the metrics read: the problem, a point of it, its class means and within-class part, and the start."""

    problem: Problem
    point: Point
    B: Float[Array, "p C"]
    L: Float[Array, "p r"]
    start: Point | None

    @property
    def M(self) -> Float[Array, "p C"]:
        """The class means less their unweighted mean."""
        means = self.B / root_counts(self.problem.model.counts, self.B.dtype)
        return means - jnp.mean(means, axis=1, keepdims=True)

    @property
    def root_n(self) -> float:
        return self.problem.model.counts[0] ** 0.5

    def centre(self, W: Float[Array, "C p"]) -> Float[Array, "C p"]:
        """`P W`."""
        return W - jnp.mean(W, axis=0) if self.problem.model.use_bias else W


def _frame_projector(view: View) -> Float[Array, "C C"]:
    return view.centre(jnp.eye(view.problem.model.num_classes, dtype=view.B.dtype))


def _snc1(view: View):
    W = view.point.W
    return jnp.linalg.norm(product(W, W.T) - view.root_n * _frame_projector(view))


def _snc2(view: View):
    numerator = square_norm(view.L) + square_norm(view.B.T - view.point.W)
    return jnp.sqrt(numerator / _or_nan(square_norm(view.point.X)))


def _snc3(view: View):
    model = view.problem.model
    return jnp.linalg.norm(view.point.b - (1 / model.num_classes if model.use_bias else 0.0))


def _distance(view: View):
    """In S, `W = B^T`, the rows of `W + B^T` add up to zero, `L` vanishes and b is constant: the sum of the squares of
    what is none of this, no difference of large numbers (derived here)."""
    W, _, b = view.point
    squares = square_norm(view.L) + 0.5 * square_norm(view.B.T - W) + jnp.sum((b - jnp.mean(b)) ** 2)
    if view.problem.model.use_bias:
        squares += 0.5 * jnp.sum((jnp.sum(W, axis=0) + jnp.sum(view.B, axis=1)) ** 2) / W.shape[0]
    return jnp.sqrt(squares)


def _relative_distance(view: View):
    W, X, b = view.point
    return _distance(view) / jnp.sqrt(_or_nan(square_norm(W) + square_norm(X) + jnp.sum(b**2)))


def _nc1(view: View):
    """`||M^+ L||_F^2 / n_tot` from the centred means themselves: never a product of covariances, so that values down
    to the sixth power of eps keep their digits, and features that are dead count for nothing (derived here)."""
    centred = view.M @ within_class_basis((view.problem.model.num_classes,), view.B.dtype)
    solved = pinv(centred) @ view.L
    return jnp.sum(solved**2) / view.problem.model.num_samples + 0.0 * _or_nan(jnp.sum(centred**2))


def _nc1_trace(view: View):
    within = jnp.sum(view.L**2) / view.problem.model.num_samples
    return within / _or_nan(jnp.sum(view.M**2) / view.problem.model.num_classes)


def _norm_spread(rows: Float[Array, "C p"]):
    lengths = jnp.linalg.norm(rows, axis=1)
    return jnp.std(lengths) / _or_nan(jnp.mean(lengths))


def _angle_defect(rows: Float[Array, "C p"]):
    C = rows.shape[0]
    directions = rows / _or_nan(jnp.linalg.norm(rows, axis=1, keepdims=True))
    off_diagonal = 1 - jnp.eye(C, dtype=rows.dtype)
    return jnp.sum(jnp.abs(directions @ directions.T + 1 / (C - 1)) * off_diagonal) / (C * (C - 1))


def _etf_defect(rows: Float[Array, "C p"]):
    C = rows.shape[0]
    gram = rows @ rows.T
    frame = (jnp.eye(C, dtype=rows.dtype) - 1 / C) / (C - 1) ** 0.5
    return jnp.linalg.norm(gram / _or_nan(jnp.linalg.norm(gram)) - frame)


def _nc3(view: View):
    W, M = view.point.W, view.M
    return jnp.linalg.norm(W.T / _or_nan(jnp.linalg.norm(W)) - M / _or_nan(jnp.linalg.norm(M)))


def _nc4(view: View):
    H, counts = view.problem.columns.lift(view.point.X), view.problem.model.counts
    W, _, b = view.point
    means = class_means(H, counts)
    nearest = jnp.argmin(jnp.sum(means**2, axis=0)[:, None] - 2 * means.T @ H, axis=0)
    differ = (jnp.argmax(W @ H + b[:, None], axis=0) != nearest).astype(H.dtype)
    return jnp.mean(differ) + 0.0 * _or_nan(jnp.sum(view.M**2))


def _cdnv(view: View):
    counts = jnp.asarray(view.problem.model.counts, view.B.dtype)
    variances = view.problem.columns.within_class_energies(view.L) / counts
    return _pairwise_cdnv(variances, view.M)


def _pairwise_cdnv(variances: Float[Array, " C"], M: Float[Array, "p C"]):
    first, second = np.triu_indices(M.shape[1], k=1)
    squares = jnp.sum((M[:, first] - M[:, second]) ** 2, axis=0)
    return jnp.mean((variances[first] + variances[second]) / (2 * _or_nan(squares)))


def _risk(view: View):
    return view.problem.risk(view.point)


def _grad_norm(view: View):
    return jnp.sqrt(sum(jnp.sum(part**2) for part in view.problem.field(view.point)))


def _balancedness(view: View):
    start = view.point if view.start is None else view.start
    drift = _imbalance(view.point) - _imbalance(start)
    return jnp.linalg.norm(drift) / _or_nan(jnp.sum(start.X**2))


def _imbalance(point: Point) -> Float[Array, "p p"]:
    return point.W.T @ point.W - point.X @ point.X.T


def _sharpness(view: View):
    """In whatever coordinates: those directions that they hide are never curved more than the rest."""
    return largest_eigenvalue(view.problem, view.point)


class Metric(NamedTuple):
    """A metric and what it needs: equal counts, single samples, much more time than the rest together.

    What is costly is computed only where it is asked for by name.
    """

    function: Callable[[View], Float[Array, ""]]
    long_name: str
    equal_counts: bool = False
    samples: bool = False
    costly: bool = False


SAMPLES_UP_TO = 2**20
"""Up to this many entries of H, the metrics that need single samples are saved by default."""

METRICS: dict[str, Metric] = {
    "snc1": Metric(_snc1, "strong collapse of the classifier", equal_counts=True),
    "snc2": Metric(_snc2, "strong collapse of the features, relative", equal_counts=True),
    "snc3": Metric(_snc3, "strong collapse of the bias", equal_counts=True),
    "distance": Metric(_distance, "distance to the invariant subspace S", equal_counts=True),
    "relative_distance": Metric(_relative_distance, "distance to S over the norm of the state", equal_counts=True),
    "nc1": Metric(_nc1, "within-class variability, pseudo-inverse form"),
    "nc1_trace": Metric(_nc1_trace, "within-class variability, ratio of traces"),
    "nc2_norm_h": Metric(lambda v: _norm_spread(v.M.T), "spread of the class means' lengths"),
    "nc2_norm_w": Metric(lambda v: _norm_spread(v.point.W), "spread of the classifier rows' lengths"),
    "nc2_angle_h": Metric(lambda v: _angle_defect(v.M.T), "class means' angles against the simplex"),
    "nc2_angle_w": Metric(lambda v: _angle_defect(v.point.W), "classifier rows' angles against the simplex"),
    "nc2_etf_h": Metric(lambda v: _etf_defect(v.M.T), "class means' Gram matrix against the simplex frame"),
    "nc2_etf_w": Metric(lambda v: _etf_defect(v.point.W), "classifier's Gram matrix against the simplex frame"),
    "nc3": Metric(_nc3, "self-duality of classifier and class means"),
    "nc4": Metric(_nc4, "disagreement with the nearest class mean", samples=True),
    "cdnv": Metric(_cdnv, "class-distance normalised variance", samples=True),
    "risk": Metric(_risk, "risk"),
    "grad_norm": Metric(_grad_norm, "norm of the risk's gradient"),
    "balancedness": Metric(_balancedness, "drift of W^T W - H H^T over the squared norm of H at the start"),
    "sharpness": Metric(_sharpness, "largest eigenvalue of the Hessian", costly=True),
}


def available(model: UFM, columns) -> tuple[str, ...]:
    """The metrics that exist for a model in given columns (None: samples)."""
    knows_samples = columns is None or columns.knows_samples
    return tuple(
        name
        for name, metric in METRICS.items()
        if (model.balanced or not metric.equal_counts) and (knows_samples or not metric.samples)
    )


def checked_names(model: UFM, columns, names: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics asked for, or all that are available but the costly ones.

    Raises:
        UsageError: for a metric that is unknown, or that the model or the state cannot have.
    """
    known = available(model, columns)
    if names is None:
        return tuple(name for name in known if not METRICS[name].costly)
    for name in names:
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
    return tuple(names)


def observe(problem: Problem, point: Point, names: Sequence[str], start: Point | None) -> dict[str, Float[Array, ""]]:
    """The named metrics of one point."""
    view = View(problem, point, *problem.split(point.X), start)
    return {name: METRICS[name].function(view) for name in names}


def evaluate(
    model: UFM, state: State, names: Sequence[str] | None = None, *, start: State | None = None
) -> dict[str, Float[Array, "*batch"]]:
    """Metrics of a state, by name.

    Args:
        model: the model.
        state: a state of it, with any leading axes.
        names: which metrics; default all that the model and the state have, but `sharpness`.
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
    names = checked_names(model, state.columns, names)
    reference = None if start is None else problem_of(model, start)[1]
    with jax.default_matmul_precision("highest"):
        return over_batch(lambda one: observe(*problem_of(model, one), names, reference), state)


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


def from_features(features, labels, W=None, b=None) -> dict[str, float]:
    """Collapse metrics of measured features, from any framework.

    Args:
        features: array-like of shape (samples, p), one row a sample.
        labels: integers of shape (samples,); every class has at least one sample, classes may differ in size. Rows of
            `W` follow the sorted label values.
        W: classifier, shape (C, p), or None.
        b: bias, shape (C,), or None for zeros.

    Returns:
        `nc1`, `nc1_trace`, `nc2_*_h` and `cdnv`; with `W` also `nc2_*_w`, `nc3` and `nc4`. Computed in float64 if JAX
        allows it.

    Raises:
        UsageError: for shapes that do not match, fewer than two classes, or values that are not finite.

    Example:
        >>> import flowcollapse as fc
        >>> sorted(fc.metrics.from_features([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 1]))[:2]
        ['cdnv', 'nc1']
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise UsageError(f"features must be numbers of shape (samples, p), one row a sample, got {features.shape}.")
    if labels.shape != features.shape[:1]:
        raise UsageError(f"labels has shape {labels.shape} but features has {features.shape[0]} rows: one label a row.")
    if not np.all(np.isfinite(features)):
        raise UsageError("features hold NaN or infinity: remove those rows first.")
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    C, p = len(classes), features.shape[1]
    if C < 2:
        raise UsageError(f"labels hold {C} class; collapse needs at least 2.")
    model = UFM(num_classes=C, samples_per_class=tuple(int(n) for n in counts), num_features=p)
    if W is not None and np.shape(W) != (C, p):
        raise UsageError(f"W has shape {np.shape(W)} but {C} classes of {p} features need ({C}, {p}).")
    if b is not None and np.shape(b) != (C,):
        raise UsageError(f"b has shape {np.shape(b)} but {C} classes need ({C},).")

    dtype = jnp.result_type(float)
    H = jnp.asarray(features[np.argsort(index, kind="stable")].T, dtype)
    bias = jnp.zeros(C, dtype) if b is None else jnp.asarray(np.asarray(b), dtype)
    state = State(H=H, W=jnp.zeros((C, p), dtype) if W is None else jnp.asarray(np.asarray(W), dtype), b=bias)
    names = ["nc1", "nc1_trace", "nc2_norm_h", "nc2_angle_h", "nc2_etf_h", "cdnv"]
    names += [] if W is None else ["nc2_norm_w", "nc2_angle_w", "nc2_etf_w", "nc3", "nc4"]
    return {name: float(value) for name, value in evaluate(model, state, names).items()}


def _or_nan(denominator):
    """The denominator, or NaN where it is so small that a ratio by it says nothing."""
    tiny = jnp.finfo(denominator.dtype).tiny
    return jnp.where(denominator > tiny, denominator, jnp.nan)

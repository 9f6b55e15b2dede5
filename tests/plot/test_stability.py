"""Where descent comes to rest, against its step size: in collapse, off it, or nowhere; and the sharpness behind this.

Step sizes are given as ratios to the stability threshold, `eta (CN + s)/2` with `s = sqrt N`. At a ratio r, with
`mu = 2/eta - CN`, a point of risk 0 at rest has no eigenvalue of `W W^T` above mu, so `SNC1 >= sqrt(C-1) (s - mu)`.
"""

import functools
import json
import math

import formulas
import hessians
import jax
import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import systems
import xarray as xr
from matplotlib.patches import Rectangle

import flowcollapse as fc
from flowcollapse import cli, plot
from flowcollapse.metrics.registry import METRICS
from flowcollapse.plot.stability import REGIMES
from flowcollapse.results.labels import verdict_attributes
from flowcollapse.sweeps.grid import make_grid
from flowcollapse.sweeps.lane import common_metrics
from flowcollapse.theory import landscape

EPS = float(jnp.finfo(jnp.float64).eps)


def ufm(C, N, p, **options):
    return fc.UFM(num_classes=C, samples_per_class=N, num_features=p, **options)


def largest(model, point) -> float:
    """The largest eigenvalue of the full Hessian, sample by sample, in NumPy."""
    return np.linalg.eigvalsh(hessians.matrix(point, model.counts))[-1]


def gram(W: np.ndarray) -> np.ndarray:
    """`W W^T`."""
    return W @ np.swapaxes(W, -1, -2)


# ---- the sharpness as a metric


def test_sharpness_in_every_kind_of_columns():
    """It is `CN + s` at collapse, and equals that of the full matrix elsewhere: 24 columns of deviations become 6."""
    model = ufm(4, 7, 6)
    states = [fc.initial.collapsed(model, key=jax.random.key(1)), *(systems.random_state(model, i) for i in range(2))]

    @systems.compiled
    def evaluate(states):
        reduced = jax.vmap(lambda state: fc.to_class_means(model, state))(states)
        return [fc.metrics.evaluate(model, some, ["sharpness"])["sharpness"] for some in (states, reduced)]

    in_samples, in_class_means = evaluate(jax.tree.map(lambda *parts: jnp.stack(parts), *states))
    np.testing.assert_allclose(in_samples[0], 28 + math.sqrt(7), rtol=1e-12)
    np.testing.assert_allclose(in_class_means, in_samples, rtol=1e-12)
    exact = [largest(model, systems.arrays(state)) for state in states]
    np.testing.assert_allclose(in_samples, exact, rtol=1e-12)


def test_sharpness_along_a_flow_ends_at_that_of_collapse():
    """In class means and compressed rows (14 become 6), it ends within O(eps^2) of `CN + s`."""
    model, eps = ufm(2, 2, 14), 1e-3
    start = fc.initial.sphere(model, eps, key=jax.random.key(0))

    @systems.compiled
    def run(start):
        path = fc.simulate(model, start, fc.Flow("tsit5", rtol=1e-6), 9, save_states=True, metrics=["sharpness"])
        return path.metrics["sharpness"], path.states, path.final

    found, states, end = run(start)
    for value, H, W, b in zip(found, *systems.arrays(states), strict=True):
        np.testing.assert_allclose(value, largest(model, systems.Arrays(H, W, b)), rtol=1e-10)
    assert abs(found[-1] - (4 + math.sqrt(2))) < 2 * eps**2
    assert np.linalg.norm(end.W) > 1


def test_what_is_costly_is_left_out_unless_asked_for(paper_model):
    start = jax.eval_shape(lambda: fc.initial.sphere(paper_model, 0.1, key=jax.random.key(0)))
    method = fc.Descent("sgd", 5, learning_rate=0.1)
    cheap = {name for name, metric in METRICS.items() if metric.usual and not metric.shift_invariant}
    assert "sharpness" not in cheap
    run = functools.partial(fc.simulate, paper_model, method=method)
    assert set(jax.eval_shape(run, start).metrics) == cheap
    assert set(jax.eval_shape(functools.partial(fc.metrics.evaluate, paper_model), start)) == cheap
    assert set(common_metrics(make_grid(paper_model, method, [0.1], 2, {}), None)) == cheap


# ---- the three regimes

STEPS, START, SEEDS = 4000, (0.1, 0.01), 4
BELOW, FIRST, SECOND = 0.98, 1.01, 1.02
SHORT = (0.025, 0.05, 0.1)
"""Small step sizes, tried for N = 1, where descent stays at its plateau however long it runs."""


class Swept:
    """A sweep of one geometry over step sizes from all regimes."""

    def __init__(self, C, N, p):
        self.C, self.N, self.s, self.model = C, N, math.sqrt(N), ufm(C, N, p)
        self.divergence = 1 + 1 / (C * self.s)
        self.ratios = [*(SHORT if N == 1 else ()), BELOW, FIRST, SECOND, 1.01 * self.divergence]
        self.etas = [2 * ratio / (C * N + self.s) for ratio in self.ratios]
        self.metrics = ("snc1", "snc2", "distance", "risk", *(["sharpness"] if N == 1 else []))

    @functools.cached_property
    def all(self) -> xr.Dataset:
        method = fc.Descent("sgd", STEPS, learning_rate=0.1)
        options = {"eps": START, "seeds": SEEDS, "ts": 1, "metrics": self.metrics, "keep_final": True}
        return fc.sweep(self.model, method, learning_rate=self.etas, progress=False, **options)

    def at(self, ratio) -> xr.Dataset:
        """The ends of the runs at one step size, over eps and seeds."""
        return self.all.isel(learning_rate=self.ratios.index(ratio), time=0)

    def bound(self, ratio) -> float:
        """The smallest possible SNC1 at rest."""
        return math.sqrt(self.C - 1) * (self.s - ((self.C * self.N + self.s) / ratio - self.C * self.N))


SWEPT = {geometry: Swept(*geometry) for geometry in [(3, 3, 15), (4, 7, 6), (3, 1, 5)]}


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    yield
    for swept in SWEPT.values():
        swept.__dict__.pop("all", None)


@pytest.fixture(params=SWEPT, ids=str)
def swept(request) -> Swept:
    return SWEPT[request.param]


def test_collapse_is_reached_below_the_threshold_and_not_above(swept):
    below, above, eps = swept.at(BELOW), swept.at(SECOND), np.array(START)[:, None]
    assert np.all(below["verdict"] == fc.Verdict.plateau)
    assert np.all(below["snc1"] < eps**2)
    assert np.all(above["verdict"] == fc.Verdict.plateau)
    assert np.all(above["snc1"] > swept.bound(SECOND))
    mu = swept.s - swept.bound(SECOND) / math.sqrt(swept.C - 1)
    eigenvalues = np.linalg.eigvalsh(gram(above["W"].values))
    assert np.all(eigenvalues < mu)
    assert np.all(eigenvalues[..., 1:] > 0.5 * mu)


def test_the_risk_falls_to_its_plateau_on_both_sides_of_the_threshold(swept):
    """At rest it is `1/2 ||H_dev^T u||^2` with `u = W^T 1/sqrt C`, of order eps^4, and 0 for N = 1 (derived here)."""
    risks = []
    for end in (swept.at(BELOW), swept.at(SECOND)):
        H, W = end["H"].values, end["W"].values
        means = H.reshape(*H.shape[:-1], swept.C, swept.N).mean(axis=-1)
        deviations, u = H - np.repeat(means, swept.N, axis=-1), W.sum(axis=-2) / math.sqrt(swept.C)
        plateau = 0.5 * np.sum(np.einsum("...ps,...p->...s", deviations, u) ** 2, axis=-1)
        np.testing.assert_allclose(end["risk"], plateau, rtol=1e-6, atol=1e3 * EPS**2)
        risks.append(end["risk"].values)
    np.testing.assert_allclose(risks[1], risks[0], rtol=0.2, atol=1e3 * EPS**2)
    assert np.all(risks[0] < np.array(START)[:, None] ** 4)


def test_just_above_the_threshold_the_eigenvalues_come_to_rest_as_far_below_mu_as_they_were_above(swept):
    """SNC1 divided by its smallest possible value tends to 2 linearly; two ratios serve to remove the linear part.

    With `D = W W^T - mu P` and the mean residual e, `e' = eta D e`, `D' = -k e e^T`, and `D' - eta D^2` is conserved.
    """
    first, second = (swept.at(ratio)["snc1"].sel(eps=0.01) / swept.bound(ratio) for ratio in (FIRST, SECOND))
    np.testing.assert_allclose(2 * first - second, 2.0, atol=0.03)
    assert np.all(np.abs(first - 2) < np.abs(second - 2))


def test_nothing_rests_beyond_the_divergence_threshold(swept):
    end = swept.at(swept.ratios[-1])
    assert np.all(end["verdict"] == fc.Verdict.non_finite)
    assert not np.any(np.isfinite(end["snc1"]))


def test_below_the_threshold_errors_differ_from_those_of_the_flow_by_the_step_size():
    """For N = 1 the plateau has risk 0, where both come to rest; their errors differ in proportion to the step size."""
    swept = SWEPT[3, 1, 5]
    for eps in START:
        for seed in range(SEEDS):
            start = systems.arrays(fc.initial.sphere(swept.model, eps, key=jax.random.key(seed)))
            path = systems.flow(start, swept.model.counts, [50.0], rtol=1e-11)
            exact = formulas.of_point(systems.Arrays(*(part[-1] for part in path)), swept.model.counts, start)
            ends = [swept.at(ratio).sel(eps=eps, seed=seed) for ratio in SHORT]
            for name in ("snc1", "snc2", "distance"):
                one, two, four = (float(end[name]) - exact[name] for end in ends)
                # After removing the terms in eta and eta^2, nothing is left.
                assert abs(8 * one - 6 * two + four) / 3 < 0.05 * abs(one), (name, eps, seed)
                if name != "snc1":  # its term in eta is small for some starts
                    assert abs(math.log2(two / one) - 1) < 0.1, (name, eps, seed)


def test_descent_rests_where_the_sharpness_is_below_two_over_the_step_size():
    swept = SWEPT[3, 1, 5]
    for ratio, eta in zip(swept.ratios[:-1], swept.etas, strict=False):
        end = swept.at(ratio)
        sharpness, W = end["sharpness"].values, end["W"].values
        assert np.all(sharpness * eta < 2)
        # At risk 0 it is CN plus the largest eigenvalue of W W^T, plus O(eps^2).
        expected = 3 + np.linalg.eigvalsh(gram(W))[..., -1]
        assert np.all(np.abs(sharpness - expected) < np.array(START)[:, None] ** 2)
        H, b = end["H"].values[0, 0], end["b"].values[0, 0]
        np.testing.assert_allclose(sharpness[0, 0], largest(swept.model, systems.Arrays(H, W[0, 0], b)), rtol=1e-10)


# ---- the picture and the commands


@pytest.fixture
def runs() -> xr.Dataset:
    """The runs of N = 1 from one start size: one has not come to rest, one is unfinished, one has blown up."""
    dataset = SWEPT[3, 1, 5].all.sel(eps=0.1).copy(deep=True)
    first, second = (SWEPT[3, 1, 5].ratios.index(ratio) for ratio in (FIRST, SECOND))
    dataset["verdict"][first, 0] = fc.Verdict.step_limit
    dataset["verdict"][first, 1], dataset["snc1"][first, 1] = -1, np.nan
    dataset["verdict"][second, 2], dataset["snc1"][second, 2] = fc.Verdict.non_finite, 1e30
    return dataset


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def points(line) -> set[tuple[float, float]]:
    x, y = (np.round(np.asarray(values, float), 12) for values in line.get_data())
    return set(zip(x.tolist(), y.tolist(), strict=True))


def labelled(ax) -> dict:
    return {line.get_label(): line for line in ax.lines}


def test_the_picture_shows_every_run_by_its_verdict(runs):
    swept = SWEPT[3, 1, 5]
    ax = plot.stability(runs)
    lines, values = labelled(ax), runs["snc1"].values[..., -1]
    drawn = {"one run, at rest": set(), "one run, not at rest": set(), "one run, blown up": set()}
    for ratio, row, codes in zip(swept.ratios, values, runs["verdict"].values, strict=True):
        for value, code in zip(row, codes, strict=True):
            if code == fc.Verdict.non_finite:
                drawn["one run, blown up"].add((round(ratio, 12), 0.965))
            elif code != -1:
                kind = "one run, at rest" if code == fc.Verdict.plateau else "one run, not at rest"
                drawn[kind].add((round(ratio, 12), round(value, 12)))
    assert {kind: points(lines[kind]) for kind in drawn} == drawn
    assert len(drawn["one run, not at rest"]) == 1
    # At 0.965 of the height of the picture, whatever its limits.
    assert lines["one run, blown up"].get_transform() == ax.get_xaxis_transform()
    assert ax.get_ylim()[1] < 10
    medians = [np.median(row) for row in np.where(values == 1e30, np.inf, values)]
    first = swept.ratios.index(FIRST)
    medians[first] = np.median(np.delete(values[first], 1))
    np.testing.assert_allclose(lines["median of 4 seeds"].get_ydata()[:-1], medians[:-1], rtol=4 * EPS)
    assert np.isnan(lines["median of 4 seeds"].get_ydata()[-1])
    legend = ax.get_legend()
    assert legend is not None
    title = legend.get_title().get_text()
    for words in ("$C = 3$", "$N = 1$", "$p = 5$", r"$\varepsilon = 0.1$", "1 of 28 runs without a value"):
        assert words in title


def test_the_picture_marks_thresholds_and_regimes_and_the_least_error_at_rest(runs):
    swept = SWEPT[3, 1, 5]
    ax = plot.stability(runs)
    lines = [np.asarray(line.get_data(), float) for line in ax.lines]
    upright = [x[0] for x, y in lines if list(y) == [0, 1]]
    np.testing.assert_allclose(upright, [1.0, 4 / 3], rtol=8 * EPS)
    bands = [band for band in ax.patches if isinstance(band, Rectangle)]
    sides = [(band.get_x(), band.get_x() + band.get_width()) for band in bands]
    np.testing.assert_allclose(sides, np.stack([[ax.get_xlim()[0], *upright], [*upright, ax.get_xlim()[1]]], 1))
    assert [band.get_label() for band in bands] == list(REGIMES)
    for label, factor in (("least at rest", 1), ("to first order", 2)):
        ratios, bounds = labelled(ax)[label].get_data()
        np.testing.assert_allclose(bounds, [factor * swept.bound(ratio) for ratio in ratios], atol=64 * EPS)
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", r"$\eta\,(C N + \sqrt{N})\,/\,2$")
    assert "least at rest" not in labelled(plot.stability(runs, name="snc2"))


def synthetic(model, method=None, **coords) -> xr.Dataset:
    """Two runs at rest, with the options of a model and a method as a sweep writes them."""
    axes = ("learning_rate", "seed")
    variables = {"snc1": ((*axes, "time"), np.ones((2, 1, 1))), "verdict": (axes, [[0], [0]], verdict_attributes())}
    attributes = {"model": json.dumps(model), "method": json.dumps(method or {})}
    return xr.Dataset(variables, {"learning_rate": [0.1, 0.3], **coords}, attributes)


def test_the_picture_of_other_models():
    """Thresholds come from `landscape`. Without a bias there is only one, and no bound on points of rest."""
    for options in ({"use_bias": False}, {"weight_decay": [0.5, 0.5, 0.0]}):
        model = ufm(3, 4, 5, **options)
        ax = plot.stability(synthetic({"num_classes": 3, "samples_per_class": 4, "num_features": 5} | options))
        ratios = np.array([0.1, 0.3]) / float(landscape.stability_threshold(model))
        np.testing.assert_allclose(labelled(ax)["one run, at rest"].get_xdata(), ratios, rtol=8 * EPS)
        assert "least at rest" not in labelled(ax)
        assert len(ax.patches) == (3 if model.use_bias else 2)
    # The last model again, selected from a sweep over several decays.
    selected = synthetic({"num_classes": 3, "samples_per_class": 4, "num_features": 5})
    ax = plot.stability(selected.assign_coords(weight_decay_values=("weight_decay_part", [0.5, 0.5, 0.0])))
    np.testing.assert_allclose(labelled(ax)["one run, at rest"].get_xdata(), ratios, rtol=8 * EPS)


def test_the_picture_takes_given_axes_and_runs_of_which_none_is_left(runs):
    _, ax = plt.subplots()
    assert plot.stability(runs, ax) is ax
    gone = runs.isel(learning_rate=[-1])
    assert labelled(plot.stability(gone))["one run, blown up"].get_xdata().size == SEEDS


SGD = {"optimizer": "sgd", "hyperparameters": {"learning_rate": 0.1}}
REFUSED = {
    "momentum": (lambda d: synthetic({}, SGD | {"hyperparameters": {"momentum": 0.9}}), "'sgd', momentum=0.9"),
    "another optimizer": (lambda d: synthetic({}, {"optimizer": "adam"}), "'adam'.*plain gradient descent"),
    "imbalance": (lambda d: synthetic({"samples_per_class": [1, 2, 3]}), "imbalanced"),
    "several starts": (lambda d: SWEPT[3, 1, 5].all, "2 values of 'eps'"),
    "no step sizes": (lambda d: d.isel(learning_rate=0, drop=True), "no axis 'learning_rate'"),
    "no verdicts": (lambda d: d.drop_vars("verdict"), "'verdict'"),
    "no such metric": (lambda d: d.drop_vars("snc1"), "metric 'snc1'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_picture_is_refused(runs, case):
    make, told = REFUSED[case]
    with pytest.raises(fc.UsageError, match=told):
        plot.stability(make(runs))
    assert not plt.get_fignums()


def test_the_commands_make_the_same_sweep_and_draw_it(tmp_path):
    """`flowcollapse sweep` with the metric sharpness, and `flowcollapse plot --kind stability`."""
    swept, store = SWEPT[3, 1, 5], tmp_path / "stability.zarr"
    rates = ",".join(map(repr, swept.etas))
    words = f"--samples-per-class 1 --num-features 5 --method descent --num-steps {STEPS} --axis learning_rate={rates}"
    words += f" --eps 0.1 0.01 --seeds {SEEDS} --num-saves 1 --keep-final --metrics {' '.join(swept.metrics)}"
    assert cli.main(["sweep", *words.split(), "--store", str(store)]) == 0
    xr.testing.assert_equal(fc.open_sweep(store).load(), swept.all)
    small = tmp_path / "small.nc"
    fc.open_sweep(store).load().sel(eps=[0.1]).to_netcdf(small, engine="h5netcdf")
    picture = tmp_path / "stability.png"
    assert cli.main(["plot", str(small), "--kind", "stability", "--out", str(picture)]) == 0
    assert matplotlib.image.imread(picture).std() > 0.01
    assert cli.main(["plot", str(store), "--kind", "stability", "--out", str(picture)]) == 2

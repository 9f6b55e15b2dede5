"""The certificate of the laws: how it treats a failing law, and that planted faults fail the right laws."""

import json

import jax
import numpy as np
import pytest

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.curvature.spectrum import Spectrum
from flowcollapse.losses.averaged import Averaged
from flowcollapse.losses.softmax import Softmax
from flowcollapse.model.columns import ClassMeanColumns
from flowcollapse.model.problem import Problem
from flowcollapse.theory import certificate, imbalance, landscape, max_margin, subspace
from flowcollapse.theory.certificate import verify
from flowcollapse.theory.laws import LAWS, Law, frames as laws_frames, lab
from flowcollapse.theory.small_starts import limits, scaling

QUICK = ["field", "origin-modes"]


@pytest.fixture
def small(monkeypatch):
    """One small system of each kind, so that a law takes seconds; no other test uses these programs."""
    one = (lab.balanced_system(3, 2, 4),)
    for name, systems in (("ABOVE", one), ("REACHED", one), ("EVERY", one)):
        monkeypatch.setattr(lab, name, systems)
    for name in ("NO_BIAS", "IMBALANCED", "CROSS_ENTROPY", "SMOOTHED", "FOCUSED", "TWO_GROUPS", "UNEQUAL"):
        monkeypatch.setattr(lab, name, getattr(lab, name)[:1])
    jax.clear_caches()
    yield monkeypatch
    jax.clear_caches()


def verdicts(names) -> dict[str, bool]:
    rows = verify(names).rows
    assert not any(row.message for row in rows), [row.message for row in rows]
    return {row.name: row.passed for row in rows}


# ---- how the runner treats a law


def planted(monkeypatch, compare) -> certificate.Row:
    monkeypatch.setitem(LAWS, "planted", Law("planted", "a law", "a test", compare))
    return verify(["planted"]).rows[0]


def test_the_comparison_that_is_nearest_to_failing_is_shown(monkeypatch):
    row = planted(monkeypatch, lambda lab: [(3.0, 100.0), (0.5, 1.0), (2.0, 50.0)])
    assert (row.measured, row.tolerance, row.comparisons, row.passed) == (0.5, 1.0, 3, True)
    row = planted(monkeypatch, lambda lab: [(1e-3, 1e-4), (0.5, 1.0)])
    assert (row.measured, row.passed, row.verdict) == (1e-3, False, "FAIL")


def raising(lab):
    yield 0.0, 1.0
    raise RuntimeError("no such\nthing")


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        (raising, "RuntimeError: no such thing"),
        (lambda lab: [], "nothing was compared"),
        (lambda lab: [(0.0, 1.0), (np.nan, 1.0)], ""),
    ],
)
def test_a_law_that_cannot_be_measured_has_failed_and_the_others_go_on(compare, message, monkeypatch):
    monkeypatch.setitem(LAWS, "planted", Law("planted", "a law", "a test", compare))
    monkeypatch.setitem(LAWS, "sound", Law("sound", "a law", "a test", lambda lab: [(0.0, 1.0)]))
    found = verify(["planted", "sound"])
    assert [row.passed for row in found.rows] == [False, True]
    assert not found.passed
    assert found.rows[0].message == message
    assert message in repr(found)
    assert "FAIL: planted" in repr(found)
    assert json.loads(found.to_json(), parse_constant=pytest.fail)["rows"][0]["verdict"] == "FAIL"


def test_an_unknown_law_is_refused_with_those_near_it():
    with pytest.raises(fc.UsageError, match=r"law 'kapa' is not known; did you mean 'kappa'\?"):
        verify(["kapa"])
    with pytest.raises(fc.UsageError, match=r"law 'q' is not known; choose from .*kappa"):
        verify(["q"])


@pytest.mark.usefixtures("thirty_two_bits")
def test_single_precision_is_refused():
    with pytest.raises(fc.UsageError, match="enable_x64"):
        verify(["kappa"])


def test_every_law_says_what_it_is_and_where_it_comes_from():
    for name, law in LAWS.items():
        assert name == law.name
        assert len(law.statement) > 10
        assert len(law.source) > 10
    papers = {name for name, law in LAWS.items() if "2011.11619" in law.source}
    assert papers >= {"snc-implies-nc", "subspace-flow-stays", "subspace-descent-stays", "risk-on-subspace"}
    assert not papers & {"kappa", "rms", "spectrum", "second-phase"}


# ---- the command


def test_the_command_writes_the_table_and_the_rows(small, tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    assert cli.main(["verify", "--only", *QUICK, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in QUICK)
    assert "all hold" in out
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["rows"]] == QUICK
    assert {row["verdict"] for row in found["rows"]} == {"pass"}
    assert found["passed"]
    assert found["precision"] == "float64"
    assert found["versions"]["jax"] == jax.__version__
    assert jax.devices()[0].platform in found["device"]


def test_the_command_exits_with_one_if_a_law_fails_and_with_two_if_there_is_none(monkeypatch, capsys):
    monkeypatch.setitem(LAWS, "planted", Law("planted", "a law", "a test", lambda lab: [(2.0, 1.0)]))
    assert cli.main(["verify", "--only", "planted"]) == 1
    assert "FAIL: planted" in capsys.readouterr().out
    assert cli.main(["verify", "--only", "plante"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "flowcollapse: law 'plante' is not known; did you mean 'planted'?\n"


# ---- planted faults: the rows that must fail, and some unrelated rows


def wrong_sign(part: str):
    """A field in which one velocity has the wrong sign."""
    field = Problem.field

    def wrong(self, point):
        velocity = field(self, point)
        return velocity._replace(**{part: -getattr(velocity, part)})

    return lambda patch: patch.setattr(Problem, "field", wrong)


def wrong_multiplicity(patch):
    """Make the multiplicity of the largest eigenvalue too large by one, and of the smallest too small by one."""
    spectrum = landscape.spectrum

    def wrong(model, rank=None):
        right = spectrum(model, rank)
        first, *middle, last = right.multiplicities
        return Spectrum(right.values, (first - 1, *middle, last + 1))

    patch.setattr(landscape, "spectrum", wrong)


def root_n_dropped_from_the_projection(patch):
    patch.setattr(subspace, "root_counts", lambda counts, dtype: jax.numpy.ones(len(counts), dtype))


def root_n_dropped_from_the_targets(patch):
    targets = ClassMeanColumns.targets
    patch.setattr(ClassMeanColumns, "targets", lambda self, n, dtype: (targets(self, n, dtype) > 0).astype(dtype))


def pull_without_the_smoothing(patch):
    """The pull of label smoothing as that of cross-entropy."""
    pull = fc.losses.CrossEntropy.pull
    patch.setattr(fc.losses.CrossEntropy, "pull", lambda self, rho, C: pull(fc.losses.CrossEntropy(), rho, C))


def the_mean_is_a_sum(patch):
    """The mean over the samples without its factor."""
    patch.setattr(Averaged, "gradient", lambda self, *args: self.loss.gradient(*args))


def a_threshold_too_high(patch):
    """Thresholds of minority collapse that are a tenth too high."""
    thresholds = imbalance.class_thresholds
    patch.setattr(imbalance, "class_thresholds", lambda model: 1.1 * thresholds(model))


def half_the_time_on_the_frame(patch):
    """The factor 2 of `rho' = 2 a s rho pull(rho)` forgotten."""
    clock = max_margin._log_clock
    patch.setattr(max_margin, "_log_clock", lambda *args: jax.numpy.log1p(2 * jax.numpy.expm1(clock(*args))))


def residual_of_a_wrong_class(patch):
    """The softmax residual with the labels of the neighbouring class."""
    residual = Softmax.residual
    patch.setattr(Softmax, "residual", lambda self, log_scale: jax.numpy.roll(residual(self, log_scale), 1, axis=0))


def a_frame_of_unequal_decays_as_of_equal_ones(patch):
    """W and H of the minimum scaled alike, although their decays differ."""
    found = laws_frames.minimiser

    def wrong(model):
        minimum = found(model)
        state, (lam_W, lam_H, _) = minimum.state, model.decays
        ratio = (lam_H / lam_W) ** 0.25
        state = fc.State(X=state.X * ratio, W=state.W / ratio, b=state.b, columns=state.columns)
        return minimum._replace(state=state)

    patch.setattr(laws_frames, "minimiser", wrong)


FAULTS = {
    "b moves uphill": (
        wrong_sign("b"),
        ["field", "mean-residual", "origin-modes", "spectrum"],
        ["subspace-projection", "risk-on-subspace"],
    ),
    "W moves uphill": (
        wrong_sign("W"),
        ["field", "mean-residual", "origin-modes"],
        ["subspace-projection"],
    ),
    "multiplicities": (wrong_multiplicity, ["spectrum", "spectrum-decay"], ["origin-modes", "field"]),
    "root N in the projection": (
        root_n_dropped_from_the_projection,
        ["subspace-projection", "subspace-descent-stays"],
        ["field", "origin-modes"],
    ),
    "the smoothing in the pull": (
        pull_without_the_smoothing,
        ["logit-pull"],
        ["logit-ray", "entropy-frame", "seli"],
    ),
    "the factor of the mean": (
        the_mean_is_a_sum,
        ["mean-reduction"],
        ["entropy-frame", "logit-ray", "seli"],
    ),
    "the threshold of minority collapse": (
        a_threshold_too_high,
        ["minority-collapse"],
        ["everything-vanishes", "seli"],
    ),
    "the time on the frame": (
        half_the_time_on_the_frame,
        ["frame-time"],
        ["frame-norms", "within-class-powers"],
    ),
    "the class of the residual": (
        residual_of_a_wrong_class,
        ["logit-pull", "entropy-frame", "smoothed-fit", "logit-ray"],
        ["logit-means", "logit-balancedness", "field", "seli"],
    ),
    "unequal decays": (
        a_frame_of_unequal_decays_as_of_equal_ones,
        ["minimiser", "global-certificate"],
        ["entropy-frame", "least-risk", "seli"],
    ),
    "root N in the targets": (
        root_n_dropped_from_the_targets,
        ["reduced-field"],
        ["field", "spectrum", "origin-modes"],
    ),
}


def test_without_a_fault_these_rows_pass(small):
    names = sorted({name for _, fail, passing in FAULTS.values() for name in (*fail, *passing)})
    assert verdicts(names) == dict.fromkeys(names, True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_rows_that_it_concerns(fault, small):
    plant, fail, passing = FAULTS[fault]
    plant(small)
    assert verdicts([*fail, *passing]) == dict.fromkeys(fail, False) | dict.fromkeys(passing, True)


def test_a_wrong_kappa_fails_its_row_by_as_much_as_it_is_wrong_and_spares_others(small):
    """After subtracting the fault, the rest of the measured error is below a hundredth of it."""
    kappa = scaling.kappa
    for module in (limits, scaling):
        small.setattr(module, "kappa", lambda model: 1.001 * kappa(model))
    wrong, *others = verify(["kappa", "plateau-snc3", "plateau-nc3", "polar-limit", "powers", "origin-modes"]).rows
    assert not wrong.passed
    np.testing.assert_allclose(wrong.measured, 1e-3 * kappa(lab.ABOVE[0].model()), rtol=0.01)
    assert [row.message for row in others if not row.passed] == []

"""How a run ended: every verdict in the right place, and no saddle called converged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc

C, N, P_FEATURES = 3, 3, 15
# The method, the model and the starts have one structure, so that all runs to the plateau share a compilation.
FLOW = fc.Flow(rtol=1e-6)
NAMES = ("risk", "snc1")


@pytest.fixture(scope="module")
def starts(paper_model, key) -> dict[str, fc.State]:
    generic = fc.initial.sphere(paper_model, eps=0.1, key=key)
    on_subspace = fc.initial.on_subspace(paper_model, eps=0.1, key=key)
    U, sigma, Vt = np.linalg.svd(np.asarray(on_subspace.W), full_matrices=False)
    rank_one = sigma[0] * np.outer(U[:, 0], Vt[0])
    zero = jax.tree.map(jnp.zeros_like, generic)

    def with_entry(value):
        return fc.State(H=generic.H.at[2, 5].set(value), W=generic.W, b=generic.b)

    return {
        "generic": generic,
        "tiny": fc.initial.sphere(paper_model, eps=1e-8, key=key),
        "tinier than rounding of 1": fc.initial.sphere(paper_model, eps=1e-30, key=key),
        "on S": on_subspace,
        "collapsed": fc.initial.collapsed(paper_model, key=key),
        "zero": zero,
        "zero with the best bias": fc.State(H=zero.H, W=zero.W, b=jnp.full(C, 1 / C)),
        "rank one on S": fc.State(*map(jnp.asarray, systems.on_subspace(rank_one, 0.0, N))),
        "decaying side only": fc.State(H=-on_subspace.H, W=on_subspace.W, b=on_subspace.b),
        "NaN": with_entry(jnp.nan),
        "infinite": with_entry(jnp.inf),
        "NaN in the bias": fc.State(H=generic.H, W=generic.W, b=generic.b.at[0].set(jnp.nan)),
    }


@pytest.fixture(scope="module")
def ends(paper_model, starts) -> dict[str, fc.Trajectory]:
    return {name: fc.simulate(paper_model, start, FLOW, metrics=NAMES) for name, start in starts.items()}


@pytest.mark.parametrize("name", ["generic", "tiny", "tinier than rounding of 1", "on S", "collapsed"])
def test_plateau(ends, name):
    """All modes have escaped: the risk is zero up to a remainder of order eps^4 from the start."""
    path = ends[name]
    assert path.result == fc.Verdict.plateau
    assert float(path.metrics["risk"][-1]) < 1e-5
    assert float(path.metrics["snc1"][-1]) < 0.1


@pytest.mark.parametrize(
    ("name", "rank"), [("zero", 0), ("zero with the best bias", 0), ("rank one on S", 1), ("decaying side only", 0)]
)
def test_saddle(ends, name, rank):
    """A start whose `W + B^T` has rank r < C - 1 ends at the risk `N (C - 1 - r) / 2`, and is not called converged."""
    path = ends[name]
    assert path.result == fc.Verdict.saddle
    np.testing.assert_allclose(path.metrics["risk"][-1], N * (C - 1 - rank) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["NaN", "infinite", "NaN in the bias"])
def test_starts_that_are_not_finite(ends, name):
    """They end at once, raise nothing, and all their results are NaN."""
    path = ends[name]
    assert path.result == fc.Verdict.non_finite
    assert all(np.all(np.isnan(values)) for values in path.metrics.values())
    assert all(np.all(np.isnan(part)) for part in systems.arrays(path.final))


def test_too_few_features_for_the_frame(key):
    """With p < C - 1 the plateau has the risk `N (C - 1 - p) / 2`, the best that p features can do; it is no saddle."""
    model = fc.UFM(num_classes=5, samples_per_class=2, num_features=3)
    path = fc.simulate(model, fc.initial.sphere(model, eps=1e-3, key=key), FLOW, metrics=("risk",))
    assert path.result == fc.Verdict.plateau
    np.testing.assert_allclose(path.metrics["risk"][-1], 2 * (5 - 1 - 3) / 2, rtol=1e-5)


@pytest.mark.parametrize(("name", "t1"), [("generic", 0.3), ("generic", 5.0), ("tiny", 5.0), ("zero", 0.3)])
def test_time_limit(paper_model, starts, name, t1):
    """End times that are too short: before the escape, between escape and plateau, and still at the saddle."""
    path = fc.simulate(paper_model, starts[name], fc.Flow(rtol=1e-6, t1=t1), metrics=NAMES)
    assert path.result == fc.Verdict.time_limit
    assert float(path.t_end) == t1


def test_a_longer_time_than_needed_changes_nothing(paper_model, starts):
    """A state at the plateau stays there."""
    path = fc.simulate(paper_model, starts["generic"], fc.Flow(rtol=1e-6, t1=100.0), metrics=NAMES)
    assert path.result == fc.Verdict.plateau


@pytest.mark.parametrize("name", ["generic", "tiny"])
def test_step_limit_of_the_flow(paper_model, starts, name):
    path = fc.simulate(paper_model, starts[name], fc.Flow(rtol=1e-6, max_steps=6), metrics=NAMES)
    assert path.result == fc.Verdict.step_limit
    assert int(path.stats["accepted"] + path.stats["rejected"]) == 6


@pytest.mark.parametrize(
    ("name", "learning_rate", "verdict"),
    [
        ("generic", 0.05, fc.Verdict.plateau),
        ("generic", 1e-3, fc.Verdict.step_limit),  # too few steps for this step size
        ("tiny", 0.02, fc.Verdict.step_limit),
        ("generic", 1.0, fc.Verdict.non_finite),  # far above 2 / (CN + s)
        ("zero", 0.05, fc.Verdict.saddle),
        ("rank one on S", 0.05, fc.Verdict.saddle),
        ("NaN", 0.05, fc.Verdict.non_finite),
    ],
)
def test_verdicts_of_descent(paper_model, starts, name, learning_rate, verdict):
    method = fc.Descent("sgd", 400, learning_rate=learning_rate)
    assert fc.simulate(paper_model, starts[name], method, metrics=NAMES).result == verdict


def test_a_bad_lane_does_not_touch_the_others(starts, ends, run_lanes):
    """In a batch every lane has its own verdict, and good lanes have the same values as when they run alone."""
    names = ["generic", "NaN", "zero", "tiny"]
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *(starts[name] for name in names))
    lanes = run_lanes(batch, 1e-6)
    assert [fc.Verdict(int(code)) for code in lanes.result] == [ends[name].result for name in names]
    for lane, name in enumerate(names):
        alone, together = ends[name].final, jax.tree.map(lambda x, i=lane: x[i], lanes.final)
        # Both runs have the tolerance 1e-6 and take the same steps up to rounding.
        np.testing.assert_allclose(together.W, alone.W, rtol=0, atol=1e-9, equal_nan=True)
        np.testing.assert_allclose(together.H, alone.H, rtol=0, atol=1e-9, equal_nan=True)
    assert "lanes" in repr(lanes)
    assert "2 plateau" in repr(lanes)


def test_every_verdict_has_a_sentence(ends):
    for verdict in fc.Verdict:
        assert len(verdict.message) > 20
    assert fc.Verdict.saddle.message in repr(ends["zero"])

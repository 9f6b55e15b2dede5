"""Closed forms refuse starts and models outside their range, in one line with the argument, the value and the cure."""

import jax
import numpy as np
import pytest
import systems
from closed_forms import CASES, TS, in_second_phase, on_subspace, ufm, with_b
from trial_losses import Trial

import flowcollapse as fc

exact = fc.theory.exact

PAPER = ufm((3, 3, 3), 15)
ON_S = on_subspace((3, 3, 3), 15)
NO_BIAS = ufm((4, 4, 4), 3, use_bias=False)
BALANCED = CASES["no bias"].start
ANY = systems.random_state(PAPER)
SLOW = CASES["second phase"]
UNEQUAL = (0.1, 0.2, 0.0)


REFUSED = {
    "flow off S": (lambda: exact.subspace_flow(PAPER, ANY, TS), ["off the invariant subspace S", "project"]),
    "flow from an uneven bias": (
        lambda: exact.subspace_flow(PAPER, with_b(ON_S, [0.0, 0.0, 1e-6]), TS),
        ["off the invariant subspace S"],
    ),
    "descent off S": (
        lambda: exact.subspace_descent(PAPER, ANY, [1], learning_rate=0.1),
        ["off the invariant subspace S", "project"],
    ),
    "flow on S of unequal counts": (
        lambda: exact.subspace_flow(ufm((5, 2, 1), 4), CASES["second phase, imbalanced"].start, TS),
        ["samples_per_class", "(5, 2, 1)", "equal counts"],
    ),
    "flow on S with unequal decay": (
        lambda: exact.subspace_flow(ufm((3, 3, 3), 15, weight_decay=UNEQUAL), ON_S, TS),
        ["weight_decay", "0.1 for W", "0.2 for H", "equal"],
    ),
    "negative times": (lambda: exact.subspace_flow(PAPER, ON_S, [-1.0]), ["ts", "-1.0", "not below 0"]),
    "times that are not finite": (lambda: exact.subspace_flow(PAPER, ON_S, [np.inf]), ["ts", "inf", "finite"]),
    "several starts": (
        lambda: exact.subspace_flow(PAPER, jax.tree.map(lambda x: x[None], ON_S), TS),
        ["start", "(1,)", "jax.vmap"],
    ),
    "a negative step": (
        lambda: exact.subspace_descent(PAPER, ON_S, [3, -1], learning_rate=0.1),
        ["steps", "-1", "at least 0"],
    ),
    "a learning rate of zero": (
        lambda: exact.subspace_descent(PAPER, ON_S, [3], learning_rate=0.0),
        ["learning_rate", "0.0", "positive"],
    ),
    "half time of a mode that is there": (lambda: exact.half_time(PAPER, 2.0), ["mu", "between 0 and 1.73", "2.0"]),
    "half time of nothing": (lambda: exact.half_time(PAPER, np.array([0.1, 0.0])), ["mu", "0.1 0. "]),
    "half time of a mode that decay stops": (
        lambda: exact.half_time(ufm((3, 3, 3), 15, weight_decay=2.0), 0.1),
        ["mu", "0.1"],
    ),
    "a start that is not balanced": (
        lambda: exact.balanced_flow(NO_BIAS, fc.State(H=2 * BALANCED.H, W=BALANCED.W, b=BALANCED.b), TS),
        ["W^T W - H H^T", "multiple", "fc.initial.balanced"],
    ),
    "balanced flow with unequal decay": (
        lambda: exact.balanced_flow(ufm((4, 4, 4), 3, use_bias=False, weight_decay=UNEQUAL), BALANCED, TS),
        ["weight_decay", "0.1 for W", "0.2 for H", "equal"],
    ),
    "decay with lam": (
        lambda: exact.balanced_flow(
            ufm((4, 4, 4), 3, use_bias=False, weight_decay=0.1), CASES["no bias, lam > 0"].start, TS
        ),
        ["weight_decay", "0.1", "leave out the decay"],
    ),
    "features that do not sum to zero": (
        lambda: exact.balanced_flow(ufm((4, 4, 4), 3), BALANCED, TS),
        ["H 1", "use_bias=False"],
    ),
    "a bias that acts": (
        lambda: exact.balanced_flow(ufm((7,) * 4, 6), with_b(CASES["b settled"].start, [0.3] * 4), TS),
        ["start.b", "0.3", "n / n_tot", "1^T W = 0"],
    ),
    "a bias that is not uniform": (
        lambda: exact.balanced_flow(ufm((7,) * 4, 6), with_b(CASES["W centred"].start, [0.3, 0.2, 0.2, 0.2]), TS),
        ["start.b", "n / n_tot", "uniform"],
    ),
    "a settled bias that decays": (
        lambda: exact.balanced_flow(ufm((7,) * 4, 6, weight_decay=(0.0, 0.0, 0.1)), CASES["b settled"].start, TS),
        ["start.b", "0.1", "without decay"],
    ),
    "a bias that decays and unequal counts": (
        lambda: exact.balanced_flow(
            ufm((5, 2, 1), 3, weight_decay=(0.0, 0.0, 0.1)), CASES["imbalanced, W centred"].start, TS
        ),
        ["start.b", "0.1", "only if the classes are balanced"],
    ),
    "a second phase without a bias": (
        lambda: exact.second_phase(ufm((7,) * 4, 6, use_bias=False), with_b(SLOW.start, np.zeros(4)), TS),
        ["use_bias", "False"],
    ),
    "a second phase with decay": (
        lambda: exact.second_phase(ufm((7,) * 4, 6, weight_decay=0.1), SLOW.start, TS),
        ["weight_decay", "0.1", "set it to 0"],
    ),
    "class means that miss": (
        lambda: exact.second_phase(SLOW.model, with_b(SLOW.start, [0.26, 0.24, 0.25, 0.25]), TS),
        ["class means that miss their targets"],
    ),
    "class means that L meets": (
        lambda: exact.second_phase(SLOW.model, in_second_phase((7,) * 4, 6, tilt=0.1), TS),
        ["B^T L"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, words = REFUSED[name]
    systems.assert_refused(call, words)


def test_what_a_start_may_be_off_can_be_said():
    """`rtol` accepts a start that is off by less; the path then has an error of the same size."""
    near = jax.tree.map(lambda x, d: x + 1e-7 * d, ON_S, ANY)
    with pytest.raises(fc.UsageError):
        exact.subspace_flow(PAPER, near, TS)
    found = exact.subspace_flow(PAPER, near, TS, rtol=1e-5)
    assert (
        1e-9 < systems.relative_error(systems.arrays(found), systems.flow(systems.arrays(near), (3, 3, 3), TS)) < 1e-5
    )


def test_another_loss_has_no_closed_form():
    with pytest.raises(fc.UsageError, match=r"loss is 'trial'.*fc\.simulate"):
        exact.subspace_flow(ufm((3, 3, 3), 15, loss=Trial()), ON_S, TS)

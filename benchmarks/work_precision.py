"""Error against time of many solvers at one size, in a separate process; worker of `scaling.py`.

    python benchmarks/work_precision.py '{"C": 3, "N": 3, "p": 15, "rtols": [1e-4, 1e-6]}'

Further keys: `limit_s` (the longest a run should take), `methods` (names from `METHODS`; default all), `budget_s` (how
long to repeat a run; the fastest counts). Solvers that cannot finish within the limit are not started; their time is
estimated from their stability or the size of their matrices and written into the row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import accuracy
import jax
import numpy as np
from fresh_process import Row, emit, spec_of_this_worker
from large_runs import (
    OURS,
    Cost,
    End,
    about,
    best,
    compiled,
    counts_of,
    end_of,
    end_time,
    errors,
    full_scipy,
    problem,
    reference,
)
from peer_batch import Batch

import flowcollapse as fc
from flowcollapse.methods.stiff_part import mean_residual_field, to_mean_residual
from flowcollapse.model.coordinates import enter

FLOWS: dict[str, Callable[[], Any]] = {
    OURS: lambda: OURS,
    "kencarp5": lambda: "kencarp5",
    "kvaerno5": lambda: "kvaerno5",
    "tsit5": lambda: "tsit5",
    "dopri8": lambda: "dopri8",
}
"""Solvers of `fc.Flow`, all in class-mean coordinates."""

SCIPY = ("DOP853", "Radau", "LSODA")
"""Solvers of scipy, on the full state."""

METHODS = (*FLOWS, *SCIPY)
DENSE = ("kvaerno5", "Radau", "LSODA")
"""Implicit solvers that keep a dense Jacobian of all unknowns and factorise it."""

STAGES = {"tsit5": 6, "dopri8": 13, "DOP853": 12}
STABLE = 4.0
"""The product of step and fastest rate at the edge of stability: 3 to 6 for explicit pairs of these orders."""

MOST_DENSE_GB = 2.0
DENSE_STEPS = 50
"""The fewest steps of a solver of order 5; each takes one factorisation."""

FACTORISATIONS = 1e10
"""Operations per second in a dense factorisation, a cautious guess for a few cores."""

Solve = Callable[[float], tuple[End, Cost, Row]]


class Case:
    """One size: the start, the reference, and how to run each method and estimate its time."""

    def __init__(self, C: int, N: int, p: int, budget_s: float) -> None:
        self.model, self.start = problem(C, N, p)
        self.t1 = end_time(self.model, self.start)
        self.budget_s = budget_s
        self.ours, self.ours_compile_s = compiled(self.model, self.start, OURS)
        path, self.reference_rtol = reference(self.ours)
        self.truth = end_of(path)
        self.full_unknowns = p * C * N + C * p + C
        self.full_truth = end_of(path, features=True) if self.checkable else None
        _, inner, point = enter(self.model, self.start, "auto")
        self.reduced_unknowns = sum(x.size for x in point)
        field = jax.jit(mean_residual_field)
        arguments = (inner, point.W, point.X, to_mean_residual(inner, point))
        jax.block_until_ready(field(*arguments))
        self.rhs_s = best(lambda: jax.block_until_ready(field(*arguments)), 1.0)[1].wall_s

    @property
    def checkable(self) -> bool:
        """Whether solvers of the full state can run at all."""
        return self.full_unknowns < 2**20

    def check_reference(self) -> Row:
        """The uncertainty of the reference: its distance from scipy's DOP853 on the full state at rtol 1e-13.

        If that run would take too long, our own run at ten times the tolerance is used instead.
        """
        row: Row = {"method": "reference", "rtol": self.reference_rtol}
        if self.full_truth is None:
            looser = 10 * self.reference_rtol
            gap, against = errors(end_of(self.ours(looser)), self.truth), f"ours at rtol {looser:g}"
        else:
            H, W, b = (np.asarray(x)[None] for x in (self.start.H, self.start.W, self.start.b))
            batch = Batch(self.model.counts[0], H, W, b, np.array([[0.0, self.t1]]), 1e-13)
            other = accuracy.reference(batch, 1e-13)
            gap, against = errors(End(other.W[0], other.H[0], other.b[0]), self.full_truth), other.remark
        return row | {f"reference_{name}": value for name, value in gap.items()} | {"reference_against": against}

    def infeasible(self, method: str, limit_s: float) -> str | None:
        """The reason why a method is not started, or None."""
        unknowns = self.full_unknowns if method in SCIPY else self.reduced_unknowns
        if method in DENSE:
            gigabytes = 8 * unknowns**2 / 1e9
            seconds = DENSE_STEPS * 2 / 3 * unknowns**3 / FACTORISATIONS
            if gigabytes > MOST_DENSE_GB:
                return f"a dense Jacobian of {unknowns:,} unknowns takes {gigabytes:,.0f} GB"
            if seconds > limit_s:
                return f"{DENSE_STEPS} dense factorisations of {unknowns:,} unknowns take about {seconds:,.0f} s"
        if method in STAGES:
            rate = self.model.num_samples + math.sqrt(self.model.counts[0])
            evaluations = STAGES[method] * self.t1 * rate / STABLE
            share = unknowns / self.reduced_unknowns if method in SCIPY else 1.0
            seconds = evaluations * share * self.rhs_s
            if seconds > limit_s:
                return f"stability asks for about {evaluations:,.0f} evaluations: about {seconds:,.0f} s"
        if method in SCIPY and self.full_truth is None:
            return f"the full state has {unknowns:,} numbers"
        return None

    def solver(self, method: str) -> Solve:
        if method in SCIPY:
            return lambda rtol: full_scipy(method, self.model, self.start, rtol, self.budget_s)
        run, compile_s = (
            (self.ours, self.ours_compile_s) if method == OURS else compiled(self.model, self.start, FLOWS[method]())
        )

        def solve(rtol: float) -> tuple[End, Cost, Row]:
            path, cost = best(lambda: run(rtol), self.budget_s, compile_s)
            return end_of(path), cost, counts_of(path)

        return solve

    def rows(self, method: str, rtols: Sequence[float], limit_s: float) -> Iterator[Row]:
        """One row per tolerance, from loose to tight, until a run would exceed the limit."""
        reason = self.infeasible(method, limit_s)
        if reason is not None:
            yield {"method": method, "skipped": reason}
            return
        seconds: list[float] = []
        try:
            solve = self.solver(method)
            for rtol in rtols:
                growth = seconds[-1] / seconds[-2] if len(seconds) > 1 else 1.5
                if seconds and seconds[-1] * max(growth, 1.0) > limit_s:
                    yield {
                        "method": method,
                        "rtol": rtol,
                        "skipped": f"would take about {seconds[-1] * growth:.0f} s",
                    }
                    return
                end, cost, counts = solve(rtol)
                seconds.append(cost.wall_s)
                truth = self.full_truth if method in SCIPY else self.truth
                assert truth is not None
                yield {"method": method, "rtol": rtol, **errors(end, truth), **cost._asdict(), **counts}
                if counts.get("verdict") == "step_limit":
                    yield {"method": method, "skipped": f"the rest: stuck after {counts['steps']} steps"}
                    return
        except Exception as problem_met:  # one failing solver must not stop the others
            reason = f"{type(problem_met).__name__}: {str(problem_met).splitlines()[0][:200]}"
            yield {"method": method, "failed": reason}


def main() -> None:
    spec = spec_of_this_worker()
    fc.enable_x64()
    sizes = {key: spec[key] for key in ("C", "N", "p")}
    case = Case(**sizes, budget_s=spec.get("budget_s", 2.0))
    emit(sizes | case.check_reference() | {"about": about()})
    for method in spec.get("methods", METHODS):
        for row in case.rows(method, spec["rtols"], spec.get("limit_s", 60.0)):
            emit(sizes | row)


if __name__ == "__main__":
    main()

"""Worker of `scaling.py`: one method, one size and one tolerance in a separate process.

    python benchmarks/scaling_run.py '{"method": "ours", "C": 10, "N": 100, "p": 64, "rtol": 1e-6}'

Further keys: `budget_s` (how long to repeat a run; the fastest counts), `floor` (also measure the matrix products),
`check` (measure the error against a run at tight tolerance).
"""

import jax
import numpy as np
from fresh_process import Row, emit, peak_mb, spec_of_this_worker
from large_runs import (
    OURS,
    Cost,
    End,
    about,
    best,
    compiled,
    counts_of,
    end_of,
    errors,
    full_scipy,
    full_tsit5,
    problem,
    reference,
)
from matmul_floor import Floor

import flowcollapse as fc
from flowcollapse.methods.stiff_part import to_mean_residual
from flowcollapse.model.coordinates import enter
from flowcollapse.model.problem import Problem

FLOWS = {"ours": OURS, "tsit5_class_mean": "tsit5"}
FLOOR_ROUNDS = 3


def main() -> None:
    spec = spec_of_this_worker()
    fc.enable_x64()
    where = about()  # starts jax, so that its memory counts as imports
    memory: Row = {"imports_mb": peak_mb()}
    model, start = problem(spec["C"], spec["N"], spec["p"])
    jax.block_until_ready(start)
    memory["start_mb"] = peak_mb()
    method, rtol, budget_s = spec["method"], spec["rtol"], spec.get("budget_s", 3.0)

    if method in FLOWS:
        run, compile_s = compiled(model, start, FLOWS[method])
        memory["compiled_mb"] = peak_mb()
        path, cost = best(lambda: run(rtol), budget_s, compile_s)
        end, counts = end_of(path), counts_of(path)
        memory["peak_mb"] = peak_mb()
        extra = snc1_of(end, spec["N"])
        if spec.get("floor"):
            cost, floor = beside_floor(model, start, run, rtol, cost, counts["evaluations"])
            extra |= floor
        truth = run if method == "ours" else None
    else:
        solve = full_tsit5 if method == "tsit5_full" else lambda *args: full_scipy("DOP853", *args)
        end, cost, counts = solve(model, start, rtol, budget_s)
        memory["peak_mb"] = peak_mb()
        extra, truth = {}, None

    if spec.get("check"):
        path, extra["reference_rtol"] = reference(truth or compiled(model, start, OURS)[0])
        extra |= errors(end, end_of(path, features=method not in FLOWS))
    memory["net_mb"] = memory["peak_mb"] - memory["imports_mb"]
    emit({**spec, **cost._asdict(), **counts, **memory, **extra, "about": where})


def beside_floor(model, start, run, rtol: float, cost: Cost, evaluations: int) -> tuple[Cost, Row]:
    """Run again, alternating with the matrix products of the same sizes."""
    _, inner, point = enter(model, start, "auto")
    inner = Problem(model, inner.columns.without_arrays())
    floor = Floor(inner, point.W, point.X, to_mean_residual(inner, point))
    rounds = FLOOR_ROUNDS if cost.wall_s < 30 else 1
    for turn in range(rounds):
        floor.measure(0.5)
        if turn > 0:
            _, again = best(lambda: run(rtol), 0.0)
            wall_s, cpu_s = min(cost.wall_s, again.wall_s), min(cost.cpu_s, again.cpu_s)
            cost = Cost(cost.compile_s, wall_s, cpu_s, cost.runs + again.runs)
    return cost, floor.row(evaluations, cost.wall_s, cost.cpu_s)


def snc1_of(end: End, N: int) -> Row:
    """`||W W^T - s P||_F`, which is of order eps^2 at the plateau and so shows that the run got there."""
    C = len(end.W)
    return {"snc1": float(np.linalg.norm(end.W @ end.W.T - N**0.5 * (np.eye(C) - 1 / C)))}


if __name__ == "__main__":
    main()

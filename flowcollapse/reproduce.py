"""The paper's two figures from real runs: gradient flow and gradient descent from the same starts, in one Dataset."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from . import initial
from ._checks import check_number
from ._errors import UsageError
from ._files import check_writable, local_path, write_netcdf
from .endings.plateau import plateau_time
from .methods.descent import Descent
from .methods.flow import Flow
from .model.problem import problem_of
from .model.ufm import UFM
from .results.description import options
from .results.fits import FIT_UP_TO, fitted_eps, fitted_power
from .results.labels import verdict_attributes
from .results.provenance import provenance
from .results.tables import aligned, verdicts
from .settings import take_cpu_cores
from .sweeps.capacity import CPU_WIDTH
from .sweeps.engine import Engine
from .sweeps.grid import checked_axes
from .sweeps.sweep import sweep
from .theory.small_starts.scaling import powers

NAMES = ("snc1", "snc2", "snc3", "distance", "relative_distance", "risk")
"""The curves to keep."""

FILES = ("reproduce.nc", "figure1.png", "figure1.pdf", "figure2.png", "figure2.pdf")
"""The files that `write` makes."""

NUM_SAVES = 400
"""The approximate number of times on the curves."""

MOST_STEPS = 10_000_000


def paper_model() -> UFM:
    """The model of the paper's figures: `C = N = 3`, `p = 15`."""
    return UFM(num_classes=3, samples_per_class=3, num_features=15)


def run(
    eps: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3),
    seeds: int | Sequence[int] = 100,
    *,
    seed_shown: int | None = None,
    learning_rate: float = 0.02,
    rtol: float = 1e-8,
    solver: str = "exponential",
    t1: float | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Run gradient flow and gradient descent of the paper's model from the same random starts.

    Args:
        eps: norms of H0 and of W0. This default and the other defaults are our choice.
        seeds: the number of starts for each eps, or a list of their seeds. The key of a start is
            `jax.random.key(seed)`.
        seed_shown: the seed whose curves the figures show. Default: the first seed.
        learning_rate: step size of the descent.
        rtol: relative tolerance of the flow.
        solver: the flow's solver, by name.
        t1: end time of all runs. Default: the latest plateau time among the starts.
        progress: show progress bars on standard error.

    Returns:
        A Dataset with dimensions (method, eps, seed, time): the curves `NAMES`, the `verdict`, `steps` and
        `steps_rejected` of each run, the `plateau_time` of each start, and the provenance as attributes. All runs are
        saved at the same times, namely those of every k-th step of the descent.

    Raises:
        UsageError: for numbers that are not positive, an eps or seed given twice, a shown seed that is not among the
            seeds, an unknown solver, or a learning rate that needs more than ten million steps.

    Source: Mixon, Parshall and Pi, figures 1 and 2.

    Example:
        >>> from flowcollapse import reproduce
        >>> data = reproduce.run(eps=[0.1], seeds=2, solver="tsit5")
        >>> data["snc1"].dims, int(data["verdict"].max())
        (('method', 'eps', 'seed', 'time'), 0)
    """
    take_cpu_cores(None)
    settings = {"seed_shown": seed_shown, "learning_rate": learning_rate, "rtol": rtol, "solver": solver, "t1": t1}
    eps, seeds = check(eps, seeds, **settings)
    settings["seed_shown"] = seeds[0] if seed_shown is None else int(seed_shown)
    model, flow = paper_model(), Flow(solver, rtol=rtol)
    plateaus = plateau_times(model, eps, seeds)
    ts, num_steps = save_times(float(plateaus.max()) if t1 is None else t1, learning_rate)
    descent = Descent("sgd", num_steps=num_steps, learning_rate=learning_rate)
    curves, paths = (
        sweep(model, method, eps=eps, seeds=seeds, ts=ts, metrics=NAMES, progress=progress)
        for method in (flow, descent)
    )

    def both(of_flow: xr.DataArray, of_descent: xr.DataArray) -> np.ndarray:
        return np.stack([of_flow.values, of_descent.values])

    over = ("method", "eps", "seed")
    data: dict[str, Any] = {
        name: ((*over, "time"), both(curves[name], paths[name]), curves[name].attrs) for name in NAMES
    }
    rejected = curves["steps_rejected"]
    data["verdict"] = over, both(curves["verdict"], paths["verdict"]), verdict_attributes()
    steps = both(curves["steps_accepted"], paths["steps_taken"])
    data["steps"] = over, steps, _about("steps accepted (flow) or taken")
    data["steps_rejected"] = over, both(rejected, xr.zeros_like(rejected)), _about("steps rejected")
    data["plateau_time"] = over[1:], plateaus, _about("time by which every mode has reached the plateau")
    coords = {
        "method": ("method", [flow.name, descent.name], {"long_name": "gradient flow or gradient descent"}),
        "eps": ("eps", np.asarray(eps, dtype=float), _about("norm of H0 and of W0")),
        "seed": ("seed", np.asarray(seeds), _about("seed of the start's random key")),
        "time": ("time", ts, _about("time; for descent the sum of the step sizes")),
    }
    attributes = provenance(
        model,
        flow,
        title="Figures 1 and 2 of Mixon, Parshall and Pi (arXiv 2011.11619), from new runs",
        seeds=f"jax.random.key(seed) for {len(seeds)} seeds from {min(seeds)} to {max(seeds)}",
        options={"eps": list(eps), "seeds": list(seeds)} | settings,
    )
    attributes["method"] = json.dumps({method.name: options(method) for method in (flow, descent)})
    return xr.Dataset(data, coords, attributes | {"seed_shown": settings["seed_shown"]})


def plateau_times(model: UFM, eps: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """The plateau time of every start, shape (eps, seeds)."""

    def one(_, lane):
        e, seed = lane
        return plateau_time(*problem_of(model, initial.sphere(model, e, key=jax.random.key(seed))))

    lanes = np.repeat(np.asarray(eps, dtype=float), len(seeds)), np.tile(np.asarray(seeds), len(eps))
    return Engine(one, width=CPU_WIDTH).submit(lanes).result().reshape(len(eps), len(seeds))


def check(
    eps: Any, seeds: Any, *, seed_shown: Any, learning_rate: Any, rtol: Any, solver: Any, t1: Any
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Raise the `UsageError` that `run` would raise for these options, before any work.

    Returns:
        The values of eps and the seeds.
    """
    axes = checked_axes((), eps, seeds, {})
    shown = seed_shown
    if shown is not None and (isinstance(shown, bool) or not isinstance(shown, int | np.integer)):
        raise UsageError(f"seed_shown must be one of the seeds, got {shown!r}: give an integer.")
    if shown is not None and shown not in axes["seed"]:
        low, high = min(axes["seed"]), max(axes["seed"])
        raise UsageError(f"seed_shown is {shown}, but the seeds are {low} to {high}: choose one of them.")
    for name, value in (("learning_rate", learning_rate), ("t1", t1), ("rtol", rtol)):
        if value is not None or name != "t1":
            check_number(name, value)
    if not isinstance(solver, str):
        raise UsageError(f"solver must be a name, got {solver!r}: choose one, such as 'exponential'.")
    Flow(solver, rtol=rtol)
    if t1 is not None:
        save_times(float(t1), float(learning_rate))
    return axes["eps"], axes["seed"]


def save_times(t1: float, learning_rate: float) -> tuple[np.ndarray, int]:
    """Times of every k-th step of the descent, about `NUM_SAVES` of them up to just after t1, and its step count."""
    if t1 / learning_rate > MOST_STEPS:
        raise UsageError(
            f"learning_rate {learning_rate:g} needs {t1 / learning_rate:.0f} steps to reach time {t1:.3g}, more than "
            f"{MOST_STEPS}: raise it."
        )
    every = max(1, round(t1 / (NUM_SAVES * learning_rate)))
    saves = math.ceil(t1 / (every * learning_rate))
    return learning_rate * every * np.arange(saves + 1), every * saves


def _about(long_name: str) -> dict[str, str]:
    return {"long_name": long_name, "units": "1"}


def check_folder(folder: str | Path) -> None:
    """Make sure that `write` can write to `folder`; `write` makes the folder if it does not exist.

    Raises:
        UsageError: if it cannot.
    """
    folder = local_path(folder, "out")
    for name in FILES:
        check_writable(folder / name)


def write(dataset: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write the Dataset as netCDF and the figures as PNG and PDF; each file is written completely or not at all.

    Raises:
        UsageError: if the folder cannot be written.
    """
    import matplotlib.pyplot as plt

    from . import plot

    folder = local_path(folder, "folder")
    write_netcdf(dataset, folder / FILES[0])
    for stem, axes in (("figure1", plot.figure1(dataset)[0]), ("figure2", plot.figure2(dataset))):
        for suffix in (".png", ".pdf"):
            plot.save(axes, folder / (stem + suffix))
        plt.close(axes.get_figure(root=True))
    return [folder / name for name in FILES]


def table(dataset: xr.Dataset) -> str:
    """The ends of the runs, as medians over the seeds for each eps and method, and the fitted powers of eps."""
    names = ("snc1", "snc2", "snc3", "distance", "risk")
    end = dataset[list(names)].isel(time=-1).median("seed")
    heads = ("SNC1", "SNC2", "SNC3", "dist S", "risk")
    rows: list[tuple[str, ...]] = [("eps", "method", *heads, "steps", "verdict")]
    for eps in dataset["eps"].values:
        for method in dataset["method"].values:
            which = {"eps": eps, "method": method}
            values = (f"{float(end[name].sel(which)):.2e}" for name in names)
            runs = dataset.sel(which)
            rows.append((f"{eps:g}", str(method), *values, _steps(runs), verdicts(runs["verdict"].values)))
    used = fitted_eps(dataset["eps"].values)
    lines = [
        f"At time {float(dataset['time'][-1]):.4g}, {_counted(dataset.sizes['seed'])}:",
        *aligned(rows),
    ]
    if len(used) < 2:
        return "\n".join([*lines, "", "Powers of eps: give at least two values of eps to fit them."])
    rows: list[tuple[str, ...]] = [("", "method", *heads)]
    for method in dataset["method"].values:
        fitted = (f"{fitted_power(end[name].sel({'method': method}), used):.3f}" for name in names)
        rows.append(("", str(method), *fitted))
    predicted = powers(paper_model())
    rows.append(("", "predicted", *(str(predicted[name]) for name in names)))
    chosen = ", ".join(f"{e:g}" for e in used)
    if used[0] > FIT_UP_TO * (1 + 1e-9):
        chosen += f" (above {FIT_UP_TO:g}, higher orders still bend the curves)"
    return "\n".join([*lines, "", f"Powers of eps, fitted to these values at eps = {chosen}:", *aligned(rows)])


def _counted(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"medians over {seeds} seeds"


def _steps(runs: xr.Dataset) -> str:
    accepted, rejected = (int(np.median(runs[name])) for name in ("steps", "steps_rejected"))
    return f"{accepted}+{rejected}" if rejected else f"{accepted}"

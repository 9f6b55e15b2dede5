"""The page on extending runs as it is: its entries form a module outside the package."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import systems

import flowcollapse as fc
from flowcollapse.losses import LOSSES
from flowcollapse.methods.solvers.registry import SOLVERS
from flowcollapse.metrics.registry import checked_names
from flowcollapse.model.columns import SAMPLES

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODULE = "\n\n".join(block for block in BLOCKS if block.startswith("# mine.py"))
PROGRAM = next(block for block in BLOCKS if not block.startswith("# mine.py"))
COMMANDS = re.findall(r"^flowcollapse (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("outside")
    (place / "mine.py").write_text(MODULE, encoding="utf-8")
    return place


REGISTRIES: tuple[dict, ...] = (LOSSES, SOLVERS, fc.metrics.METRICS, fc.initial.STARTS)


@pytest.fixture
def mine(folder, monkeypatch):
    """The module; its entries are removed from the registries after the test."""
    monkeypatch.syspath_prepend(folder)
    before = [dict(registry) for registry in REGISTRIES]
    yield importlib.import_module("mine")
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_the_program_runs(mine):
    space: dict = {}
    exec(compile(PROGRAM, "extending.md", "exec"), space)
    path, grid, both = space["path"], space["grid"], space["both"]
    assert path.result == fc.Verdict.time_limit
    np.testing.assert_allclose(path.metrics["class_margin"][-1], mine.smallest_margin(view_of(path)), rtol=1e-12)
    assert grid.sizes == {"delta": 2, "share": 2, "eps": 1, "seed": 2, "time": 2}
    assert both.sizes["method"] == 2
    # The number of the loss reaches the lane: with delta = 0.5 the risk is that of Huber(0.5), and the lanes differ.
    model = space["model"]
    state = fc.initial.sphere(model, 1.0, key=jax.random.key(3))
    risks = [float(fc.risk(model.with_numbers({"delta": delta}), state)) for delta in (0.5, 1.0)]
    assert risks[0] < 0.9 * risks[1]
    of_lanes = grid["risk"].isel(eps=0, seed=0, time=-1, share=0).values
    assert of_lanes[0] != of_lanes[1]


def view_of(path):
    from flowcollapse.metrics.view import View
    from flowcollapse.model import problem_of

    problem, point = problem_of(path.model, path.final)
    return View(problem, point, *problem.split(point.X), None)


def test_the_gradient_of_the_loss_is_that_of_its_value(mine):
    model = fc.UFM(num_classes=3, samples_per_class=(4, 1, 2), num_features=5, loss=mine.Huber(0.7))
    state = fc.initial.sphere(model, 1.0, key=jax.random.key(1))
    slope = jax.grad(lambda W: fc.risk(model, fc.State(H=state.H, W=W, b=state.b)))(state.W)
    np.testing.assert_allclose(fc.velocity(model, state).W, -slope, rtol=1e-12, atol=1e-14)


def test_small_residuals_feel_the_squared_error(mine):
    """Huber's loss with a large delta is the squared error, up to (residual / delta)^2."""
    squared = systems.model_of((4, 4, 4), 5)
    model = systems.model_of((4, 4, 4), 5, loss=mine.Huber(1e4))
    state = fc.initial.sphere(squared, 1.0, key=jax.random.key(2))
    np.testing.assert_allclose(fc.risk(model, state), fc.risk(squared, state), rtol=1e-7)
    assert jnp.isfinite(fc.sharpness(model, state))


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_the_commands_run(folder, number):
    words = [sys.executable, "-m", "flowcollapse.cli", *COMMANDS[number].split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_a_store_of_an_outside_loss_resumes_and_refuses_another(mine, tmp_path):
    model = fc.UFM(num_classes=2, samples_per_class=2, num_features=2, loss="mine:Huber:delta=0.5")
    method = fc.Descent("sgd", num_steps=3, learning_rate=0.1)
    options = {"eps": [0.1], "seeds": 1, "ts": 2, "metrics": ["risk"], "progress": False, "store": tmp_path / "a.zarr"}
    assert fc.sweep(model, method, **options).attrs["lanes_computed"] == 1
    assert fc.sweep(model, method, **options).attrs["lanes_computed"] == 0
    with pytest.raises(fc.UsageError, match=r"model\.loss is .*delta=0\.5.* there and .*delta=0\.6"):
        fc.sweep(model.with_numbers({"delta": 0.6}), method, **options)


WRONG = {
    "no module": ("nowhere_at_all:Huber", r"cannot be imported.*name a module"),
    "no name": ("mine:Hubert", r"does not exist.*use a name"),
    "no loss": ("mine:aligned", r"is no loss.*AbstractLoss"),
    "no number": ("mine:Huber:delta=big", r"delta must be a number"),
    "an unknown number": ("mine:Huber:width=1", r"width.*give the numbers that Huber has"),
    "a refused number": ("mine:Huber:delta=-1.0", r"delta is -1\.0"),
    "a name that is near": ("sqared", r"did you mean 'squared'\?"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_texts_are_refused(mine, name):
    text, message = WRONG[name]
    with pytest.raises(fc.UsageError, match=message):
        fc.UFM(num_classes=2, samples_per_class=2, num_features=2, loss=text)


OTHERS = {
    "a solver": (lambda text: fc.Flow(text), "math:pi", r"solver 'math:pi' is 3\.14.*pass a diffrax solver"),
    "a solver with arguments": (lambda text: fc.Flow(text), "mine:aligned", r"cannot be made without arguments.*write"),
    "what makes no solver": (lambda text: fc.Flow(text), "builtins:dict", r"solver must be .*estimate, got \{\}"),
    "an adjoint": (lambda text: fc.Flow(adjoint=text), "math:pi", r"adjoint 'math:pi' is 3\.14.*choose one of"),
    "a start": (lambda text: fc.initial.Start(text), "math:pi", r"start 'math:pi' is 3\.14.*choose one of"),
    "a metric": (
        lambda text: checked_names(systems.model_of((2, 2), 3), SAMPLES, text),
        "mine:aligned",
        r"is no metric",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_objects_of_another_kind_are_refused(mine, name):
    call, text, message = OTHERS[name]
    with pytest.raises(fc.UsageError, match=message):
        call(text)

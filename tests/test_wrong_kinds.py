"""No argument of a public function, whatever its value, raises anything but a `UsageError` of one line with a cure.

The calls are in `wrong_kinds.py` and the values in `wrong_values.py`; a new function needs a call there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wrong_kinds

import flowcollapse as fc

QUICK = {"JAX_TRACEBACK_FILTERING": "off"}

FUNCTIONS = wrong_kinds.called()


def test_every_public_function_is_called():
    assert set(FUNCTIONS) == set(wrong_kinds.CALLS)


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, list]:
    """The failures of each function, from a separate process: see `wrong_kinds`."""
    program, folder = Path(wrong_kinds.__file__), tmp_path_factory.mktemp("wrong")
    run = subprocess.run(
        [sys.executable, str(program), "failures"], cwd=folder, env=os.environ | QUICK, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [json.loads(line) for line in (folder / "failures").read_text().splitlines()]
    return {line["function"]: line["failures"] for line in lines}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_value_is_refused_in_one_line_or_gives_a_result(failures, name):
    assert failures[name] == []


def test_a_function_that_fails_is_found_out():
    """A test of the trial: raw errors are failures; results, and refusals of wrong values, are not."""

    def half(number):
        if isinstance(number, str):
            raise fc.UsageError(f"number must be a number, got {number!r}: use 1.")
        return number / 2

    def refuse(number):
        raise fc.UsageError(f"number must be another, got {number!r}.")

    assert wrong_kinds.attempt(half, {"number": "1"}) is None
    assert wrong_kinds.attempt(refuse, {"number": 1}) == "a refusal: number must be another, got 1."

    found = list(wrong_kinds.failures_of(half, {"number": 1}, examples=0))
    shortest = {error.partition(":")[0]: shown for _, shown, error in found}
    assert "TypeError" in shortest
    assert shortest.keys() <= {"TypeError", "UFuncTypeError"}
    assert shortest["TypeError"] == "()"  # the first of the shortest values
    name, _, error = next(wrong_kinds.failures_of(half, {"number": "1"}, examples=0))
    assert (name, error) == ("a call that works", "a refusal: number must be a number, got '1': use 1.")

"""Every notebook runs to its last assertion, and the two files of each pair have the same content."""

import runpy
from pathlib import Path

import jax
import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


@pytest.mark.filterwarnings("default", "ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.usefixtures("room", "thirty_two_bits")
@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_what_it_asserts(script: Path):
    """Notebooks begin in float32, as in a new process. They run in this one, which has imported everything."""
    jax.devices()  # settles their number, before a notebook asks for every core
    runpy.run_path(str(script), run_name="__main__")
    assert "\nassert " in script.read_text(), "a notebook ends in an assertion on a law"
    plt.close("all")


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_notebook_is_the_script(script: Path):
    executed = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    written = jupytext.read(script)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in written.cells]
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "execute it: jupyter-execute --inplace"
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)

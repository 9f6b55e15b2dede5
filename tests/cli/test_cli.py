"""The command line: every option is used, bad input ends in one line and exit code 2, and help does not import jax."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import systems
import xarray as xr
from formulas import of_point

import flowcollapse as fc
from flowcollapse import cli
from flowcollapse.methods.solvers.registry import SOLVERS


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_help_imports_no_jax_and_the_package_no_matplotlib():
    done = python(
        "import sys\n"
        "from flowcollapse.cli import main\n"
        "for words in (['--help'], ['reproduce', '--help'], ['simulate', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'numpy', 'xarray', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
        "import flowcollapse as fc\n"
        "fc.simulate, fc.UFM, fc.metrics\n"
        "assert 'jax' in sys.modules\n"
        "assert not {'xarray', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    assert done.returncode == 0, done.stderr
    for words in ("reproduce", "simulate", "info", "--learning-rate", "--weight-decay", *SOLVERS):
        assert words in done.stdout


def test_public_names_load_when_asked_for():
    assert {"UFM", "State", "Flow", "Descent", "simulate", "metrics", "initial", "plot"} <= set(dir(fc))
    for name in fc.__all__:
        assert getattr(fc, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        fc.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_command_itself_ends_in_one_line(tmp_path):
    code = "import sys; from flowcollapse.cli import main; sys.exit(main(['simulate', '--solver', 'euler']))"
    done = python(code)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("flowcollapse: solver 'euler' is not known: choose one of ")
    assert len(done.stderr.splitlines()) == 1


BAD = {
    "reproduce --eps 0.1 0": "eps must be positive",
    "reproduce --eps -0.1": "eps must be positive",
    "reproduce --eps nan": "eps must be finite",
    "reproduce --eps": "eps is empty",
    "reproduce --eps 0.1 0.1": "twice",
    "reproduce --seeds 0": "seeds must be at least 1, and",
    "reproduce --seeds 3 --seed-shown 3": "seeds are 0 to 2",
    "reproduce --rtol 0": "rtol must be a positive number",
    "reproduce --t1 -1": "t1 must be a positive number",
    "reproduce --learning-rate inf": "learning_rate must be a positive number",
    "reproduce --learning-rate 1e-9 --t1 1": "raise it",
    "reproduce --solver euler": "solver 'euler' is not known: choose one of 'dopri5'",
    "reproduce --out FILE/below": "cannot write",
    "reproduce --out TAKEN": "it is a folder",
    "simulate --eps 0": "eps must be a positive number",
    "simulate --solver euler": "solver 'euler' is not known: choose one of 'dopri5'",
    "simulate --num-classes 1": "num_classes must be an integer of at least 2",
    "simulate --samples-per-class 1 2": "one count a class",
    "simulate --weight-decay 1 2": "one number or three",
    "simulate --weight-decay -1": "not be negative",
    "simulate --loss hinge": "loss 'hinge' is not known",
    "simulate --start origin": "start 'origin' is not known",
    "simulate --start nowhere_at_all:origin": "cannot be imported",
    "simulate --coordinates polar": "coordinates 'polar' is not known",
    "simulate --start balanced --reduced True": "leave it out",
    "simulate --seed -1": "seed must be",
    "simulate --ts 2 1": "increase",
    "simulate --ts -1 1": "before 0",
    "simulate --num-saves 0": "num_saves must be",
    "simulate --metrics snc4": "metric 'snc4' is not known",
    "simulate --method descent --optimizer newton": "optimizer 'newton' is not one of optax's",
    "simulate --method descent --num-steps 0": "num_steps must be a positive integer",
    "simulate --method descent --optimizer adam --momentum 0.9": "momentum",
    "simulate --out FILE/run.nc": "cannot write",
    "simulate --out TAKEN.nc": "it is a folder",
    "simulate --out TAKEN.zarr": "exists already",
    "simulate --out run.xlsx": "does not end in .nc, .zarr, .csv, .parquet",
    "simulate --out run": "does not end in",
    "simulate --out run.csv --save-states": "drop --save-states",
    "sweep --out run.csv --keep-final": "drop --keep-final",
    "sweep --out a.zarr --store ./a.zarr": "store and out are both",
    "simulate --out s3://bucket/run.nc": "s3",
    "sweep --store=s3://bucket/a.zarr": "s3",
    "simulate --out ~nobody-of-this-name/run.nc": "~nobody-of-this-name",
    "simulate --t1 1 --t1 2": "--t1 is given twice, as 1 and as 2",
    "simulate --max_steps=10 --max-steps 20": "--max-steps is given twice, as 10 and as 20",
    "simulate --use-bias --no-use-bias": "--use-bias is given twice",
    "simulate --start sphere --start balanced": "--start is given twice",
    "simulate --samples-per-class 3 --samples-per-class 4": "--samples-per-class is given twice, as 3 and as 4",
    "simulate --weight-decay 0.1,0,0 --weight-decay 0.1": "--weight-decay is given twice",
    "simulate --method descent --hyperparameters b1 0.9 --hyperparameters b1=0.8": "gives b1 twice",
    "simulate --method descent --hyperparameters b1": "takes pairs",
    "simulate --method descent --hyperparameters learning_rate 0.1": "use --learning-rate alone",
    "sweep --seeds 3 --seeds 4": "--seeds is given twice, as 3 and as 4",
    "sweep --seeds 3:3": "not a range of seeds",
    "sweep --seeds 0:4:0": "not a range of seeds",
    "sweep --seeds 0:99999999999999": "seeds '0:99999999999999' is more than",
    "sweep --seeds 99999999999999": "seeds '99999999999999' is more than",
    "sweep --axis eps=0.1": "give its values with the flag --eps",
    "compare --axis metrics=1": "give its values with the flag --metrics",
    "simulate --weight-decay": "--weight-decay has no value",
    "simulate --num-features 100000000000000000000000": "the largest whole number is 2^63 - 1",
    "simulate --num-classes 1000000000000000000": "below 2^31",
    "simulate --learning-rate 0.1": "--learning-rate is for a descent, and the method is flow",
    "sweep --method descent --rtol 1e-6": "--rtol is for a flow, and the method is descent",
    "sweep --num-processes 2": "num_processes is for --distributed",
    "sweep --seeds many": "is not a count, a range or a list: write 256, 0:256",
    "sweep --seeds 1,1": "seeds holds 1 twice",
    "sweep --devices 0": "devices must be a positive integer",
    "sweep --optimizer SDG --method descent": "did you mean 'sgd'?",
    "compare --optimizer sdg:learning_rate=0.1": "did you mean 'sgd'?",
    "compare --devices 0": "devices must be a positive integer",
    "plot nowhere.nc": "nowhere.nc does not exist",
    "plot s3://bucket/a.zarr": "s3",
    "plot FILE": "is not a netCDF file",
    "simulate --config nowhere.toml": "cannot read nowhere.toml",
    "simulate --config FILE": "is not TOML",
    "simulate --config FILE --config OTHER": "--config is given twice",
    "verify --only spectrun": "did you mean 'spectrum'?",
    "simulate --plot run.doc": "does not end in .png",
    "": "no command is given: choose one of reproduce, simulate",
    "--quiet": "no command is given",
    "fly": "'fly' is not a command: choose one of",
    "simulat --eps 1": "'simulat' is not a command: choose one of reproduce",
    "reproduce --epsilon 1": "--epsilon is not a flag of reproduce",
    "simulate --learnin_rate 1": "--learnin_rate is not a flag of simulate; did you mean 'learning-rate'?",
    "simulate -o run.nc": "-o is not a flag of simulate: run flowcollapse simulate --help",
    "simulate run.toml": "simulate has no use for 'run.toml': write a flag before a value",
    "simulate --eps 1 2": "simulate has no use for '2'",
    "simulate --eps many": "--eps is 'many', which is not a number: give a number",
    "simulate --seed 1.5": "--seed is '1.5', which is not a whole number",
    "simulate --hyperparameters b1 high": "--hyperparameters is 'b1=high', which is not a number",
    "sweep --ts 0 1,x": "--ts is 'x', which is not a number",
    "simulate --method grad": "--method is 'grad', which is none of its values: choose one of flow, descent",
    "simulate --precision float46": "did you mean 'float64'?",
    "simulate --t1": "--t1 has no value: give it one",
    "sweep --axis": "--axis has no value",
    "completion powershell": "shell is 'powershell', which is none of its values: choose one of bash",
    "plot": "the file to draw is missing",
    "plot a.nc b.nc": "plot has no use for 'b.nc'",
    "reproduce --out runs.nc": "is a folder for several files here: give it a name without .nc",
    "show margin --out margin.PNG": "is a folder for several files here",
    "verify --json laws.txt": "does not end in .json",
    "measure a.npz --json b.txt": "does not end in .json",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_ends_in_one_line_before_any_work(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("a file, so nothing can be below it")
    for name in ("TAKEN/reproduce.nc", "TAKEN.nc", "TAKEN.zarr"):
        (tmp_path / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    # No run may begin.
    monkeypatch.setattr(sys.modules["flowcollapse.simulation"], "_simulate", lambda *_: pytest.fail("the run began"))
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flowcollapse: ")
    assert BAD[line] in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_simulate_writes_a_run_and_its_picture(tmp_path, capsys, paper_model):
    words = "--eps 0.2 --seed 4 --num-saves 5 --metrics snc1 snc3 risk --save-states --rtol 1e-9"
    files = ["--out", str(tmp_path / "new" / "run.nc"), "--plot", str(tmp_path / "run.png")]
    assert cli.main(["simulate", *words.split(), *files]) == 0
    out = capsys.readouterr().out
    assert "Trajectory" in out
    assert "plateau reached" in out
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["new", "run.nc", "run.png"]
    with xr.open_dataset(tmp_path / "new" / "run.nc") as run:
        run.load()
    assert run.sizes["time"] == 5
    assert run["time"][-1] == run["t_end"]
    np.testing.assert_allclose(np.diff(run["time"]), run["t_end"] / 4, rtol=1e-12)
    options = json.loads(run.attrs["options"])
    assert (options["start"]["seed"], options["start"]["eps"], options["method"]["rtol"]) == (4, 0.2, 1e-9)
    start = systems.arrays(fc.initial.sphere(paper_model, 0.2, key=jax.random.key(4)))
    for i in range(5):
        point = systems.Arrays(*(run[name].values[i] for name in ("H", "W", "b")))
        expected = of_point(point, paper_model.counts, start)
        for name in ("snc1", "snc3", "risk"):
            np.testing.assert_allclose(run[name][i], expected[name], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(run["H"][0], start.H, rtol=1e-12, atol=1e-16)
    at_end = systems.flow(start, paper_model.counts, run["time"].values)
    np.testing.assert_allclose(run["W"][-1], at_end.W[-1], atol=1e-7)  # a hundred times rtol


def test_simulate_hands_every_option_to_descent(tmp_path, capsys):
    words = (
        "--method descent --optimizer sgd --learning-rate 0.03 --hyperparameters momentum 0.5 --num-steps 40 "
        "--num-saves 3 --num-classes 4 --samples-per-class 1 3 2 2 --num-features 5 --weight-decay 0.1 0.2 0.3 "
        "--no-use-bias --start balanced --eps 0.7 --seed 2 --coordinates sample --save-states"
    )
    assert cli.main(["simulate", *words.split(), "--out", str(tmp_path / "run.nc")]) == 0
    assert "descent (sgd, 40 steps)" in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "run.nc") as run:
        run.load()
    counts, decay, momentum = (1, 3, 2, 2), (0.1, 0.2, 0.3), 0.5
    model = fc.UFM(num_classes=4, samples_per_class=counts, num_features=5, use_bias=False)
    point = systems.arrays(fc.initial.balanced(model, 0.7, key=jax.random.key(2)))
    trace, kept = [np.zeros_like(part) for part in point], [point]
    for _ in range(40):  # the heavy ball
        velocity = systems.velocity(point, counts, decay, use_bias=False)
        trace = [momentum * m + v for m, v in zip(trace, velocity, strict=True)]
        point = systems.Arrays(*(x + 0.03 * m for x, m in zip(point, trace, strict=True)))
        kept.append(point)
    for i, step in enumerate((0, 20, 40)):
        for name in ("H", "W", "b"):
            np.testing.assert_allclose(run[name][i], getattr(kept[step], name), rtol=1e-11, atol=1e-13)
    assert json.loads(run.attrs["method"])["hyperparameters"] == {"learning_rate": 0.03, "momentum": 0.5}


def test_info_names_versions_and_devices(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert jax.__version__ in out
    assert fc.__version__ in out
    assert jax.devices()[0].platform in out

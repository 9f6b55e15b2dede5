"""The command as a process: Ctrl-C at any moment, closed pipes, missing streams, and a full disk."""

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import xarray as xr

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has switched off for its background jobs
sys.argv[1:] = {words!r}
{before}
from flowcollapse.cli.process import run
run()
"""

COMPILING = r"Finished jaxpr to MLIR module conversion jit\(_run\)"
"""The line that JAX logs just before XLA compiles."""

DESCENT = "--method descent --num-steps 20 --metrics risk --num-saves 2 --num-features 3"


def begin(words: str, before: str = "", **more) -> subprocess.Popen:
    """Start the command in a separate process. Where JAX says what it compiles, nothing is known from earlier."""
    environment = dict(os.environ)
    if "stderr" not in more:
        del environment["JAX_COMPILATION_CACHE_DIR"]
        environment |= {"JAX_LOG_COMPILES": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    program = PROGRAM.format(words=words.split(), before=before)
    return subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **streams)


def until(process: subprocess.Popen, pattern: str) -> str:
    """Read standard error until a line matches."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if re.search(pattern, line):
            return read
    raise AssertionError(f"{pattern} was never said:\n{read}")


def end(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    """The exit code, standard output, and the lines of standard error except those that JAX logs."""
    out, err = process.communicate(timeout=300)
    logged = r"^(WARNING|Finished|Compiling|Using|Persistent|Not writing|PERSISTENT|\s)"
    return process.returncode, out, [line for line in err.splitlines() if line and not re.match(logged, line)]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_xla_compiles(times):
    process = begin("simulate")
    until(process, COMPILING)
    for _ in range(times):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", ["Interrupted."])


def test_a_second_ctrl_c_ends_what_does_not_answer():
    """During a long call in C, in which Python's handlers do not run."""
    before = (
        "import hashlib, flowcollapse.cli as cli\n"
        "def main():\n"
        "    print('working', file=sys.stderr, flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)\n"  # more than a minute
        "cli.main = main"
    )
    process = begin("", before)
    until(process, "working")
    began = time.monotonic()
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", ["Interrupted."])
    assert time.monotonic() - began < 20  # it takes one second on an idle machine


def test_ctrl_c_while_modules_are_imported():
    before = "class Slow:\n    def find_spec(self, name, path=None, target=None):\n"
    before += "        if name == 'jax':\n            print('importing', file=sys.stderr, flush=True)\n"
    before += "            import time; time.sleep(60)\nsys.meta_path.insert(0, Slow())"
    process = begin("simulate", before)
    until(process, "importing")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", ["Interrupted."])


def test_ctrl_c_that_python_drops():
    """In a destructor, where Python only prints exceptions."""
    before = (
        "import time, flowcollapse.cli as cli\n"
        "class Slow:\n    def __del__(self):\n"
        "        print('working', file=sys.stderr, flush=True); time.sleep(60)\n"
        "def main():\n    Slow()\n    return 0\n"
        "cli.main = main"
    )
    process = begin("", before)
    until(process, "working")
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "", ["Interrupted."])


def test_an_interrupted_sweep_writes_what_was_finished(tmp_path):
    out = tmp_path / "a.nc"
    words = f"sweep --eps 0.1 --seeds 4 --lanes-per-task 1 --devices 1 {DESCENT} --out {out}"
    before = (
        "import signal\nimport flowcollapse.sweeps.local as local\n"
        "first = local.Local.results\n"
        "def results(self, todo):\n"
        "    for i, result in enumerate(first(self, todo)):\n"
        "        if i == 1:\n            signal.raise_signal(signal.SIGINT)\n"
        "        yield result\n"
        "local.Local.results = results"
    )
    code, _, told = end(begin(words, before))
    assert code == 130
    assert told[-1] == f"Interrupted: {out} holds the finished lanes. With --store DIR, a sweep resumes."
    with xr.open_dataset(out) as found:
        done = int((found["verdict"] >= 0).sum())
        assert 2 <= done < 4  # including the task that was running
        assert int(found["risk"].isel(time=-1).notnull().sum()) == done


@pytest.fixture
def closed_pipe():
    """The write end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("info", 0),
        ("--version", 0),
        ("--help", 0),
        ("verify --only origin-modes spectrum", 0),
        ("simulate " + DESCENT, 0),
        ("simulate --eps 0", 2),
    ],
)
def test_a_closed_pipe_changes_no_exit_code(words, code, closed_pipe):
    process = begin(words, stdout=closed_pipe, stderr=subprocess.PIPE)
    found, _, told = end(process)
    assert found == code
    assert len(told) == (code == 2), told


def test_files_are_written_though_nobody_reads(closed_pipe, tmp_path):
    words = f"simulate {DESCENT} --out {tmp_path / 'a.nc'} --plot {tmp_path / 'a.png'}"
    assert end(begin(words, stdout=closed_pipe, stderr=subprocess.PIPE)) == (0, None, [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nc", "a.png"]


def test_errors_that_nobody_reads(closed_pipe):
    process = begin("simulate --eps 0", stderr=closed_pipe)
    assert process.communicate(timeout=300)[0] == ""
    assert process.returncode == 2


def test_streams_that_are_not_there(tmp_path):
    out = tmp_path / "a.nc"
    words = ["simulate", *DESCENT.split(), "--out", str(out)]
    command = [sys.executable, "-m", "flowcollapse", *words]
    program = f"import os; os.closerange(0, 3); os.execv({sys.executable!r}, {command!r})"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0
    with xr.open_dataset(out) as found:
        assert found.sizes["time"] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        code, _, told = end(begin("info", stdout=full, stderr=subprocess.PIPE))
    assert code == 74
    assert told == ["flowcollapse: cannot write to standard output: No space left on device."]


def test_a_fault_is_no_law_that_fails():
    before = "import flowcollapse.cli as cli\ndef main():\n    1 / 0\ncli.main = main"
    code, _, told = end(begin("verify", before))
    assert code == 70
    assert told[-1] == "ZeroDivisionError: division by zero"

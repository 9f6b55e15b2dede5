"""Settings of a program: where compiled programs are kept, and how many devices a sweep has.

A process settles both once, so each test starts new processes, which run very small programs.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowcollapse as fc
from flowcollapse import settings

CHOICES = ("JAX_", "XLA_FLAGS", "XDG_CACHE_HOME", "NPROC", "TF_CPP")
"""Prefixes of the environment variables that affect these tests."""


def python(program: str, *words: str, **environment: str) -> list[str]:
    """The lines that a program prints, with only the given choices in its environment. It must print no errors."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(CHOICES)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300, env=clean | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + [f"error: {line}" for line in done.stderr.splitlines()]


def entries(folder: Path) -> list[Path]:
    """The compiled programs in a folder."""
    return sorted(folder.rglob("*-cache"))


COMPILE = """
import sys, jax, jax.numpy as jnp, jax.monitoring
import flowcollapse as fc
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
kept_in = fc.enable_compilation_cache(*sys.argv[1:])
step = jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x) @ x)[1].sum() + x[::-1].sum())
print(float(jax.block_until_ready(step(jnp.arange(9.0).reshape(3, 3)))))
print(len(hits), kept_in)
"""
"""A program with matrix products and LAPACK routines that prints how many of its parts were loaded."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[Path, str]:
    """A folder with compiled programs, and their result."""
    folder = tmp_path_factory.mktemp("kept")
    value, told = python(COMPILE, str(folder))
    assert told.split()[0] == "0"
    assert Path(told.split()[1]).is_relative_to(folder)
    return folder, value


def test_a_second_process_compiles_nothing(compiled):
    folder, value = compiled
    before = [(file, file.stat().st_size) for file in entries(folder)]
    assert len(before) >= len(DAMAGE)
    found, told = python(COMPILE, str(folder))  # nothing on standard error
    assert found == value
    assert int(told.split()[0]) == len(before)
    assert [(file, file.stat().st_size) for file in entries(folder)] == before


DAMAGE = (lambda data: data[: len(data) // 2], lambda data: bytes(reversed(data)), lambda _: b"")


def test_damaged_entries_are_compiled_anew_and_mended(compiled):
    folder, value = compiled
    for file, damage in zip(entries(folder), itertools.cycle(DAMAGE)):
        file.write_bytes(damage(file.read_bytes()))
    found, told = python(COMPILE, str(folder))
    assert (found, told.split()[0]) == (value, "0")
    test_a_second_process_compiles_nothing(compiled)


def test_another_processor_or_number_of_threads_has_other_entries(compiled):
    folder, value = compiled
    known = len(entries(folder))
    for number, environment in enumerate(({"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}, {"NPROC": "1"}), 2):
        if os.uname().machine not in ("x86_64", "amd64") and "XLA_FLAGS" in environment:
            environment = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
        found, told = python(COMPILE, str(folder), **environment)
        assert float(found) == pytest.approx(float(value), rel=1e-4)  # of float32
        assert told.split()[0] == "0"
        assert len(entries(folder)) == number * known


def test_the_least_used_entries_go_first(compiled, tmp_path, monkeypatch):
    from flowcollapse import compilation_cache

    folder = tmp_path / "4-threads"
    folder.mkdir()
    for age, name in enumerate("abcd"):
        (folder / f"{name}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{name}-cache", (1e9 - age, 1e9 - age))
    (tmp_path / "mine-cache").write_bytes(bytes(100))  # not in a subfolder of the cache
    monkeypatch.setattr(compilation_cache, "LARGEST", 250)
    compilation_cache._make_room(tmp_path)
    assert [file.name for file in entries(tmp_path)] == ["a-cache", "b-cache", "mine-cache"]


def test_a_folder_that_cannot_be_is_one_line_and_no_fault(compiled, tmp_path):
    (tmp_path / "file").write_text("nothing can be below it")
    value, told, *errors = python(COMPILE, str(tmp_path / "file" / "below"))
    assert (value, told) == (compiled[1], "0 None")
    warnings = [line for line in errors if "Warning" in line]
    assert len(warnings) == 1
    assert "CacheWarning: compiled programs cannot be kept in" in warnings[0]
    assert warnings[0].startswith("error: <string>:6:")  # the line that asked for it


def test_a_disk_that_is_full_is_one_line_and_no_fault(compiled, tmp_path):
    full = COMPILE.replace(
        "step =",
        "import pathlib, errno\n"
        "def write(self, data): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "pathlib.Path.write_bytes = write\nstep =",
    )
    value, told, *errors = python(full, str(tmp_path))
    assert (value, told.split()[0]) == (compiled[1], "0")
    assert sum("Warning" in line for line in errors) == 1
    assert "(No space left on device)" in errors[0]
    assert entries(tmp_path) == []


@pytest.mark.parametrize("folder", ["", "s3://bucket/kept", "~nobody-of-this-name/kept"])
def test_a_folder_that_is_no_path_of_this_machine_is_refused(folder):
    with pytest.raises(fc.UsageError, match="folder ") as told:
        fc.enable_compilation_cache(folder)
    assert len(str(told.value).splitlines()) == 1


COMMANDS = """
import os, sys, jax, jax.numpy as jnp
import flowcollapse as fc
from flowcollapse import cli
fc.initial.sphere = lambda *_, **__: None
fc.simulate = lambda *_, **__: str(jax.jit(lambda x: jnp.sin(x) + 1)(2.0))  # a run, as short as can be
for words in sys.argv[1:]:
    if words == "SWITCH":
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    else:
        jax.clear_caches()
        assert cli.main(["simulate", *words.split()]) == 0
"""


def test_the_command_line_keeps_programs_where_it_may(tmp_path):
    jax_folder, mine = tmp_path / "jax", tmp_path / "caches"
    given = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(mine)}
    value = python(COMMANDS, "--no-cache", "SWITCH", "--quiet", "--cache", **given)
    assert len(value) == 2
    assert list(tmp_path.iterdir()) == []
    assert python(COMMANDS, "", **given) == value[:1]
    assert [folder.name for folder in mine.iterdir()] == ["flowcollapse"]
    own = entries(mine)
    assert own
    assert python(COMMANDS, "", "--no-cache", JAX_COMPILATION_CACHE_DIR=str(jax_folder), **given) == value
    assert len(entries(jax_folder)) == len(own)
    assert entries(mine) == own
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("linux", {}, "/home/me/.cache/flowcollapse"),
        ("linux", {"XDG_CACHE_HOME": "/scratch"}, "/scratch/flowcollapse"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/flowcollapse"),
        ("darwin", {"XDG_CACHE_HOME": "/scratch"}, "/home/me/Library/Caches/flowcollapse"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/flowcollapse"),
    ],
)
def test_the_folder_is_the_system_s(system, environment, expected, monkeypatch):
    from flowcollapse.compilation_cache import default_folder

    for name, value in ({"HOME": "/home/me", "XDG_CACHE_HOME": ""} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    assert default_folder() == Path(expected)


LANES = """
import os, sys, jax
import flowcollapse as fc
import flowcollapse.settings
flowcollapse.settings.cpu_cores = lambda: 2  # whatever machine this is
fc.enable_x64()
jax.config.update("jax_disable_most_optimizations", True)  # compiles faster; a flag would be inherited
model = fc.UFM(num_classes=3, samples_per_class=(3, 4, 5), num_features=3, weight_decay=(0.1, 0.2, 0.3))
descent = fc.Descent("sgd", 3, learning_rate=0.05)
kept = dict(eps=[0.1], ts=2, metrics=["risk"], progress=False)
"""

SPLIT = """
import flowcollapse.simulation, flowcollapse.comparison.compare, flowcollapse.reproduce, flowcollapse.sweeps.sweep
import warnings
# Python 3.12 warns that a thread of NumPy's library does not go on in the child. No program here needs it.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
def begin(*_, **__): raise StopIteration
flowcollapse.simulation._simulate = flowcollapse.comparison.compare._grid = begin
flowcollapse.reproduce.plateau_times = flowcollapse.sweeps.sweep.default_lanes = begin
for program in sys.argv[1:]:
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    try:
        exec(program)
    except StopIteration:
        print(len(jax.local_devices()), flush=True)
        os._exit(0)
"""
"""Programs, each run in a separate process until its lanes begin, and the number of devices at that point."""

SWEEP = "fc.sweep(model, descent, seeds=40, **kept)"

DEVICES = {
    SWEEP: 2,
    "fc.compare(model, 'sphere', ['sgd:learning_rate=0.05'], [0.1], eps=[0.1], seeds=2)": 2,
    "flowcollapse.reproduce.run([0.1], 2)": 2,
    "fc.sweep(model, fc.Flow(), seeds=2, devices=2, **kept)": 2,
    "fc.sweep(model, fc.HeavyBallFlow(0.1, 0.5), seeds=2, devices=1, **kept)": 1,
    "import optax; fc.sweep(model, fc.Descent(optax.adam(optax.cosine_decay_schedule(0.1, 9)), 9), **kept)": 2,
    "fc.use_cpu_cores(3); " + SWEEP: 3,
    "fc.use_cpu_cores(1); " + SWEEP: 1,
    "jax.config.update('jax_num_cpu_devices', 1); " + SWEEP: 1,
    "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=3'; " + SWEEP: 3,
    "jax.config.update('jax_platforms', 'cpu'); " + SWEEP: 2,
    "import importlib.util; importlib.util.find_spec = lambda name: name == 'jax_plugins'; " + SWEEP: 1,
    "fc.simulate(model, fc.initial.sphere(model, 0.1, key=jax.random.key(0)), descent, 2)": 1,
    "fc.initial.sphere(model, 0.1, key=jax.random.key(0)); " + SWEEP: 1,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that go on where another was")
def test_lanes_take_every_core_unless_something_else_was_chosen():
    found = python(LANES + SPLIT, *DEVICES)
    assert dict(zip(DEVICES, map(int, found), strict=True)) == DEVICES
    assert python(LANES + SPLIT, SWEEP, JAX_NUM_CPU_DEVICES="1") == ["1"]


def test_cores_that_stay_idle_are_told_once():
    runs = "jax.random.key(0)\nfc.sweep(model, descent, seeds=40, devices=1, **kept)\n" + 2 * f"{SWEEP}\n"
    told = python(LANES + runs)
    assert sum("Warning" in line for line in told) == 1
    assert told[0].startswith("error: <string>:13: DevicesWarning: JAX was in use before this call, with 1 CPU device")
    assert told[0].endswith("lanes run on 1 of 2 cores: call fc.use_cpu_cores() at the top of the program.")


def test_work_on_other_devices_tells_of_no_cores(monkeypatch):
    monkeypatch.setattr(settings, "cpu_cores", lambda: 64)
    monkeypatch.setattr(settings, "_cores_chosen", lambda: False)
    gpu = type("Device", (), {"platform": "gpu"})()
    cpu = type("Device", (), {"platform": "cpu"})()
    settings.tell_idle_cores([gpu], 100)
    settings.tell_idle_cores([cpu], 1)  # one block has nothing to share
    monkeypatch.setattr(settings, "cpu_cores", lambda: 1)
    settings.tell_idle_cores([cpu], 100)

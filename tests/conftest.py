"""Settings of the whole suite: float64, and run-time checks of all shapes in the package's signatures."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# Most of the suite's time is the compiler's, and no law asks for speed. What is compiled is kept for the other worker,
# the other files and the next run. Programs that tests start inherit both. None is worth splitting.
# jax 0.10 also emits its fusions as it used to, in a third of the time; newer ones know no other way.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    + ["--xla_cpu_use_fusion_emitters=false"] * version("jax").startswith("0.10.")
    + [os.environ.get("XLA_FLAGS", "")]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA logs the processor's features whenever it loads a program

import jax
import jaxtyping
import pytest

# This must come before the package is imported, because loaded modules would stay unchecked.
jaxtyping.install_import_hook("flowcollapse", "beartype.beartype")

import systems  # noqa: E402

import flowcollapse as fc  # noqa: E402
from flowcollapse.sweeps.lane import _traced  # noqa: E402

fc.enable_x64()
fc.enable_compilation_cache()  # the folder above; an entry that the other worker is still writing costs a compilation
fc.use_cpu_cores(2)  # sweeps are tested on one device and on two


# Tracing makes many objects that live long, and Python would search them for garbage again and again.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 20, 100)

LARGEST = 1400 * 2**20
"""The resident memory in bytes at which a worker drops its programs; all of the suite together take several times
that."""


def resident() -> int:
    """The resident memory of this process in bytes, on Linux."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else 0


def forget_programs() -> None:
    """Free all compiled programs, and the memory that the C library keeps for the compiler's threads."""
    jax.clear_caches()
    _traced.cache_clear()
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Free programs when memory grows. Until then, files share them: tracing takes a third of the suite's time."""
    yield
    if resident() > LARGEST:
        forget_programs()


@pytest.fixture(autouse=True, scope="module")
def clean_slate(request):
    """Test files share no figures, and programs only if they change nothing in the package."""
    tests = (item for item in request.session.items if item.path == request.path)
    changes = any("monkeypatch" in getattr(item, "fixturenames", ()) for item in tests)
    if changes:
        forget_programs()
    yield
    if changes:
        forget_programs()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def thirty_two_bits():
    """JAX without float64, for one test."""
    fc.enable_x64(False)
    yield
    fc.enable_x64(True)


@pytest.fixture(scope="session")
def paper_model() -> fc.UFM:
    """The sizes of the paper's figures."""
    return fc.UFM(num_classes=3, samples_per_class=3, num_features=15)


@pytest.fixture(scope="session")
def run_lanes(paper_model) -> Callable[[fc.State, float], fc.Trajectory]:
    """The flow to the plateau from a batch of starts, as a function of the starts and rtol, with one program per file.

    A batch has four lanes; another number would need another program.
    """

    def run(start: fc.State, rtol: float) -> fc.Trajectory:
        return fc.simulate(paper_model, start, fc.Flow(rtol=rtol), metrics=("risk", "snc1"))

    return systems.compiled(jax.vmap(run, (0, None)))


@pytest.fixture(scope="session")
def key():
    """The one key that all random starts are derived from."""
    return jax.random.key(20_11_11619)

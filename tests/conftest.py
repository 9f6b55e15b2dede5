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
# Programs say nothing of the lines of Python that they came from: that is a tenth of the time of tracing and compiling.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its other threads wait busily, for matrices of a few rows
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Free programs when memory grows, and figures after each file.

    Until then, files share programs: tracing takes a third of the suite's time. A fixture of this folder would not
    reach the doctests of the package.
    """
    done = yield
    if resident() > LARGEST:
        forget_programs()
    if (nextitem is None or nextitem.path != item.path) and "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    return done


@pytest.fixture(scope="module")
def programs_apart():
    """For files whose tests change the package where it is traced: they neither find programs nor leave any."""
    forget_programs()
    yield
    forget_programs()


@pytest.fixture
def room():
    """For tests that take more than half a gigabyte: the worker's programs are freed before."""
    forget_programs()


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

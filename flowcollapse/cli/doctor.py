"""The command that checks an installation."""

import dataclasses
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator

from .console import Console
from .options import Computing

LANES = 2**14 + 1
"""The number of lanes of the canary: XLA of jax 0.10.2 returns wrong numbers from lane 16,384 on."""


@dataclasses.dataclass(frozen=True)
class Doctor(Computing):
    """Check versions, devices, precision, the compiler, the cache and optional packages, and print what a bug report
    needs. The exit code is 1 if a check fails.

    Example:
        flowcollapse doctor
    """

    def run(self, console: Console) -> int:
        self.prepare()
        failed = False
        for name, check in CHECKS.items():
            for fine, text in check():
                failed |= not fine
                console.say(f"{'ok  ' if fine else 'FAIL'}  {name:<10}  {text}")
        return int(failed)


def _versions() -> Iterator[tuple[bool, str]]:
    from ..results.provenance import git_revision, versions

    found = versions()
    yield True, ", ".join(f"{name} {version}" for name, version in found.items())
    yield True, f"{platform.platform()}, {platform.machine()}, revision {git_revision()}"
    wrong = [one for one in ("0.10.2", "0.11.0") if found["jax"] == one]
    if wrong:
        yield False, f"jax {wrong[0]} compiles some sums wrongly: pip install -U jax"


def _devices() -> Iterator[tuple[bool, str]]:
    import jax

    from ..settings import cpu_cores

    yield True, ", ".join(f"{one.platform}:{one.id} {one.device_kind}" for one in jax.devices())
    yield True, f"{cpu_cores()} CPU cores for this process; {_set('XLA_FLAGS', 'JAX_PLATFORMS', 'OMP_NUM_THREADS')}"
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        yield False, "this machine has an NVIDIA GPU that JAX does not use: pip install 'flowcollapse[cuda13]'"


def _set(*names: str) -> str:
    found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return "set: " + ", ".join(found) if found else "no settings in the environment"


def _precision() -> Iterator[tuple[bool, str]]:
    import jax.numpy as jnp

    gap = float(jnp.asarray(1.0) + 2.0**-40 - 1)
    yield gap == 2.0**-40, f"float64: 1 + 2^-40 - 1 is {gap:.3g}"


def _canary() -> Iterator[tuple[bool, str]]:
    """A product with a vector followed by a sum, in many lanes, against the same in NumPy."""
    import jax
    import numpy as np

    matrices = np.random.default_rng(0).integers(-4, 5, (LANES, 3, 3)).astype(float)
    vectors = np.arange(3.0) + np.arange(LANES)[:, None] % 7
    found = jax.jit(jax.vmap(lambda A, x: (A @ x).sum()))(matrices, vectors)
    wrong = int(np.count_nonzero(np.asarray(found) != np.einsum("nij,nj->n", matrices, vectors)))
    yield wrong == 0, f"sums of products in {LANES:,} lanes: {wrong} wrong"


def _run() -> Iterator[tuple[bool, str]]:
    """A run on S against its closed form."""
    import jax

    import flowcollapse as fc

    model = fc.UFM(num_classes=3, samples_per_class=3, num_features=15)
    start = fc.initial.on_subspace(model, eps=0.1, key=jax.random.key(0))
    path = fc.simulate(model, start, fc.Flow(rtol=1e-8, t1=1.0), [0.5, 1.0], metrics="snc1")
    exact = fc.predict(model, start, [0.5, 1.0], metrics="snc1")
    error = float(abs(path.metrics["snc1"] / exact["snc1"].values - 1).max())
    yield error < 1e-6, f"a run against its closed form: relative error {error:.1e}"


def _cache() -> Iterator[tuple[bool, str]]:
    from ..compilation_cache import enable_compilation_cache
    from ..settings import jax_setting

    folder = enable_compilation_cache() if jax_setting("jax_enable_compilation_cache") else None
    if folder is None:
        yield True, "compiled programs are not kept"
        return
    free = shutil.disk_usage(folder).free / 2**30
    yield os.access(folder, os.W_OK), f"compiled programs in {folder}, {free:.0f} GiB free"


def _extras() -> Iterator[tuple[bool, str]]:
    extras = {"files": ("pyarrow", "safetensors"), "cluster": ("distributed",), "notebooks": ("nbclient", "jupytext")}
    for extra, modules in extras.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        yield True, f"{extra}: " + (f"not installed, pip install 'flowcollapse[{extra}]'" if missing else "installed")
    yield True, f"ffmpeg: {shutil.which('ffmpeg') or 'not found'}; Python {sys.executable}"


CHECKS: dict[str, Callable[[], Iterator[tuple[bool, str]]]] = {
    "versions": _versions,
    "devices": _devices,
    "precision": _precision,
    "compiler": _canary,
    "run": _run,
    "cache": _cache,
    "extras": _extras,
}
"""The checks by name: each yields whether something is as it should be, and a text."""

"""Where a number came from: versions, device, precision and the options that made it."""

import datetime
import functools
import importlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .. import __version__
from ..settings import PRECISION_NOTE

PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "xarray")


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the packages that results depend on."""
    return {"python": platform.python_version(), "flowcollapse": __version__} | {n: _version(n) for n in PACKAGES}


@functools.cache  # reading them takes a third of the time of a small sweep
def _version(package: str) -> str:
    """The version of an installed package, or of the imported module if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


@functools.cache
def git_revision() -> str:
    """The commit of the source tree that this package runs from, with `+` if it was changed, or `"none"`."""
    folder = Path(__file__).parents[1]
    try:
        revision, changes = (
            subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", folder))
        )
    except (OSError, subprocess.SubprocessError):
        return "none"
    tracked = subprocess.run(["git", "-C", folder, "ls-files", "--error-unmatch", __file__], capture_output=True)
    return revision.strip() + "+" * bool(changes.strip()) if tracked.returncode == 0 else "none"


def precision() -> str:
    """`"float64"` if it is enabled in JAX, else `"float32"`."""
    return jnp.result_type(float).name


SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")
"""The JAX settings that change results by more than rounding: the precision, and how random keys become starts."""


def settings() -> dict[str, Any]:
    """The current values of the JAX settings that results depend on."""
    return {name: getattr(jax.config, name) for name in SETTINGS}


def provenance(model: Any, method: Any, **more: Any) -> dict[str, str]:
    """Attributes for a file: the model, method, versions, device, precision and time of a run."""
    from .description import options  # imported here because it loads equinox and optax, which `versions` does not need

    device = jax.devices()[0]
    return {
        "title": "flowcollapse run",
        "model": json.dumps(options(model)),
        "method": json.dumps({"name": method.name} | options(method)),
        "versions": json.dumps(versions()),
        "device": f"{device.platform}: {device.device_kind}",
        "precision": precision(),
        **({"precision_note": PRECISION_NOTE} if precision() == "float32" else {}),
        "git_revision": git_revision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    } | {name: value if isinstance(value, str) else json.dumps(value) for name, value in more.items()}

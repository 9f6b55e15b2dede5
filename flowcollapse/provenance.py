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

import equinox as eqx
import jax
import numpy as np

from . import __version__

PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "xarray")


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the packages that results depend on."""
    return {"python": platform.python_version(), "flowcollapse": __version__} | {n: _version(n) for n in PACKAGES}


def _version(package: str) -> str:
    """The version of a package that is installed, or else of the module that is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a clone that is only on the path
        return str(getattr(importlib.import_module(package), "__version__", "unknown"))


@functools.cache
def git_revision() -> str:
    """The commit of the source tree that this package runs from, with `+` if it was changed, or `"none"`."""
    folder = Path(__file__).parent
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
    """`"float64"` if JAX has been allowed it, else `"float32"`."""
    return "float64" if jax.config.read("jax_enable_x64") else "float32"


def provenance(model: Any, method: Any, **more: Any) -> dict[str, str]:
    """Attributes for a file: what ran, with which versions, on which device, at which precision, when."""
    device = jax.devices()[0]
    return {
        "title": "flowcollapse run",
        "model": json.dumps(options(model)),
        "method": json.dumps({"name": method.name} | options(method)),
        "versions": json.dumps(versions()),
        "device": f"{device.platform}: {device.device_kind}",
        "precision": precision(),
        "git_revision": git_revision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    } | {name: value if isinstance(value, str) else json.dumps(value) for name, value in more.items()}


def options(module: eqx.Module) -> dict[str, Any]:
    """The fields of a model or method as plain values."""
    return {name: _plain(value) for name, value in vars(module).items()}


def _plain(value: Any) -> Any:
    if eqx.is_array_like(value):
        return np.asarray(value).tolist()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list) and not callable(value):
        return [_plain(item) for item in value] if not hasattr(value, "_fields") else type(value).__name__
    return value if value is None or isinstance(value, str) else getattr(value, "__name__", type(value).__name__)

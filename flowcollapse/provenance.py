"""Where a number came from: versions, device, precision and the options that made it."""

import datetime
import importlib.metadata
import json
import platform
from typing import Any

import equinox as eqx
import jax
import numpy as np

PACKAGES = ("flowcollapse", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy", "xarray")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def provenance(model: Any, method: Any, **more: Any) -> dict[str, str]:
    """Attributes for a file: what ran, with which versions, on which device, at which precision, when."""
    device = jax.devices()[0]
    return {
        "title": "flowcollapse run",
        "model": json.dumps(options(model)),
        "method": json.dumps({"name": method.name} | options(method)),
        "versions": json.dumps(versions()),
        "device": f"{device.platform}: {device.device_kind}",
        "precision": "float64" if jax.config.read("jax_enable_x64") else "float32",
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

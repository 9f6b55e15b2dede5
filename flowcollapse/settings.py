"""Global settings that the running program chooses: the precision, and how many CPU cores count as devices.

Importing this package never changes them.
"""

import importlib.util
import os
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._checks import check_flag, check_integer
from ._errors import DevicesWarning, PrecisionWarning, UsageError


def enable_x64(enable: bool = True) -> None:
    """Turn float64 on in JAX, or off again.

    Call this before making any state. For eps <= 1e-2, float32 cannot resolve `b - 1/C`, `B - W^T` and SNC1 with any
    solver.

    Args:
        enable: True for float64, False for float32.

    Raises:
        UsageError: for anything else.

    Example:
        >>> import jax.numpy as jnp, flowcollapse as fc
        >>> fc.enable_x64()
        >>> jnp.zeros(1).dtype.name
        'float64'
    """
    check_flag("enable", enable)
    jax.config.update("jax_enable_x64", bool(enable))


PRECISION_NOTE = (
    "float32 resolves b - 1/C, B - W^T and SNC1 to about 1e-6 only, too coarse for eps <= 1e-2: "
    "call fc.enable_x64() before any state is made, for float64"
)


def tell_precision(dtype: Any, stacklevel: int = 3) -> dict[str, str]:
    """Warn about runs in float32, pointing at the caller's caller, and return the attributes for the results."""
    if jnp.dtype(dtype) != jnp.float32:
        return {"precision": jnp.dtype(dtype).name}
    warnings.warn(PRECISION_NOTE, PrecisionWarning, stacklevel=stacklevel)
    return {"precision": "float32", "precision_note": PRECISION_NOTE}


def use_cpu_cores(count: int | None = None) -> None:
    """Make each CPU core a separate JAX device, so that a sweep uses all of them.

    Call this before using JAX. `fc.sweep`, `fc.compare` and `reproduce.run` do so automatically, if JAX has not been
    used yet and the number of devices was not set by this function, `jax_num_cpu_devices`,
    `--xla_force_host_platform_device_count` or `devices=1`. On a machine with an accelerator they leave the CPU
    settings unchanged.

    Each device then runs on one thread and does not split its work any further. A single large problem is faster on one
    device with all threads, without this call.

    Args:
        count: the number of devices; default the number of cores this process may use, or the number of devices that
            JAX has already created.

    Raises:
        UsageError: if `count` is not a positive integer, or if JAX already runs with fewer CPU devices.

    Example:
        >>> import flowcollapse as fc
        >>> fc.use_cpu_cores()
    """
    wanted = cpu_cores() if count is None else check_integer("count", count)
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
        if wanted > 1:
            os.environ.setdefault(THREADS, "1")
    except RuntimeError:
        if count is not None and len(jax.local_devices(backend="cpu")) < count:
            raise UsageError(
                f"use_cpu_cores({count}) comes too late, JAX runs on {len(jax.local_devices(backend='cpu'))} CPU "
                "device(s) already: call it at the top of the program."
            ) from None


def jax_setting(name: str) -> Any:
    """A setting of JAX. In some versions, type checkers do not know the attribute."""
    return getattr(jax.config, name)


def take_cpu_cores(devices: Any) -> None:
    """Call `use_cpu_cores` by default for work on many lanes, unless something else was chosen.

    If JAX has a plugin, lanes most likely run on an accelerator, and the CPU keeps its threads.

    Args:
        devices: the devices the user asked for, as a number or a list, or None.
    """
    plugin = not jax_setting("jax_platforms") and any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    several = devices is None or (isinstance(devices, int | np.integer) and devices > 1)
    if several and not plugin and not _cores_chosen():
        use_cpu_cores()


def _cores_chosen() -> bool:
    """Whether the user has chosen the number of CPU devices, or another platform."""
    by_jax = jax_setting("jax_num_cpu_devices") >= 0
    by_xla = "--xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    platforms = jax_setting("jax_platforms")
    return by_jax or by_xla or bool(platforms and not platforms.startswith("cpu"))


_told = False


def tell_idle_cores(devices: list[Any], blocks: int) -> None:
    """Warn once if blocks of lanes are about to run on fewer CPU devices than cores, and nobody asked for that.

    Args:
        devices: all devices that JAX has.
        blocks: how many blocks there are to run.
    """
    global _told
    there, cores = len(devices), cpu_cores()
    if _told or devices[0].platform != "cpu" or blocks <= there or there >= cores or _cores_chosen():
        return
    _told = True
    warn_user(
        f"JAX was in use before this call, with {there} CPU device{'s' * (there > 1)}, so lanes run on {there} of "
        f"{cores} cores: call fc.use_cpu_cores() at the top of the program.",
        DevicesWarning,
    )


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn, pointing at the first caller outside this package."""
    package, level, frame = __package__ or "", 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


THREADS = "NPROC"
"""The environment variable that tells XLA, at each compilation, how many threads to split a computation over.

With more than one thread, XLA splits even sums of a few dozen numbers. That takes up to 1.8 times as long and occupies
the cores that the other devices need.
"""


def cpu_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

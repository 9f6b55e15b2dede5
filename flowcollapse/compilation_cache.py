"""Compiled programs kept on disk, so that the next process loads the programs that this one compiled.

JAX writes and reads them. This module decides where and how many, and handles failures. JAX's key of a program covers
the program, the versions, the flags of XLA, the kind of processor with its instructions, and the number of devices.
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from ._errors import CacheWarning
from ._files import local_path
from .settings import THREADS, cpu_cores, jax_setting, warn_user

LARGEST = 2**30
"""The most bytes of programs kept when a process starts, enough for a few thousand programs."""

SUFFIX = "-cache"
"""The ending of the names that JAX gives to its entries."""

SWITCH = "JAX_ENABLE_COMPILATION_CACHE"
"""The environment variable that turns JAX's cache off."""

SMALLEST = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
"""JAX does not keep programs below these thresholds. Zero, because the dozens of small programs in a run together take
half a second to compile."""


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the same calls start faster in later processes.

    Call this before any run. The command line does so automatically. Above 1 GiB, the least recently used entries are
    removed first; damaged entries are recompiled. Several processes may share a folder. The folder holds machine code
    that JAX runs: let only people you trust write to it.

    Args:
        folder: where to keep the programs. By default, JAX's own folder if one is set (`JAX_COMPILATION_CACHE_DIR`),
            which JAX then manages; otherwise `flowcollapse` in the user's cache folder: `$XDG_CACHE_HOME` or
            `~/.cache`, `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows.

    Returns:
        The folder of the entries: a subfolder named after the number of threads, because XLA compiles a program for
        that number. None if nothing is kept, because the folder cannot be made or `JAX_ENABLE_COMPILATION_CACHE` is
        false.

    Raises:
        UsageError: if `folder` is not the path of a local folder.
        CacheWarning: as a warning, if the folder cannot be written. Programs are then compiled without a cache.

    Example:
        >>> import flowcollapse as fc
        >>> kept_in = fc.enable_compilation_cache()  # at the top of a program or notebook
    """
    given = None if folder is None else local_path(folder, "folder")
    if os.environ.get(SWITCH, "true").lower() in ("0", "n", "no", "f", "false", "off"):
        return None
    chosen = jax_setting("jax_compilation_cache_dir")
    if given is None and chosen:
        place = Path(chosen)
    else:
        root = (default_folder() if given is None else given).absolute()
        place = root / f"{_threads()}-threads"
        if not _prepared(root, place):
            return None
    for name, least in SMALLEST.items():
        if name.upper() not in os.environ:
            jax.config.update(name, least)
    if chosen != str(place) or not jax_setting("jax_enable_compilation_cache"):
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_enable_compilation_cache", True)
        reset_cache()  # JAX decides at its first program whether and where to keep programs
    _let_faults_pass()
    return place


def disable_compilation_cache() -> None:
    """Stop keeping and loading compiled programs."""
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()


def default_folder() -> Path:
    """The folder of this package among the user's caches."""
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        caches = os.path.expanduser("~/Library/Caches")
    else:
        caches = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(caches):  # the XDG specification says to ignore relative paths
            caches = os.path.expanduser("~/.cache")
    return Path(caches) / "flowcollapse"


def _threads() -> str:
    """The number of threads that XLA splits a one-device CPU program over, which JAX's key leaves out."""
    several = jax_setting("jax_num_cpu_devices") > 1
    return str(cpu_cores()) if several else os.environ.get(THREADS) or str(cpu_cores())


def _prepared(root: Path, place: Path) -> bool:
    """Make the folder and free space in it. Warns if it cannot be written; returns False if it does not exist."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**12))
        _make_room(root)
    except (OSError, ValueError) as error:  # ValueError for characters that a file name cannot have
        _tell(place, error)
    return os.path.isdir(place)


def _make_room(root: Path) -> None:
    """Remove the least recently used entries until the rest fit."""
    entries = []
    for file in root.glob(f"*-threads/*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may have removed it
            about = file.stat()
            entries.append((about.st_mtime, about.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= LARGEST:
            return
        total -= size
        _remove(file)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


_told: set[Path] = set()


def _tell(place: Path, error: Exception) -> None:
    """Warn once that nothing can be kept."""
    if place not in _told:
        _told.add(place)
        reason = getattr(error, "strerror", None) or error
        warn_user(
            f"compiled programs cannot be kept in {place} ({reason}), so later runs compile again: free some space, "
            "or choose another folder.",
            CacheWarning,
        )


def _let_faults_pass() -> None:
    """Make a fault in the folder cost one compilation and nothing else.

    JAX alone warns about every entry that it cannot read, and never replaces the entry. Versions of JAX without these
    functions keep that behaviour.
    """
    try:
        from jax._src import compilation_cache as jax_cache
        from jaxlib.utils import absl_set_min_log_level

        load, keep = jax_cache.get_executable_and_time, jax_cache.put_executable_and_time
    except (ImportError, AttributeError):
        return
    if not hasattr(load, "__wrapped__"):
        jax_cache.get_executable_and_time = _loading(load, absl_set_min_log_level)
        jax_cache.put_executable_and_time = _keeping(keep)


def _loading(load: Callable, set_log_level: Callable[[int], None]) -> Callable:
    @functools.wraps(load)
    def loading(cache_key: str, *rest: Any, **named: Any) -> Any:
        try:
            with _without_xla_log(set_log_level):
                found = load(cache_key, *rest, **named)
        except Exception:  # zlib, XLA and the operating system raise different errors
            _remove(_entry(cache_key))
            return None, None
        if found[0] is not None:
            with contextlib.suppress(OSError):
                os.utime(_entry(cache_key))  # marks the entry as recently used
        return found

    return loading


def _keeping(keep: Callable) -> Callable:
    @functools.wraps(keep)
    def keeping(cache_key: str, *rest: Any, **named: Any) -> None:
        try:
            keep(cache_key, *rest, **named)
        except OSError as error:
            entry = _entry(cache_key)
            _remove(entry)  # it may be incomplete
            _tell(entry.parent, error)

    return keeping


def _entry(cache_key: str) -> Path:
    """The file of a compiled program."""
    return Path(jax_setting("jax_compilation_cache_dir")) / f"{cache_key}{SUFFIX}"


@contextlib.contextmanager
def _without_xla_log(set_log_level: Callable[[int], None]) -> Iterator[None]:
    """Silence XLA's log, unless the user has asked JAX for one.

    For each program it loads, jax 0.10.1 prints pages about instructions that this machine supposedly lacks. They are
    not instructions but preferences of the compiler on AMD processors. A program that cannot be loaded still raises.
    """
    if jax_setting("jax_logging_level") not in (None, "NOTSET"):
        yield
        return
    set_log_level(3)
    try:
        yield
    finally:
        set_log_level(int(os.environ.get("TF_CPP_MIN_LOG_LEVEL") or 1))

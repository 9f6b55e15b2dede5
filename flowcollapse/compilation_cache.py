"""Compiled programs that are kept on disk, so that the next process loads what this one has compiled.

JAX keeps them; here is where, how many, and what becomes of faults. JAX's key of a program covers the program, the
versions, the flags of XLA, the kind of processor with its instructions, and the number of devices.
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
"""Bytes of the programs that are left when a process begins: some thousands."""

SUFFIX = "-cache"
"""How JAX ends the names of its entries."""

SWITCH = "JAX_ENABLE_COMPILATION_CACHE"
"""The environment variable with which JAX is told to keep nothing."""

SMALLEST = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
"""JAX's thresholds, below which it keeps no program. A run has dozens of small ones, which take half a second."""


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk, so that the same calls start faster in later processes.

    Call it before any run. The command line does so by itself. Above 1 GiB, the entries that were not used for longest
    go first; damaged ones are compiled anew. Several processes may share a folder. It holds machine code that JAX runs:
    let nobody write to it whom you do not trust.

    Args:
        folder: where to keep them. Default: where JAX keeps them already (`JAX_COMPILATION_CACHE_DIR`), which is left
            to JAX, or else `flowcollapse` in the user's folder for caches: `$XDG_CACHE_HOME` or `~/.cache`,
            `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows.

    Returns:
        Where the entries are: a subfolder by the number of threads, over which XLA splits a program when it compiles
        it. None if nothing is kept, because the folder cannot be made or `JAX_ENABLE_COMPILATION_CACHE` is false.

    Raises:
        UsageError: if `folder` is not the path of a folder of this machine.
        CacheWarning: as a warning, if the folder cannot be written to. Programs are then compiled as without it.

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
        reset_cache()  # JAX decides at its first program whether and where to keep any
    _let_faults_pass()
    return place


def disable_compilation_cache() -> None:
    """Keep no compiled programs from here on, and load none."""
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
        if not os.path.isabs(caches):  # such a setting is to be ignored, says its specification
            caches = os.path.expanduser("~/.cache")
    return Path(caches) / "flowcollapse"


def _threads() -> str:
    """Over how many threads XLA splits a computation, which JAX's key leaves out, for programs of one CPU device."""
    several = jax_setting("jax_num_cpu_devices") > 1
    return str(cpu_cores()) if several else os.environ.get(THREADS) or str(cpu_cores())


def _prepared(root: Path, place: Path) -> bool:
    """Make the folder, and room in it. Warns if it cannot be written to; False if there is none."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**12))
        _make_room(root)
    except (OSError, ValueError) as error:  # the latter for letters that no file name has
        _tell(place, error)
    return os.path.isdir(place)


def _make_room(root: Path) -> None:
    """Remove the entries that were not used for longest, until the others fit."""
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
    """Warn, once, that nothing can be kept."""
    if place not in _told:
        _told.add(place)
        reason = getattr(error, "strerror", None) or error
        warn_user(
            f"compiled programs cannot be kept in {place} ({reason}), so that later runs compile again: make room, "
            "or choose another folder.",
            CacheWarning,
        )


def _let_faults_pass() -> None:
    """Let a fault of the folder cost a compilation and nothing else.

    JAX itself warns of each entry that it cannot read, and never replaces it. Versions of JAX without these functions
    go on doing so.
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
        except Exception:  # zlib, XLA and the system each have other ones
            _remove(_entry(cache_key))
            return None, None
        if found[0] is not None:
            with contextlib.suppress(OSError):
                os.utime(_entry(cache_key))  # it is in use
        return found

    return loading


def _keeping(keep: Callable) -> Callable:
    @functools.wraps(keep)
    def keeping(cache_key: str, *rest: Any, **named: Any) -> None:
        try:
            keep(cache_key, *rest, **named)
        except OSError as error:
            entry = _entry(cache_key)
            _remove(entry)  # the half that was written
            _tell(entry.parent, error)

    return keeping


def _entry(cache_key: str) -> Path:
    """The file of a compiled program."""
    return Path(jax_setting("jax_compilation_cache_dir")) / f"{cache_key}{SUFFIX}"


@contextlib.contextmanager
def _without_xla_log(set_log_level: Callable[[int], None]) -> Iterator[None]:
    """No log of XLA, unless the user has asked JAX for one.

    For each program that it loads, jax 0.10.1 prints pages about instructions that this machine lacks, which are none:
    preferences of the compiler on AMD processors. A program that cannot be loaded raises.
    """
    if jax_setting("jax_logging_level") not in (None, "NOTSET"):
        yield
        return
    set_log_level(3)
    try:
        yield
    finally:
        set_log_level(int(os.environ.get("TF_CPP_MIN_LOG_LEVEL") or 1))

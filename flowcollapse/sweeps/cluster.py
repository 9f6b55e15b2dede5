"""The tasks of a sweep on a Dask cluster: one worker a device, and what a lost worker had is run by another."""

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from .._errors import UsageError
from .grid import Task
from .lanes import Plan
from .local import Local, Result

if TYPE_CHECKING:
    import distributed

AHEAD = 2
"""Tasks that each worker is given at once: the next is at hand when one ends, and few are lost with a worker."""

PATIENCE = "20s"
"""How long a scheduler may take to answer."""


def connect(
    address: str, *, ca_file: Path | None = None, cert: Path | None = None, key: Path | None = None
) -> "distributed.Client":
    """A client of the Dask scheduler at an address, over TLS if certificates are given.

    Args:
        address: such as `tcp://host:8786` or `tls://host:8786`.
        ca_file: certificate of the authority that signed the scheduler's, PEM.
        cert: this client's certificate, PEM.
        key: its private key, PEM.

    Raises:
        UsageError: if the extra `cluster` is not installed, a file is missing, or nobody answers.
    """
    try:
        from distributed import Client, Security
    except ImportError:
        raise UsageError('scheduler needs Dask distributed: pip install "flowcollapse[cluster]".') from None
    files = {"tls_ca_file": ca_file, "tls_client_cert": cert, "tls_client_key": key}
    given = {name: str(file) for name, file in files.items() if file is not None}
    missing = [file for file in given.values() if not Path(file).is_file()]
    if missing:
        raise UsageError(f"{missing[0]} is not a file: give the certificates as PEM files.")
    if address.startswith("tls://") and len(given) < 3:
        raise UsageError(f"{address} needs certificates: give the authority's, this client's, and its key.")
    security = Security(require_encryption=True, **given) if given else None
    try:
        return Client(address, security=security, timeout=PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"scheduler {address} does not answer: {error}.") from None


def on_cluster(
    scheduler: "str | distributed.Client", plan: Plan, capacity: int, width: int | None, todo: Iterator[Task]
) -> Iterator[Result]:
    """The results of the tasks, as they come from the workers of a cluster.

    Raises:
        RuntimeError: if a task fails, or is lost with its worker again and again.
    """
    import distributed

    own = isinstance(scheduler, str)
    client = connect(scheduler) if own else scheduler
    x64 = bool(jax.config.read("jax_enable_x64"))
    name = f"flowcollapse-{uuid.uuid4().hex[:8]}"
    running: set[distributed.Future] = set()

    def submit(task: Task) -> distributed.Future:
        job = (name, everywhere, capacity, width, x64, task)
        running.add(future := client.submit(run_on_worker, *job, key=f"{name}-{task.index}", pure=False))
        return future

    try:
        everywhere = client.scatter(plan, broadcast=True)
        workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        finished = distributed.as_completed([submit(task) for task in itertools.islice(todo, AHEAD * workers)])
        for future in finished:
            running.discard(future)
            yield future.result()
            finished.update([submit(task) for task in itertools.islice(todo, 1)])
    finally:
        client.cancel(list(running))
        if own:
            client.close()


_engines: dict[str, Local] = {}

LONGEST_WAIT = 7 * 24 * 3600
"""Seconds that a process that has done its share waits for the others to do theirs."""


def run_on_worker(name: str, plan: Plan, capacity: int, width: int | None, x64: bool, task: Task) -> Result:
    """One task on all devices of this worker, whose programs are kept for the next task of the same sweep."""
    if name not in _engines:
        _engines.clear()
        jax.config.update("jax_enable_x64", x64)
        _engines[name] = Local(plan, capacity, jax.local_devices(), width)
    return _engines[name].submit(task)()


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Make this process one of several of `jax.distributed`; under SLURM and on TPU pods nothing need be given.

    Raises:
        UsageError: if the other processes cannot be found.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "shutdown_timeout_seconds": LONGEST_WAIT,
    }
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"the processes of this sweep do not find each other: {error}. Give the coordinator's address, the number "
            "of processes and the number of this one, or start them under SLURM."
        ) from None

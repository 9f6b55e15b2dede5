"""The tasks of a sweep on a Dask cluster: one worker a device, and what a lost worker had is run by another."""

import contextlib
import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from .._checks import shown
from .._errors import UsageError
from ..results.provenance import settings
from .grid import Batch
from .lane import Plan
from .local import Local, Result

if TYPE_CHECKING:
    import distributed

AHEAD = 2
"""Batches that each worker is given at once: the next is at hand when one ends, and few are lost with a worker."""

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
        import dask.config
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
    before = dask.config.get("scheduler", None)
    try:
        return Client(address, security=security, timeout=PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        dask.config.set(scheduler=before)  # or Dask would read all files through the client that there is not
        raise UsageError(f"scheduler {address} does not answer: {error}; start it, or give its address.") from None


@contextlib.contextmanager
def connected(scheduler: Any) -> "Iterator[distributed.Client | None]":
    """The client of a scheduler, from its address or as given; None for None. One made here is closed again.

    Raises:
        UsageError: as `connect`, and for anything else.
    """
    if isinstance(scheduler, str):
        with connect(scheduler) as client:
            yield client
    elif scheduler is None or hasattr(scheduler, "scheduler_info"):
        yield scheduler
    else:
        raise UsageError(
            f"scheduler must be the address or the client of a Dask cluster, got {shown(scheduler)}: pass one."
        )


def on_cluster(
    client: "distributed.Client", plan: Plan, capacity: int, width: int | None, todo: Iterator[Batch]
) -> Iterator[Result]:
    """The results of the batches, as they come from the workers of a cluster.

    Raises:
        RuntimeError: if a batch fails, or is lost with its worker again and again.
    """
    import distributed

    name = f"flowcollapse-{uuid.uuid4().hex[:8]}"
    running: set[distributed.Future] = set()

    def submit(batch: Batch) -> distributed.Future:
        job = (name, everywhere, capacity, width, settings(), batch)
        running.add(future := client.submit(run_on_worker, *job, key=f"{name}-{batch[0].index}", pure=False))
        return future

    try:
        everywhere = client.scatter(plan, broadcast=True)
        workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        finished = distributed.as_completed([submit(batch) for batch in itertools.islice(todo, AHEAD * workers)])
        for future in finished:
            running.discard(future)
            yield future.result()
            finished.update([submit(batch) for batch in itertools.islice(todo, 1)])
    finally:
        client.cancel(list(running))


_engines: dict[str, Local] = {}

LONGEST_WAIT = 7 * 24 * 3600
"""Seconds that a process that has done its share waits for the others to do theirs."""


def run_on_worker(
    name: str, plan: Plan, capacity: int, width: int | None, of_jax: dict[str, Any], batch: Batch
) -> Result:
    """One batch on all devices of this worker, whose programs are kept for the next one of the same sweep."""
    if name not in _engines:
        _engines.clear()
        for setting, value in of_jax.items():
            jax.config.update(setting, value)
        _engines[name] = Local(plan, capacity, jax.local_devices(), width)
    return _engines[name].submit(batch)()


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

"""Runs the tasks of a sweep on a Dask cluster, one worker per device. Another worker reruns the tasks of a lost one."""

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
"""Batches in each worker's queue: the next batch is ready when one ends, and a lost worker loses only two."""

PATIENCE = "20s"
"""How long to wait for a scheduler to answer."""


def connect(
    address: str, *, ca_file: Path | None = None, cert: Path | None = None, key: Path | None = None
) -> "distributed.Client":
    """Connect to the Dask scheduler at an address, over TLS if certificates are given.

    Args:
        address: such as `tcp://host:8786` or `tls://host:8786`.
        ca_file: PEM certificate of the authority that signed the scheduler's certificate.
        cert: PEM certificate of this client.
        key: PEM private key of this client.

    Raises:
        UsageError: if the extra `cluster` is not installed, a file is missing, or no scheduler answers.
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
        # Not Dask's default: it would read every file through this client, even if no scheduler has answered.
        return Client(address, security=security, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"scheduler {address} does not answer: {error}; start it, or give its address.") from None


@contextlib.contextmanager
def connected(scheduler: Any) -> "Iterator[distributed.Client | None]":
    """The client of a scheduler given by its address or as a client; None for None.

    A client made here is closed at the end.

    Raises:
        UsageError: for the reasons `connect` has, and if `scheduler` is something else.
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
    """The results of the batches, in the order in which the workers of a cluster finish them.

    Raises:
        RuntimeError: if a batch fails, or if its workers die repeatedly.
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
        first = [submit(batch) for batch in itertools.islice(todo, AHEAD * workers)]
        finished = distributed.as_completed(first, loop=client.loop)  # the client need not be Dask's default
        for future in finished:
            running.discard(future)
            yield future.result()
            finished.update([submit(batch) for batch in itertools.islice(todo, 1)])
    finally:
        client.cancel(list(running))


_engines: dict[str, Local] = {}

LONGEST_WAIT = 7 * 24 * 3600
"""Seconds that a finished process waits for the others."""


def run_on_worker(
    name: str, plan: Plan, capacity: int, width: int | None, of_jax: dict[str, Any], batch: Batch
) -> Result:
    """Run one batch on all devices of this worker. The next batch of the same sweep reuses the compiled programs."""
    if name not in _engines:
        _engines.clear()
        for setting, value in of_jax.items():
            jax.config.update(setting, value)
        _engines[name] = Local(plan, capacity, jax.local_devices(), width)
    return _engines[name].submit(batch)()


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Make this process one of several of `jax.distributed`. SLURM and TPU pods need no arguments.

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

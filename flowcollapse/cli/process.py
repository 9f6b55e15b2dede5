"""The process around a command: how it responds to Ctrl-C, closed pipes and internal errors."""

import gc
import io
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from typing import Any, NoReturn

FAULT, PIPE, INTERRUPTED = 70, 141, 130

PATIENCE = 1.0
"""Seconds that the main thread has to react to a second Ctrl-C."""


def run() -> NoReturn:
    """Run the `flowcollapse` command as a process.

    Ctrl-C ends it with code 130 at any time, and skips Python's shutdown, which can crash while XLA's threads compile
    (jax issue 18246). While the main thread waits for XLA, a first Ctrl-C may take effect only once XLA is done; a
    second one takes effect within a second. An unexpected error prints its traceback and ends with code 70, because
    code 1 means that a law fails.
    """
    # Tracing makes hundreds of thousands of objects that stay. By default, Python searches them for garbage so often
    # that it takes a sixth of the time of a sweep with a filled cache.
    gc.set_threshold(100_000, 20, 100)
    interrupts = Interrupts()
    try:
        open_closed_streams()
        warnings.formatwarning = one_line
        from . import OUTPUT_FAILED, main, tell
        from .console import flush

        try:
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 2
        except BrokenPipeError:
            code = PIPE
        except Exception:
            if interrupts.answered:  # XLA turns a Ctrl-C inside a callback into another error
                raise KeyboardInterrupt from None
            traceback.print_exc()
            code = FAULT
        if code == INTERRUPTED:
            leave()
        failure = flush()
        if failure and code == 0:
            tell(f"flowcollapse: cannot write to standard output: {failure}.")
            code = OUTPUT_FAILED
        interrupts.end()
    except KeyboardInterrupt:
        leave("Interrupted.\n")
    sys.exit(code)


class Interrupts:
    """Handles Ctrl-C while the main thread waits for XLA, when Python's own handler cannot run.

    Python runs its handlers between two instructions of the main thread, so not while that thread compiles. A second
    thread receives each signal at once, and ends the process at the second signal if the main thread has not reacted.
    """

    def __init__(self) -> None:
        self.answered: float | None = None
        self._here = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # False if SIGINT is ignored
        if not self._here:
            return
        signal.signal(signal.SIGINT, self._answer)
        sys.unraisablehook = self._unraisable
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def end(self) -> None:
        """Restore the default action of Ctrl-C, which ends the process."""
        if self._here:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _answer(self, number: int, frame: Any) -> None:
        self.answered = time.monotonic()
        raise KeyboardInterrupt

    def _listen(self) -> None:
        heard = 0
        while True:
            heard += self._reader.recv(64).count(signal.SIGINT)
            began = time.monotonic()
            if heard > 1:
                time.sleep(PATIENCE)
                if self.answered is None or self.answered < began - PATIENCE:
                    leave("Interrupted.\n")

    def _unraisable(self, problem: Any) -> None:
        """Handle Ctrl-C inside a destructor or a callback of the garbage collector, which Python would drop."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            leave("Interrupted.\n")
        sys.__unraisablehook__(problem)


def leave(message: str = "") -> NoReturn:
    """Flush the output and end the process at once with code 130."""
    try:
        os.write(2, message.encode())
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:  # a closed pipe or another Ctrl-C: end all the same
        pass
    os._exit(INTERRUPTED)


def one_line(message: Warning | str, *_: Any) -> str:
    """A warning on one line, without its place in the source, which means nothing to users of the command line."""
    return f"flowcollapse: warning: {' '.join(str(message).split())}\n"


def open_closed_streams() -> None:
    """Open streams that the shell has closed, as with `2>&-`: the next file opened would take their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  stays open for the life of the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks must not end the command

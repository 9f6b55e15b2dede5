"""The process around a command: what Ctrl-C, closed pipes and faults come to in a shell."""

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
"""Seconds that a second Ctrl-C leaves the main thread to answer."""


def run() -> NoReturn:
    """The `flowcollapse` command as a process.

    Ctrl-C ends it with code 130, at any time and without Python's own shutdown, which can crash while threads of XLA
    compile (jax issue 18246). A first Ctrl-C while the main thread waits for XLA may be answered only when that is
    done, a second one within a second. Whatever is not foreseen prints its traceback and ends with code 70, since 1
    means that a law fails.
    """
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
            if interrupts.answered:  # Ctrl-C inside of a callback comes out of XLA as another error
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
    """Answers Ctrl-C where Python's own handler cannot: while the main thread waits for XLA.

    Python's handlers run between two instructions of the main thread, so not while that compiles. Another thread hears
    of each signal at once, and ends the process at the second one if the main thread has not answered.
    """

    def __init__(self) -> None:
        self.answered: float | None = None
        self._here = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where it is to be ignored
        if not self._here:
            return
        signal.signal(signal.SIGINT, self._answer)
        sys.unraisablehook = self._unraisable
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def end(self) -> None:
        """From here on Ctrl-C ends the process as it ends any other."""
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
        """Ctrl-C inside of a destructor or a callback of the garbage collector, which Python drops."""
        if issubclass(problem.exc_type, KeyboardInterrupt):
            leave("Interrupted.\n")
        sys.__unraisablehook__(problem)


def leave(message: str = "") -> NoReturn:
    """End the process at once, with what it has printed, and with code 130."""
    try:
        os.write(2, message.encode())
        if sys.stdout is not None:
            sys.stdout.flush()
    except BaseException:  # a closed pipe, another Ctrl-C: the end is the same
        pass
    os._exit(INTERRUPTED)


def one_line(message: Warning | str, *_: Any) -> str:
    """A warning as the command line prints it: where it was raised tells nothing to those who type."""
    return f"flowcollapse: warning: {' '.join(str(message).split())}\n"


def open_closed_streams() -> None:
    """Open what the shell has closed, as with `2>&-`: the next file to be opened would take its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter ends no command

"""The command line. Each command is a frozen dataclass: its fields are the flags, and their docstrings are the help.

Nothing heavy is imported before a command runs, so that `--help` is fast.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from .._errors import UsageError, nearest

ABOUT = (
    "Gradient flow and gradient descent of the unconstrained features model, and how far they are from neural collapse."
)

EXIT_CODES = """Exit codes: 0 success, 1 a law fails (verify, show), 2 bad input, 70 internal error, 74 standard output
cannot be written, 130 interrupted. A pipe that is closed early, for example by head, does not change the exit code.

flowcollapse COMMAND --help shows the flags of a command and an example, flowcollapse --version the version. Colours are
for terminals, and only if NO_COLOR is not set."""

OUTPUT_FAILED, INTERRUPTED = 74, 130

HELP = {"--help", "-h"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the `flowcollapse` command.

    Args:
        args: the words after the command's name. Default: the arguments of this process.

    Returns:
        The exit code: 0; 1 if a law fails; 2 after bad input, explained in one line on standard error; 74 if standard
        output cannot be written (a closed pipe does not count); or 130 after Ctrl-C.

    Raises:
        SystemExit: with code 0 after `--help`.

    Example:
        >>> from flowcollapse.cli import main
        >>> main(["simulate", "--t1", "1", "--t1", "2"])
        2
    """
    try:
        return _main(sys.argv[1:] if args is None else list(args))
    except UsageError as error:
        tell("flowcollapse: " + " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt as stop:
        tell(str(stop) or "Interrupted.")
        return INTERRUPTED
    except (OverflowError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        tell(f"flowcollapse: a size or count is too large for this machine: {reason}; make it smaller.")
        return 2


def commands() -> dict[str, type]:
    """The commands by name."""
    from .animate import Animate
    from .compare import Compare
    from .completion import Completion
    from .doctor import Doctor
    from .info import Info
    from .init import Init
    from .measure import Measure
    from .plot import Plot
    from .report import Report
    from .reproduce import Reproduce
    from .show import Show
    from .simulate import Simulate
    from .sweep import Sweep
    from .verify import Verify

    return {
        "reproduce": Reproduce,
        "simulate": Simulate,
        "sweep": Sweep,
        "compare": Compare,
        "measure": Measure,
        "plot": Plot,
        "animate": Animate,
        "report": Report,
        "show": Show,
        "verify": Verify,
        "init": Init,
        "info": Info,
        "doctor": Doctor,
        "completion": Completion,
    }


def _main(args: list[str]) -> int:
    import tyro

    from .console import Console, without_colors

    known = commands()
    first = next((i for i, word in enumerate(args) if word in known), None)
    if first is not None:
        args = said_once(known[args[first]], args[first], [*args[:first], *args[first + 1 :]])
    elif "--version" in args:
        Console().say(f"flowcollapse {__version__}")
        return 0
    elif not HELP & set(args):
        word = next((word for word in args if not word.startswith("-")), None)
        fault = "no command is given" if word is None else f"{word!r} is not a command"
        cure = nearest(word, known) if word else ""
        raise UsageError(f"{fault}: choose one of {', '.join(known)}{cure or ', or run flowcollapse --help.'}")
    if without_colors():
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = (
            False  # tyro colours its help whenever it writes to a terminal
        )
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            known,
            prog="flowcollapse",
            description=f"{ABOUT}\n\n{EXIT_CODES}",
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except BrokenPipeError:  # nobody reads the help
        return 0
    except SystemExit as end:
        if first is not None and HELP & set(args):
            Console().say("\n".join(["Example:", *(f"    {line}" for line in examples(known[args[0]]))]))
        raise end
    console = Console(command.quiet)
    code = command.run(console)
    if console.failure:
        tell(f"flowcollapse: cannot write to standard output: {console.failure}.")
        return code or OUTPUT_FAILED
    return code or 0


def examples(command: type) -> list[str]:
    """The lines below "Example:" in the docstring of a command. Its help shows them, and the tests run them."""
    lines = (inspect.getdoc(command) or "").partition("Example:\n")[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def said_once(command: type, name: str, args: Sequence[str]) -> list[str]:
    """The words of a command, including those of its configuration file, with each flag mentioned once.

    Raises:
        UsageError: for an unknown flag, a flag given twice with different values, a value of the wrong kind, a flag
            that the chosen method does not read, and a file that cannot be read.
    """
    from .config import read_config
    from .options import READ_BY, check_read
    from .words import add, check_known, flags_of, read, replaced, written

    if HELP & set(args):
        return [name, "--help"]
    flags = flags_of(command)
    values, others = read(args, flags)
    if name == "sweep" and others and not others[0].startswith("-"):
        add(values, flags["config"], [others.pop(0)])
    check_known(name, others, flags)
    given = list(values)
    if "config" in values:
        values = replaced(read_config(Path(values["config"][0]), flags), values, flags)
    method = values.get("method", ["flow"])[0]
    if "method" in flags and method in READ_BY:
        check_read(given, method)
    return [name, *written(values, flags)]


def tell(text: str) -> None:
    """Print one line on standard error, if the process has one."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # nobody reads it
        with contextlib.suppress(OSError, ValueError):  # Python flushes again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

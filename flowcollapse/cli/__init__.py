"""The command line. Each command is a frozen dataclass: its fields are the flags, and the text under them the help.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

import sys
from collections.abc import Sequence

import tyro

from .._errors import UsageError
from .comparison import Compare
from .single import Info, Reproduce, Simulate
from .sweeps import Plot, Sweep, with_config
from .verification import Verify


def main(args: Sequence[str] | None = None) -> int:
    """The `flowcollapse` command.

    Args:
        args: the words after the command's name. Default: those of this process.

    Returns:
        The exit code: 0, 1 if a law fails, 2 after bad input, which is told in one line on standard error, or 130
        after Ctrl-C.

    Raises:
        SystemExit: with code 2 for unknown flags, with 0 after `--help`.
    """
    args = sys.argv[1:] if args is None else list(args)
    try:
        args = with_config(args)
    except UsageError as error:
        return refuse(error)
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "reproduce": Reproduce,
            "simulate": Simulate,
            "sweep": Sweep,
            "compare": Compare,
            "plot": Plot,
            "verify": Verify,
            "info": Info,
        },
        prog="flowcollapse",
        description="Gradient flow and gradient descent of the unconstrained features model, and how far they are from "
        "neural collapse.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        code = command.run()
    except UsageError as error:
        return refuse(error)
    except KeyboardInterrupt as stop:
        print(str(stop) or "Interrupted.", file=sys.stderr)
        return 130
    return code or 0


def refuse(error: UsageError) -> int:
    """Tell of bad input in one line."""
    print("flowcollapse: " + " ".join(str(error).split()), file=sys.stderr)
    return 2

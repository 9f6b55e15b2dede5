"""The command that prints completions for a shell."""

import contextlib
import dataclasses
import importlib
import io
from typing import Annotated, Literal

import tyro

from .console import Console
from .options import Command


@dataclasses.dataclass(frozen=True)
class Completion(Command):
    """Print a script that lets a shell complete commands, flags, their choices and files. For bash, put
    'source <(flowcollapse completion bash)' into ~/.bashrc; for zsh, write the script to a file _flowcollapse in a
    folder of $fpath; for fish, to ~/.config/fish/completions/flowcollapse.fish.

    Example:
        flowcollapse completion bash
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional] = "bash"
    """The shell."""

    def run(self, console: Console) -> None:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(
                importlib.import_module(__name__.rpartition(".")[0]).commands(),  # it imports this module
                prog="flowcollapse",
                args=["--tyro-print-completion", self.shell],
                config=(tyro.conf.OmitArgPrefixes,),
            )
        # bash completes files where tyro has nothing to offer, such as those that `plot` draws.
        script = text.getvalue().replace("complete -F", "complete -o default -F")
        console.say(script.replace('matches+=("$completion")', '[[ -n $completion ]] && matches+=("$completion")'))

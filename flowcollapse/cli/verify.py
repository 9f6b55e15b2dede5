"""The command that measures every law of the model."""

import dataclasses
from pathlib import Path

from .console import Console, check_json_file
from .options import Computing


@dataclasses.dataclass(frozen=True)
class Verify(Computing):
    """Measure the laws of the model on this machine. Each row is a law, with the measured error, the tolerance and the
    verdict of the comparison closest to failing. The exit code is 1 if a law fails.

    Example:
        flowcollapse verify --only origin-modes,spectrum --json laws.json
    """

    only: tuple[str, ...] | None = None
    """Names of the laws to measure. Default: all."""
    json: Path | None = None
    """File for the rows, with versions, device and precision: .json."""

    def run(self, console: Console) -> int:
        from .._files import replacing

        check_json_file(self.json)
        self.prepare()
        from ..theory import certificate

        shown = False

        def report(row: certificate.Row) -> None:
            nonlocal shown
            if not shown:
                console.say(certificate.HEAD)
                shown = True
            console.say(certificate.line(row))

        found = certificate.verify(self.only, report=report)
        console.say(certificate.summary(found))
        if self.json is not None:
            with replacing(self.json) as part:
                part.write_text(found.to_json() + "\n")
            console.say(f"Wrote {self.json}")
        return 0 if found.passed else 1

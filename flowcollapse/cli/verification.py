"""The command that measures every law of the model."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Verify:
    """Measure the laws of the model on this machine, a row a law: how far runs are from the closed forms, how far they
    may be, and the verdict. The exit code is 1 if a law fails."""

    only: tuple[str, ...] | None = None
    """Names of laws. Default: all."""
    json: Path | None = None
    """File for the rows, with versions, device and precision."""

    def run(self) -> int:
        import flowcollapse as fc

        from .._files import check_writable, replacing

        if self.json is not None:
            check_writable(self.json)
        fc.enable_x64()
        from ..theory import certificate

        shown = False

        def report(row: certificate.Row) -> None:
            nonlocal shown
            if not shown:
                print(certificate.HEAD)
                shown = True
            print(certificate.line(row), flush=True)

        found = certificate.verify(self.only, report=report)
        print(certificate.summary(found))
        if self.json is not None:
            with replacing(self.json) as part:
                part.write_text(found.to_json() + "\n")
            print(f"Wrote {self.json}")
        return 0 if found.passed else 1

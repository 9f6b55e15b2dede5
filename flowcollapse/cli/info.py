"""The command that prints what is installed."""

import dataclasses

from .console import Console
from .options import Command


@dataclasses.dataclass(frozen=True)
class Info(Command):
    """Print versions, devices and precision.

    Example:
        flowcollapse info
    """

    def run(self, console: Console) -> None:
        import jax

        from ..results.provenance import versions
        from ..settings import cpu_cores

        rows = list(versions().items())
        rows += [(f"device {d.id}", f"{d.platform}, {d.device_kind}") for d in jax.devices()]
        rows += [("CPU cores", str(cpu_cores()))]
        rows += [("precision", "float64 by default; simulate, sweep and compare have --precision float32")]
        width = max(len(name) for name, _ in rows)
        console.say("\n".join(f"{name:<{width}}  {text}" for name, text in rows))

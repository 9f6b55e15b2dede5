"""The laboratory for the gradient flow of neural collapse."""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import plot as plot
    from ._public import *  # noqa: F403

__version__ = "0.1.0"

_SUBMODULES = ("initial", "metrics", "plot")


class _Package(types.ModuleType):
    """The package. Its public names, listed in `_public`, load when the first of them is asked for.

    So `flowcollapse --help` does not wait for jax, and matplotlib waits until somebody plots.
    """

    def __getattr__(self, name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if not name.startswith("_"):
            public = importlib.import_module(f"{__name__}._public")
            if name in public.__all__:
                return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each submodule here, but `fc.simulate` is the function, not the file it lives in.
        if not (name == "simulate" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *importlib.import_module(f"{__name__}._public").__all__, *_SUBMODULES})


sys.modules[__name__].__class__ = _Package

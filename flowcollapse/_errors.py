"""The error for bad input, whose message names the argument, the value and the cure, and the warnings."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Invalid input. The command line prints the message on one line and exits with code 2.

    Values quoted in a message, such as arrays, may span several lines; they are joined into one.
    """

    def __init__(self, message: str = ""):
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class PrecisionWarning(UserWarning):
    """Runs in float32 are too coarse for much of neural collapse. Ignore the warning if you want float32."""


class DevicesWarning(UserWarning):
    """A sweep leaves CPU cores idle because JAX was already running with fewer devices."""


class CacheWarning(UserWarning):
    """Compiled programs cannot be kept on disk. Runs continue as they would without `fc.enable_compilation_cache`."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The ending of an error about an unknown name, if a known name is similar: `; did you mean 'x'?`

    Case is ignored, and `-` equals `_`.
    """
    folded = {one.lower().replace("-", "_"): one for one in known}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""

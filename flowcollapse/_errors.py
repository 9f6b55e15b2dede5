"""The one error for bad input: a sentence that names the argument, the value and the cure; and the warnings."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Input that cannot be right. The command line prints it on one line and exits with code 2.

    The values that a message quotes may take several lines, as arrays do: they are put on one.
    """

    def __init__(self, message: str = ""):
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class PrecisionWarning(UserWarning):
    """Runs in float32, which hide much of what neural collapse is about. Ignore it where that is what you want."""


class DevicesWarning(UserWarning):
    """A sweep that leaves CPU cores idle, because JAX was in use before it with fewer devices."""


class CacheWarning(UserWarning):
    """Compiled programs cannot be kept on disk. Runs go on as without `fc.enable_compilation_cache`."""


def nearest(name: object, known: Iterable[str]) -> str:
    """A question that ends an error about an unknown name, if one of the known ones is near: `; did you mean 'x'?`

    Upper and lower case, `-` and `_` count as the same.
    """
    folded = {one.lower().replace("-", "_"): one for one in known}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""

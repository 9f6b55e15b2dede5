"""The error for bad input, whose message names the argument, the value and the cure, and the warnings."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Invalid input: the message names the argument, its value and the cure, on one line.

    The command line prints it and exits with code 2. Values quoted in a message, such as arrays, may span several
    lines; they are joined into one.

    Example:
        >>> import flowcollapse as fc
        >>> try:
        ...     fc.UFM(num_classes=1, samples_per_class=3, num_features=15)
        ... except fc.UsageError as error:
        ...     print(error)
        num_classes must be an integer of at least 2, got 1...
    """

    def __init__(self, message: str = ""):
        super().__init__(" ".join(line.strip() for line in str(message).splitlines()))


class PrecisionWarning(UserWarning):
    """A sweep runs in float32, which is too coarse for much of neural collapse.

    Call `fc.enable_x64()` first, or silence the warning if you want float32.

    Example:
        >>> import warnings, flowcollapse as fc
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", fc.PrecisionWarning)  # float32 is intended in this block
    """


class DevicesWarning(UserWarning):
    """A sweep leaves CPU cores idle, because JAX was already running with fewer devices.

    Call `fc.use_cpu_cores()` at the top of the program, or silence the warning.

    Example:
        >>> import warnings, flowcollapse as fc
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", fc.DevicesWarning)  # other work uses the other cores
    """


class CacheWarning(UserWarning):
    """Compiled programs cannot be kept on disk, so runs continue as they would without `fc.enable_compilation_cache`.

    Give that function a folder that can be written to, or silence the warning.

    Example:
        >>> import warnings, flowcollapse as fc
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", fc.CacheWarning)  # in this block programs may be compiled again
    """


def nearest(name: object, known: Iterable[str]) -> str:
    """The ending of an error about an unknown name, if a known name is similar: `; did you mean 'x'?`

    Case is ignored, and `-` equals `_`.
    """
    folded = {one.lower().replace("-", "_"): one for one in known}
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""

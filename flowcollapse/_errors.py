"""The one error for bad input: a sentence that names the argument, the value and the cure."""


class UsageError(ValueError):
    """Input that cannot be right. The command line prints it on one line and exits with code 2."""

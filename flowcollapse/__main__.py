"""`python -m flowcollapse`, the same as `flowcollapse`."""

from .cli.process import run

if __name__ == "__main__":
    run()

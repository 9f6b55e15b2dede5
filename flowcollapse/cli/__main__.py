"""`python -m flowcollapse.cli`, the same as `flowcollapse`."""

from .process import run

if __name__ == "__main__":
    run()

"""The command line: a file a group of commands. Nothing heavy is imported before a command runs.

Every command prints for people, or with `--json` exactly one JSON object to stdout. Exit codes: 0 done, 2 something
that the user can mend, 3 what was required of a model is not met, 130 interrupted, 1 anything else.
"""

import os

# Each module adds its commands to the app, in this order.
# isort: off
from tunewright.cli import train, check, quickstart, label, use, generate, compare, robust, runs, describe, serve  # noqa: F401

# isort: on
from tunewright.cli._app import app


def main() -> None:
    """The entry point of `tunewright`.

    Threads that wait for each other give up the processor: torch's default is to spin, which on a machine that is busy
    with something else makes a training step ten times slower and more.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="tunewright")


__all__ = ["app", "main"]

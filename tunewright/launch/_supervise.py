"""A run in other processes on this machine: they are started, listened to and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tunewright.errors import TunewrightError
from tunewright.launch._words import Listener

SECONDS_BETWEEN_LOOKS = 0.1


class Process(Protocol):
    """What runs elsewhere."""

    def poll(self) -> int | None:
        """None while it runs, then its exit code: −n where signal n killed it."""

    def stop(self) -> None:
        """Let it end after the step in progress, with a checkpoint."""

    def kill(self) -> None:
        """End it at once, with all that it has started."""


def supervise(process: Process, listener: Listener, stopped: Callable[[], bool]) -> int:
    """Listen to a process until it ends, and give its exit code: 128 + n where signal n killed it.

    It is stopped when `stopped` says so. Whatever `stopped` raises, such as KeyboardInterrupt, kills it.
    """
    try:
        while (code := process.poll()) is None:
            listener.listen()
            if stopped():
                process.stop()
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except BaseException:
        process.kill()
        raise
    listener.listen()
    return code if code >= 0 else 128 - code


def refuse_failure(code: int, listener: Listener, folder: Path) -> None:
    """Raise what the processes ended with, if it was no success."""
    error = listener.error
    if isinstance(error, TunewrightError):
        raise error
    if code > 128:  # what the others then told is that they lost it
        how = f"To go on: tunewright resume {folder}" if listener.started else "It had not begun to train."
        raise Killed(
            f"A process of {folder} was killed by signal {code - 128}, perhaps because memory ran out. {how}"
        ) from error
    if error or code:
        raise error or RuntimeError(f"A process ended with exit code {code}; see above.")


class Killed(TunewrightError):
    """A process of a run was killed, which the run itself could not say."""

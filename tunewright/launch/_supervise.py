"""A run in other processes on this machine: they are started, listened to and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tunewright.errors import TunewrightError
from tunewright.launch._words import Listener

SECONDS_BETWEEN_LOOKS = 0.1


def supervise(command: Sequence[str], listener: Listener, stopped: Callable[[], bool]) -> int:
    """Run a command, with its output on stderr, and give its exit code: 128 + n where signal n killed it.

    When `stopped` says so the input of the processes ends, and they with a checkpoint; it ends, too, when this process
    is killed. Whatever `stopped` raises, such as KeyboardInterrupt, ends them at once.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            while process.poll() is None:
                listener.listen()
                if stopped():
                    process.stdin.close()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except BaseException:
            _end(process)
            raise
    listener.listen()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    process.terminate()  # torchrun then ends the others, which are in sessions of their own
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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

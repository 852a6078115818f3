"""Processes that belong to this one: started again when they end, and told to leave by the end of their input.

The input of a child ends also when this process is killed, so that none is ever left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from structlog import get_logger

log = get_logger()

SECONDS_TO_LEAVE = 30.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
EMPTY: Mapping[str, str] = {}


class Child:
    """A Python module that runs in a process of its own.

    Args:
        module: as after `python -m`.
        arguments: its own.
        environment: what its environment has beside this process's.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), environment: Mapping[str, str] = EMPTY) -> None:
        self.module = module
        self.command = [sys.executable, "-m", module, *arguments]
        self.environment = {**os.environ, **environment}
        self.process: subprocess.Popen[bytes] | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watches {module}", daemon=True)

    def start(self) -> Child:
        self._thread.start()
        return self

    def leave(self) -> None:
        """Tell it to leave, and wait until it has."""
        self._leaving.set()
        process = self.process
        if process and process.stdin:
            process.stdin.close()
            try:
                process.wait(SECONDS_TO_LEAVE)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()

    def _watch(self) -> None:
        wait = FIRST_WAIT
        while not self._leaving.is_set():
            began = time.monotonic()
            # in a group of its own: Ctrl-C is for the parent, which then tells its children
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, env=self.environment, start_new_session=True
            )
            code = self.process.wait()
            if self._leaving.is_set():
                return
            wait = FIRST_WAIT if time.monotonic() - began > LONGEST_WAIT else min(2 * wait, LONGEST_WAIT)
            log.error("process ended", module=self.module, code=code, starts_again_in=wait)
            self._leaving.wait(wait)


def at_signals(leave: Callable[[], None]) -> None:
    """Call `leave` once, at SIGTERM or Ctrl-C."""
    told = threading.Event()

    def once(*_: object) -> None:
        if not told.is_set():
            told.set()
            leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, once)


def when_told_to_leave(leave: Callable[[], None]) -> None:
    """Call `leave` at SIGTERM or Ctrl-C, and, in a child, when the pipe ends by which its parent holds it.

    By hand, or under systemd or in a container, where the input is a terminal or /dev/null, it is not waited for.
    """

    def wait() -> None:
        while os.read(0, 4096):
            pass
        leave()

    at_signals(leave)
    with contextlib.suppress(OSError):  # it has no input at all
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            threading.Thread(target=wait, daemon=True).start()

"""Ctrl-C and SIGTERM end a run after the step in progress, with a checkpoint; a second one ends it at once.

So does a reward that cannot score an answer, with a checkpoint of the step before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tunewright.engine import checkpoint
from tunewright.errors import DataError

if TYPE_CHECKING:
    from tunewright.engine.job import Job
    from tunewright.engine.state import TrainState


@contextmanager
def until_interrupted() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the user asked to stop. Outside the main thread nothing is caught."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_if_refused(job: Job, state: TrainState) -> Iterator[None]:
    """Inside a step is taken. Where a reward cannot score its answers, the steps before it are kept by a checkpoint."""
    try:
        yield
    except DataError:
        state.step -= 1  # the weights have not moved yet
        if job.processes.first and state.step:
            checkpoint.write(job.folder / "checkpoints", state.step, state.tensors(), state.numbers())
        raise

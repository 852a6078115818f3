"""Whether what was trained shows where models answer: looked at before a job has succeeded, in another process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tunewright.launch.apart import FORKED
from tunewright.service.inference.protocol import Effect, Finding, ModelRef

SECONDS_BETWEEN_LOOKS = 0.1
PATIENCE = 900.0
"""Seconds after which it is not known."""


def look_apart(model: ModelRef, task: str, device: str, enough: Callable[[], bool]) -> Finding:
    """Look in a process of its own, which takes the memory with it when it ends.

    Args:
        device: `auto`, or as in a recipe's training.
        enough: called ten times a second; where it says so it is not known. Whatever it raises is raised.
    """
    here, there = FORKED.Pipe()
    process = FORKED.Process(target=_look, args=(there, model, task, device))
    process.start()
    there.close()
    end = time.monotonic() + PATIENCE
    try:
        while not here.poll(SECONDS_BETWEEN_LOOKS):
            if enough():
                return Finding(Effect.UNKNOWN, "there was no time to look")
            if time.monotonic() > end:
                return Finding(Effect.UNKNOWN, f"it took more than {PATIENCE:.0f} seconds")
        effect, why = here.recv()
        return Finding(Effect(effect), why)
    except EOFError:  # it was killed, such as for its memory
        return Finding(Effect.UNKNOWN, "the process that looked has ended")
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


def _look(pipe: Any, model: ModelRef, task: str, device: str) -> None:
    os.setsid()  # Ctrl-C is for the process that started it
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    from tunewright.service.inference.effect import effect_of

    found = effect_of(model, task, device)
    pipe.send((str(found.effect), found.why))


def _end_with(pipe: Any) -> None:
    """Who asked never sends anything: what comes is its end, after which nobody wants to know."""
    pipe.poll(None)
    os._exit(1)

"""A run in a process of its own: what happens to it, such as a crash in CUDA, does not happen to who started it.

Processes are forked from one that has torch and transformers in memory, so that a run begins at once.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path

from tunewright.engine.job import Watcher
from tunewright.folder import Run
from tunewright.launch._supervise import refuse_failure, supervise
from tunewright.launch._words import Listener
from tunewright.launch._worker import work
from tunewright.recipe import Recipe

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tunewright.launch._preload"])
SECONDS_TO_END = 5.0


def execute(
    recipe: Recipe,
    folder: Path,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Run:
    """Execute a recipe as `launch` does, in a process that is stopped, with a checkpoint, when `stopped` says so.

    `stopped` is asked ten times a second; whatever it raises kills the run and is raised.

    Raises:
        What the run raises: TunewrightError, Interrupted.
        Killed: its process was, by a signal.
    """
    with tempfile.TemporaryDirectory() as place:
        path, words = Path(place) / "recipe.yaml", Path(place) / "words.jsonl"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        listener = Listener(words, watchers)
        with _Apart(str(path), str(folder), "resume" if resume else "start", str(words)) as process:
            refuse_failure(supervise(process, listener, stopped), listener, folder)
    return Run(folder)


def warm_up() -> None:
    """Let the process that runs are forked from begin to import, so that it has done so when the first run comes."""
    forkserver.ensure_running()


class _Apart:
    """A process that works; it stops when the pipe ends, as it does when this process is gone."""

    def __init__(self, *arguments: str) -> None:
        reader, self.writer = FORKED.Pipe(duplex=False)
        self.process = FORKED.Process(target=_begin, args=(reader, *arguments))
        self.process.start()
        reader.close()

    def __enter__(self) -> _Apart:
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()
        self.process.join()
        self.process.close()

    def poll(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        self.writer.close()

    def kill(self) -> None:
        self.process.terminate()
        self.process.join(SECONDS_TO_END)
        self.process.kill()


def _begin(pipe: multiprocessing.connection.Connection, *arguments: str) -> None:
    os.setsid()  # Ctrl-C is for the process that started it
    os.dup2(2, 1)
    os.dup2(pipe.fileno(), 0)
    work(*arguments)

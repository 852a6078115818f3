"""A run in a process of its own: what happens to it, such as a crash in CUDA, does not happen to who started it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tunewright.engine.job import Watcher
from tunewright.folder import Run
from tunewright.launch._supervise import refuse_failure, supervise
from tunewright.launch._words import Listener
from tunewright.recipe import Recipe


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
        how = "resume" if resume else "start"
        command = [sys.executable, "-m", "tunewright.launch._worker", str(path), str(folder), how, str(words)]
        refuse_failure(supervise(command, listener, stopped), listener, folder)
    return Run(folder)

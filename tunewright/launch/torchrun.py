"""Several data-parallel processes on this machine, started by torchrun."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.engine.interrupt import until_interrupted
from tunewright.engine.job import Watcher
from tunewright.folder import Record, Run, refuse_used
from tunewright.launch._supervise import refuse_failure, supervise
from tunewright.launch._words import Listener
from tunewright.recipe import Recipe


class _Torchrun:
    """torchrun, with its output on stderr. Its processes stop when their input ends, or this one does."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)

    def __enter__(self) -> _Torchrun:
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.__exit__(*error)

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.terminate()  # it ends the others
        self.process.wait()


def execute(recipe: Recipe, folder: Path, watchers: Sequence[Watcher] = (), resume: bool = False) -> Run:
    """Run a recipe in `training.processes` processes. Watchers get what the first one tells.

    Raises what the first process to fail raised; TunewrightError where one was killed.
    """
    if not resume:
        refuse_used(folder)
    with tempfile.TemporaryDirectory() as place:
        path, words = Path(place) / "recipe.yaml", Path(place) / "words.jsonl"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        listener = Listener(words, watchers)
        command = [
            sys.executable,
            "-m",
            "tunewright.launch._agent",
            "--standalone",
            f"--nproc-per-node={recipe.training.processes}",
            "-m",
            "tunewright.launch._worker",
            str(path),
            str(folder),
            "resume" if resume else "start",
            str(words),
        ]
        try:
            with _Torchrun(command) as processes, until_interrupted() as stopped:
                refuse_failure(supervise(processes, listener, stopped), listener, folder)
        except BaseException as error:
            if listener.started:  # the first process may not have been the one that failed
                Record(folder, first=True).break_off(error, {})
            raise
    return Run(folder)

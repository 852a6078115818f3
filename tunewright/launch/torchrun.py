"""Several data-parallel processes on this machine, started by torchrun."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunewright.engine.interrupt import until_interrupted
from tunewright.engine.job import Watcher
from tunewright.errors import TunewrightError
from tunewright.folder import Record, Run, refuse_used
from tunewright.launch._words import Listener
from tunewright.recipe import Recipe

SECONDS_BETWEEN_LOOKS = 0.1


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
            _refuse_failure(_supervise(command, listener), listener, folder)
        except BaseException as error:
            if listener.started:  # the first process may not have been the one that failed
                Record(folder, first=True).break_off(error, {})
            raise
    return Run(folder)


def _supervise(command: Sequence[str], listener: Listener) -> int:
    """Run torchrun, with its output on stderr, and give its exit code.

    On Ctrl-C or SIGTERM the input of the processes ends, and they with a checkpoint. It ends, too, when this process is
    killed. A second Ctrl-C ends them at once.
    """
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True) as process,
        until_interrupted() as stopped,
    ):
        assert process.stdin is not None
        try:
            while process.poll() is None:
                listener.listen()
                if stopped():
                    process.stdin.close()
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    listener.listen()
    return process.returncode


def _refuse_failure(code: int, listener: Listener, folder: Path) -> None:
    """Raise what the processes ended with, if it was no success."""
    error = listener.error
    if isinstance(error, TunewrightError):
        raise error
    if code > 128:  # what the others then told is that they lost it
        how = f"To go on: tunewright resume {folder}" if listener.started else "It had not begun to train."
        raise TunewrightError(
            f"A process of {folder} was killed by signal {code - 128}, perhaps because memory ran out. {how}"
        ) from error
    if error or code:
        raise error or RuntimeError(f"torchrun ended with exit code {code}; see above.")

"""Several data-parallel processes on this machine, started by torchrun."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.engine import checkpoint
from tunewright.errors import Interrupted, TunewrightError
from tunewright.folder import Run, refuse_used
from tunewright.recipe import Recipe


def execute(recipe: Recipe, folder: Path, watchers: Sequence[Any] = (), resume: bool = False) -> Run:
    """Run a recipe in `training.processes` processes. Watchers stay silent: the lines are in RUN/metrics.jsonl.

    Raises TunewrightError where the processes fail; what they wrote to stderr says why.
    """
    if not resume:
        refuse_used(folder)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
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
        ]
        code = _supervise(command, folder)
    if code:
        raise TunewrightError(
            f"The {recipe.training.processes} processes of {folder} failed (exit code {code}); see above."
        )
    return Run(folder)


def _supervise(command: Sequence[str], folder: Path) -> int:
    """Run torchrun and wait for it. Ctrl-C is passed on once, so that the processes write a checkpoint and end."""
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            written = checkpoint.steps(folder / "checkpoints")
            if not written:
                raise
            raise Interrupted(written[-1]) from None

"""The models on a run's way (`training.snapshots`): RUN/snapshots/step-N is the model as it was after step N."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts.save import save
from tunewright.methods import Method
from tunewright.tasks.base import Model

FOLDER = "snapshots"


@dataclass(frozen=True)
class Snapshots:
    """Saves the model, as a watcher of the loop, at every evaluation, or where one would be if there were rows for it.

    Attributes:
        every: steps.
        judged: inside, the model has the weights that are evaluated and saved: the moving average, where there is one.
    """

    model: Model
    method: Method
    every: int
    folder: Path
    judged: Callable[[], AbstractContextManager[None]]

    def __call__(self, line: Mapping[str, Any]) -> None:
        if "loss" in line and (line["step"] % self.every == 0 or line["step"] == line["total"]):
            with self.judged():
                save(self.model, self.method, self.folder / FOLDER / f"step-{line['step']}")

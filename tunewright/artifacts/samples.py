"""Sample pictures of a run: the same prompts and the same noise before, during and after the training.

RUN/samples/
  prompts.json  what they show
  before/   1.png, 2.png, …: one a prompt
  step-40/  …
  after/    with the weights that the run ends with
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts.save import beside
from tunewright.engine.device import computing
from tunewright.tasks.base import Model

PROMPTS = "prompts.json"


@dataclass(frozen=True)
class Sampler:
    """Draws the pictures; as a watcher of the loop, every so many steps.

    A picture depends on the weights, the prompt and the seed alone, and the loop seeds every step anew: so drawing it
    changes nothing in the run.

    Attributes:
        every: steps; None: only before and after.
        judged: inside, the model has the weights that are evaluated and saved: the moving average, where there is one.
    """

    model: Model
    prompts: Sequence[str]
    steps: int
    seed: int
    every: int | None
    folder: Path
    device: Any
    precision: str
    judged: Callable[[], AbstractContextManager[None]]

    def __call__(self, line: Mapping[str, Any]) -> None:
        step = line.get("step", 0)
        if self.every and "loss" in line and step % self.every == 0 and step < line["total"]:
            with self.judged():
                self.draw(f"step-{step}")

    def draw(self, name: str) -> None:
        """Put the pictures into `samples/NAME`, in place of those that an interrupted run left there."""
        self.model.module.to(self.device)
        with computing(self.precision, self.device):
            images = self.model.task.images(  # type: ignore[attr-defined]
                self.model, self.prompts, steps=self.steps, seed=self.seed
            )
        self.folder.mkdir(exist_ok=True)
        (self.folder / PROMPTS).write_text(json.dumps(list(self.prompts), ensure_ascii=False) + "\n", encoding="utf-8")
        place = self.folder / name
        with beside(place) as draft:
            for number, image in enumerate(images, 1):
                image.save(draft / f"{number}.png")
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)

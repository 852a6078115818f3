"""`merged`: one folder that transformers or diffusers loads by itself, with what was added folded into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tunewright.artifacts.targets.base import Target, dtype_of, merge, save_whole
from tunewright.tasks.base import Model


class Merged(Target):
    name: ClassVar[str] = "merged"
    of_modules: ClassVar[bool] = True
    by_code: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = (*Target.tasks, "text-to-image")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        merge(model)
        model.module.to(dtype_of(precision))
        save_whole(model, folder)


TARGET = Merged()

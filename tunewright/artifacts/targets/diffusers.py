"""`diffusers`: the LoRA of a pipeline alone, or the word that it learned, as diffusers' pipelines load them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from tunewright.artifacts.targets.base import Target
from tunewright.errors import MethodError
from tunewright.methods._lora_file import DIFFUSERS
from tunewright.methods.textual_inversion import EMBEDS
from tunewright.tasks.base import Model


class Diffusers(Target):
    name: ClassVar[str] = "diffusers"
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    tasks: ClassVar[tuple[str, ...]] = ("text-to-image",)

    files: ClassVar[tuple[str, ...]] = (DIFFUSERS, EMBEDS)

    def check(self, weights: Path, precision: str) -> None:
        super().check(weights, precision)
        if not any((weights / name).is_file() for name in self.files):
            raise MethodError("This model has no LoRA that diffusers loads. Export it as merged.")

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        shutil.copytree(weights, folder, dirs_exist_ok=True)


TARGET = Diffusers()

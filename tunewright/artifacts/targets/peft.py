"""`peft`: the adapter alone, over its base, for everything that reads PEFT's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from tunewright.artifacts.card import read_card
from tunewright.artifacts.targets.base import Target
from tunewright.errors import MethodError
from tunewright.methods._lora_file import CONFIG
from tunewright.tasks._zero_shot import HEAD as PROMPT_HEAD
from tunewright.tasks.base import Model


class Peft(Target):
    name: ClassVar[str] = "peft"
    of_modules: ClassVar[bool] = True
    by_code: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)

    def check(self, weights: Path, precision: str) -> None:
        super().check(weights, precision)
        if not (weights / CONFIG).is_file():
            card = read_card(weights)
            if card and card.make_method().saved_as == "adapter":
                raise MethodError("PEFT has no bottleneck adapters. The run's own model folder is its adapter.")
            raise MethodError("This model has no PEFT adapter: its own weights were trained. Export it as merged.")

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        if hasattr(model.module, PROMPT_HEAD):
            raise MethodError("PEFT cannot make a head of prompts, over which this adapter lies. Export it as merged.")
        shutil.copytree(weights, folder, dirs_exist_ok=True)


TARGET = Peft()

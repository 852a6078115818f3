"""`kohya`: the LoRA of a pipeline as kohya's scripts name it, for what draws on it: ComfyUI, A1111, InvokeAI."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tunewright.artifacts.targets.base import dtype_of
from tunewright.artifacts.targets.diffusers import Diffusers
from tunewright.methods._diffusers_file import cast, evened, read_lora, recognised, write_kohya
from tunewright.methods._lora_file import DIFFUSERS
from tunewright.tasks.base import Model
from tunewright.tasks.text_to_image import model_of

FILE = "lora.safetensors"


class Kohya(Diffusers):
    name: ClassVar[str] = "kohya"
    files: ClassVar[tuple[str, ...]] = (DIFFUSERS,)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "bf16")

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        lora = cast(recognised(evened(read_lora(weights))), dtype_of(precision))
        write_kohya(lora, model_of(model.module).unet.config, folder / FILE)


TARGET = Kohya()

"""The forms that a tuned model can be exported in, a file each."""

from __future__ import annotations

from tunewright.artifacts.targets.base import Target
from tunewright.artifacts.targets.diffusers import TARGET as DIFFUSERS
from tunewright.artifacts.targets.gguf import TARGET as GGUF
from tunewright.artifacts.targets.kohya import TARGET as KOHYA
from tunewright.artifacts.targets.merged import TARGET as MERGED
from tunewright.artifacts.targets.onnx import TARGET as ONNX
from tunewright.artifacts.targets.peft import TARGET as PEFT
from tunewright.artifacts.targets.quantized import TARGET as QUANTIZED

TARGETS: dict[str, Target] = {target.name: target for target in (PEFT, MERGED, QUANTIZED, ONNX, GGUF, DIFFUSERS, KOHYA)}

__all__ = ["TARGETS", "Target"]

"""How others run an export: with transformers, PEFT, diffusers, onnxruntime or llama.cpp, and not a line of Tunewright.

These files import nothing else of the package, and the folder above is run by its path in a process of its own, so that
whatever makes the export behave well is in the export. They answer the questions of `questions.py`: logits on token ids
or on images, greedy decoding, the token ids of prompts, the pixels of images, and what the classes are called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Answers, Reader, answers, hash_of, logits_of
from .graphs import ONNX, Onnx
from .in_torch import Module, Torch, read_peft, read_transformers
from .llama import GGUF, read_gguf
from .pipelines import Diffusers, read_pipeline

__all__ = [
    "GGUF",
    "ONNX",
    "READERS",
    "Answers",
    "Diffusers",
    "Module",
    "Reader",
    "Torch",
    "answers",
    "ask",
    "hash_of",
    "logits_of",
    "main",
]

READERS = {
    "peft": read_peft,
    "merged": read_transformers,
    "quantized": read_transformers,
    "onnx": Onnx,
    "gguf": read_gguf,
    "diffusers": read_pipeline,
    "kohya": read_pipeline,
}


def ask(target: str, folder: Path, questions: Mapping[str, Any]) -> Answers:
    """Load an export as its users do, and ask it everything."""
    return answers(READERS[target](folder, questions), questions)


def main(target: str, folder: Path, work: Path) -> None:
    """Read questions.json in the folder `work`, and leave answers.json and logits.safetensors there."""
    from safetensors.numpy import save_file

    found = ask(target, folder, json.loads((work / "questions.json").read_text(encoding="utf-8")))
    save_file({str(i): np.ascontiguousarray(row) for i, row in enumerate(found.logits)}, work / "logits.safetensors")
    rest = {name: getattr(found, name) for name in ("texts", "prompts", "by", "pixels", "labels")}
    (work / "answers.json").write_text(json.dumps(rest), encoding="utf-8")

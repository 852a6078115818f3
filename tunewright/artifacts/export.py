"""Exporting a tuned model in another form."""

from __future__ import annotations

from pathlib import Path

from tunewright.artifacts.load import load
from tunewright.artifacts.save import save
from tunewright.errors import OutputError, RecipeError
from tunewright.methods import Adapter, Full
from tunewright.methods._peft import merge_adapter

TARGETS = ("merged",)


def export(where: str | Path, target: str, folder: Path) -> Path:
    """Write a run or adapter to `folder` as a model of its own.

    merged: one transformers folder with what was added folded into the weights.

    Raises OutputError where the folder is not empty, MethodError where the adapter cannot be merged.
    """
    if target not in TARGETS:
        raise RecipeError(f"{target} is no export target. Known: {', '.join(TARGETS)}.")
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty. Name a new folder.")
    model = load(where)
    if hasattr(model.module, "peft_config"):
        merge_adapter(model)
    elif any(hasattr(m, "bottleneck") for m in model.module.modules()):
        Adapter().merge(model)  # says why not
    save(model, Full(), folder)
    return folder

"""Exporting a tuned model in another form."""

from __future__ import annotations

import os
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

    Raises OutputError where the folder is not empty or cannot be made, MethodError where the adapter cannot be merged.
    """
    if target not in TARGETS:
        raise RecipeError(f"{target} is no export target. Known: {', '.join(TARGETS)}.")
    _refuse_place(folder)
    model = load(where)
    if hasattr(model.module, "peft_config"):
        merge_adapter(model)
    elif any(hasattr(m, "bottleneck") for m in model.module.modules()):
        Adapter().merge(model)  # says why not
    save(model, Full(), folder)
    return folder


def _refuse_place(folder: Path) -> None:
    """Before the model is loaded, which takes its time."""
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty. Name a new folder.")
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be made: {place} is no folder that can be written to. Name another place.")

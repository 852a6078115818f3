"""The bases of a service: models in the folders that its owner named, by the names of their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunewright.artifacts.card import CARD
from tunewright.artifacts.load import card_of_adapter, is_adapter, task_of_head, weights_folder
from tunewright.errors import BaseModelError
from tunewright.tasks._modules import FILE as MODULE
from tunewright.tasks._modules import is_module_folder
from tunewright.tasks._pipeline import is_pipeline
from tunewright.tiny_base import NAME, tiny_base

MARKS = ("config.json", "model_index.json", "run.json")
"""What a model's folder, a pipeline's or a run's has in it."""


def find_bases(folders: Iterable[Path]) -> dict[str, Path]:
    """Every model that is one of these folders or lies right in one, by its name; and the tiny one of the package.

    Raises BaseModelError where a folder holds none or one that cannot answer, or two have the same name.
    """
    found: dict[str, Path] = {}
    for folder in (Path(one).expanduser().absolute() for one in folders):
        here = [folder] if _is_model(folder) else sorted(path for path in folder.glob("*") if _is_model(path))
        if not folder.is_dir():
            raise BaseModelError(f"--models {folder}: there is no such folder.")
        if not here:
            raise BaseModelError(f"{folder} holds no model: it, or folders in it, need one of {', '.join(MARKS)}.")
        for path in here:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path.name):
                raise BaseModelError(f"{path}: a base is called by letters, digits and . _ - alone. Rename the folder.")
            if path.name in found:
                raise BaseModelError(f"{found[path.name]} and {path} have the same name. Rename one of them.")
            _refuse_unusable(path)
            found[path.name] = path
    return {**found, **({NAME: tiny_base()} if NAME not in found else {})}


def one_that_chats(bases: Mapping[str, Path]) -> str:
    """The first base that answers conversations, by what stands beside its weights; the first where none does."""
    return next((name for name, folder in bases.items() if _chats(folder)), next(iter(bases)))


def task_of(folder: Path) -> str | None:
    """What a base answers, by what stands beside its weights; None where that does not tell."""
    with suppress(BaseModelError):  # a run that has lost its model
        folder = weights_folder(folder)
    if is_pipeline(str(folder)):
        return "text-to-image"
    architectures = _read(folder / "config.json").get("architectures") or ()
    return _read(folder / CARD).get("task") or task_of_head([str(one) for one in architectures])


def _chats(folder: Path) -> bool:
    speaks, folder = task_of(folder) == "text-generation", weights_folder(folder)
    if card := _read(folder / CARD):
        return speaks and bool(card.get("chats"))
    template = _read(folder / "tokenizer_config.json").get("chat_template")
    return speaks and (bool(template) or (folder / "chat_template.jinja").is_file())


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; {} where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_model(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in (*MARKS, MODULE))


def _refuse_unusable(folder: Path) -> None:
    """Raises BaseModelError for a run without a model or without its base, and for a module that no run names."""
    weights = weights_folder(folder)
    if is_adapter(weights) and Path(below := card_of_adapter(weights).base).is_absolute() and not Path(below).is_dir():
        raise BaseModelError(
            f"{folder} is a run on {below}, which is not there: put it back. Or where it is, write the run as a model "
            f"of its own (tunewright export {folder}), and name that."
        )
    if weights == folder and is_module_folder(str(folder)):
        raise BaseModelError(
            f"{folder} is made by code, and none is run because a folder names it ({MODULE}). Name the run that it was "
            "trained in: the folder with its run.json."
        )

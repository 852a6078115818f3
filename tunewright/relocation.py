"""A run whose base lies elsewhere now: its documents are made to name the new place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

from tunewright.artifacts.card import CARD
from tunewright.artifacts.fingerprint import fingerprint
from tunewright.artifacts.load import card_of_adapter, is_adapter, shape_of
from tunewright.engine.processes import Processes
from tunewright.errors import BaseModelError
from tunewright.folder import INFO, RECIPE, occupied, open_run
from tunewright.methods._lora_file import CONFIG as PEFT_CONFIG
from tunewright.recipe import as_yaml, read_document
from tunewright.tasks._pretrained import refuse_missing
from tunewright.tiny_base import in_package

DOCUMENTS = (INFO, RECIPE, CARD, PEFT_CONFIG)


def relocate(run: str | PathLike[str], base: str | PathLike[str]) -> Path:
    """Let a run, or an adapter's folder, name its base where that lies now; from then on it is used as ever.

    Args:
        base: the folder of the base, or the run that this one began from.

    Returns the folder of the run.

    Raises:
        BaseModelError: the base has other weights than the run began with, or there are none.
        OutputError: the run is training.
    """
    folder, given = Path(run).expanduser().absolute(), Path(in_package(str(base))).expanduser()
    moves = _moves(folder, str(given.absolute()) if given.exists() else str(base))
    old, new = next(iter(moves.items()))
    refuse_missing(new)
    found = fingerprint(new)
    if found is None:
        raise BaseModelError(f"{base} holds no weights (safetensors). Name the folder of the base of {run}.")
    if _known(folder, old) - {found}:
        raise BaseModelError(
            f"The weights of {base} are not those of {old}, which {run} began with. Name the folder that has them."
        )
    with occupied(folder, Processes()) if (folder / INFO).is_file() else nullcontext():
        rename_places(folder, moves)
    return folder


def _moves(folder: Path, named: str) -> dict[str, str]:
    """The new place of the base's weights by the old one; then that of the run that the recipe names, where it does."""
    if not (folder / INFO).is_file() and not is_adapter(folder):
        raise BaseModelError(f"{folder} is no run and no adapter's folder, so nothing in it names a base.")
    weights = shape_of(named)
    if not (folder / INFO).is_file():
        return {card_of_adapter(folder).base: weights}
    run = open_run(folder)
    moves = {run.info["base"]: weights}
    if weights != named and run.recipe.base not in moves:
        moves[run.recipe.base] = named
    return moves


def _known(folder: Path, base: str) -> set[str]:
    """The fingerprints that the documents have of a base."""
    documents = (json.loads(path.read_text(encoding="utf-8")) for path in _documents(folder) if path.suffix == ".json")
    return {one["base_sha256"] for one in documents if one.get("base") == base and one.get("base_sha256")}


def _documents(folder: Path) -> Iterator[Path]:
    return (path for name in DOCUMENTS for path in folder.rglob(name))


def rename_places(folder: Path, moves: Mapping[str, str]) -> None:
    """Let the documents in a folder name other paths: those that are keys, and what lies within them."""
    for path in _documents(folder):
        if path.suffix == ".yaml":
            said = as_yaml(_moved(read_document(path), moves))
        else:
            document = _moved(json.loads(path.read_text(encoding="utf-8")), moves)
            said = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(said, encoding="utf-8")
        draft.replace(path)


def _moved(value: Any, moves: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _moved(inner, moves) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, moves) for inner in value]
    if isinstance(value, str):
        for old, new in moves.items():
            if value == old or value.startswith(old + "/"):
                return new + value[len(old) :]
    return value

"""Runs that move between machines: where bases and cached models lay is written beside a run, and set right elsewhere.

A run names by absolute paths what it began from and was rewarded by. `places.json` in its folder says which of these
paths were the service's own, so that another machine can put its own in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.recipe import as_yaml, read_document

FILE = "places.json"
DOCUMENTS = ("run.json", "recipe.yaml", "tunewright.json", "adapter_config.json")


def note_places(folder: Path, bases: Mapping[str, Path], cache: Path) -> None:
    """Write down where things lie here."""
    places = {"bases": {name: str(path) for name, path in bases.items()}, "cache": str(cache)}
    (folder / FILE).write_text(json.dumps(places, indent=2) + "\n", encoding="utf-8")


def relocate(folder: Path, bases: Mapping[str, Path], cache: Path) -> None:
    """Let a run that came from elsewhere name what lies here."""
    then = json.loads((folder / FILE).read_text(encoding="utf-8"))
    moves = {then["bases"][name]: str(path) for name, path in bases.items() if name in then["bases"]}
    moves = {old: new for old, new in {**moves, then["cache"]: str(cache)}.items() if old != new}
    if not moves:
        return
    for path in (path for name in DOCUMENTS for path in folder.rglob(name)):
        if path.suffix == ".yaml":
            path.write_text(as_yaml(_moved(read_document(path), moves)), encoding="utf-8")
        else:
            document = _moved(json.loads(path.read_text(encoding="utf-8")), moves)
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    note_places(folder, bases, cache)


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

"""Runs that move between machines: where bases and cached models lay is written beside a run, and set right elsewhere.

A run names by absolute paths what it began from and was rewarded by. `places.json` in its folder says which of these
paths were the service's own, so that another machine can put its own in their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tunewright.relocation import rename_places

FILE = "places.json"


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
    rename_places(folder, moves)
    note_places(folder, bases, cache)

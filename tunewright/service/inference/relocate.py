"""A run that came from another machine names its base by a path of that machine: here it is given this one's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from tunewright.artifacts.card import CARD
from tunewright.methods._lora_file import CONFIG
from tunewright.methods.adapter import CONFIG as BOTTLENECK


def relocate(run: Path, base: str) -> None:
    """Let a run's record and its adapters name `base`, where the base that they name is not here.

    The fingerprints of the base's weights stay, so that another base is refused when the run is loaded. What was
    merged into a start of its own (RUN/start/base) is found beside the run.
    """
    if (run / "start" / "base").is_dir():
        return
    for path, key in _places(run):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get(key) and found[key] != base and not Path(found[key]).exists():
            draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
            draft.write_text(json.dumps({**found, key: base}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            draft.replace(path)


def _places(run: Path) -> Iterator[tuple[Path, str]]:
    names = {CARD: "base", BOTTLENECK: "base", CONFIG: "base_model_name_or_path"}
    for folder in (run, run / "model", run / "start" / "adapter"):
        yield from ((folder / name, key) for name, key in names.items() if (folder / name).is_file())
    if (run / "run.json").is_file():
        yield run / "run.json", "base"

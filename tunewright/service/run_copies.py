"""A run's folder on its way into the storage: the state from which it can go on, and what is kept of it in the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tunewright.artifacts.snapshots import FOLDER as SNAPSHOTS
from tunewright.engine import checkpoint
from tunewright.folder import LOCK
from tunewright.service.relocation import note_places

REPORT = "report.html"


def copy_state(run: Path, folder: Path, bases: Mapping[str, Path], cache: Path) -> int:
    """Copy a run as it is now, whatever it goes on to write. The step of its newest checkpoint; 0: none."""
    shutil.rmtree(folder, ignore_errors=True)
    if not run.is_dir():  # it was stopped before it began
        return 0
    try:
        shutil.copytree(run, folder, copy_function=_link_or_copy, ignore=_passing)
    except shutil.Error:  # a checkpoint was removed, because there are newer ones
        return 0
    note_places(folder, bases, cache)
    return max(checkpoint.steps(folder / "checkpoints"), default=0)


def copy_finished(run: Path, model: Path, folder: Path, bases: Mapping[str, Path], cache: Path) -> None:
    """Copy what is kept of a run, with this as its model. Its report names bases as clients do."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder, copy_function=_link_or_copy, ignore=_unfinished)
    shutil.copytree(model, folder / "model", copy_function=_link_or_copy)
    note_places(folder, bases, cache)
    report = folder / REPORT
    if report.is_file():
        report.write_text(without_places(report.read_text(encoding="utf-8"), bases, cache), encoding="utf-8")


def without_places(text: str, bases: Mapping[str, Path], *folders: Path) -> str:
    """A text for clients, to whom it is of no use, and no business, where things lie here."""
    for name, path in bases.items():
        text = text.replace(str(path), name)
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "here")
    return text


def _link_or_copy(source: str, target: str) -> None:
    """Weights are written once and then renamed: a link is a copy of them. Everything else goes on being written."""
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _passing(folder: str, names: list[str]) -> set[str]:
    """What is no part of a state: locks, drafts, and models, which are made again."""
    return {name for name in names if name in (LOCK, "model", SNAPSHOTS, REPORT) or name.endswith(".draft")}


def _unfinished(folder: str, names: list[str]) -> set[str]:
    """What is no part of a finished run."""
    return _passing(folder, names) - {REPORT} | ({"checkpoints"} & set(names))

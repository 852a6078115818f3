"""Checkpoints: written beside, synced, then renamed, so that one is either whole or absent; safetensors and JSON.

checkpoints/step-40/
  state.safetensors     weights, averages, optimizer state: one flat map of tensors
  state.json            step, cursor, best so far, numbers of the optimizer, and the checksum of the tensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.errors import CheckpointError, OutputError

TENSORS, NUMBERS = "state.safetensors", "state.json"


def write(folder: Path, step: int, tensors: Mapping[str, Any], numbers: Mapping[str, Any]) -> Path:
    """Write checkpoint `step` into `folder`. Raises OutputError, and leaves nothing, where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target, draft = folder / f"step-{step}", folder / f".step-{step}.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, draft / TENSORS)
        described = {**numbers, "step": step, "sha256": _checksum(draft / TENSORS)}
        (draft / NUMBERS).write_text(json.dumps(described), encoding="utf-8")
        for path in (draft / TENSORS, draft / NUMBERS, draft):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise OutputError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Free some space and resume."
        ) from error
    return target


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and numbers of one checkpoint. Raises CheckpointError where it is damaged.

    The tensors are mapped from the file: memory is taken only by those that are used.
    """
    from safetensors.torch import load_file

    try:
        numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
        if numbers["sha256"] != _checksum(folder / TENSORS):
            raise CheckpointError(f"{folder} is damaged: its checksum differs.")
        return load_file(folder / TENSORS), numbers
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if path.name[5:].isdigit())


def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, with a notice for each damaged one that was passed over.

    Raises CheckpointError where there is none.
    """
    passed: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return *read(folder / f"step-{step}"), passed
        except CheckpointError as error:
            passed.append(f"{error} The one before it is used.")
    raise CheckpointError(f"There is no checkpoint in {folder} to continue from. " + " ".join(passed))


def prune(folder: Path, keep: set[int], last: int = 2) -> None:
    """Remove all checkpoints but the last ones and those to keep."""
    present = steps(folder)
    for step in present[:-last]:
        if step not in keep:
            shutil.rmtree(folder / f"step-{step}", ignore_errors=True)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

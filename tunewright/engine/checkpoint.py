"""Checkpoints: written beside, synced, then renamed, so that one is either whole or absent; safetensors and JSON.

checkpoints/step-40/
  state.safetensors     weights, averages, optimizer state: one flat map of tensors
  state.json            step, best so far, numbers of the optimizer, and the checksum of these and of the tensors
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

    target, draft = folder / _name(step), folder / f".{_name(step)}.draft"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, draft / TENSORS)
        described = json.loads(json.dumps({**numbers, "step": step}))
        sealed = {**described, "sha256": _checksum(draft / TENSORS, described)}
        (draft / NUMBERS).write_text(json.dumps(sealed), encoding="utf-8")
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
        seal = numbers.pop("sha256")
        if seal != _checksum(folder / TENSORS, numbers) or folder.name != _name(numbers["step"]):
            raise CheckpointError(f"{folder} is damaged: its checksum differs.")
        return load_file(folder / TENSORS), numbers
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # it may be any JSON
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
            return *read(folder / _name(step)), [f"{error} The one before it is used." for error in passed]
        except CheckpointError as error:
            passed.append(str(error))
    raise CheckpointError(
        f"No checkpoint in {folder} can be continued from: {' '.join(passed)} Start the run again in a new folder, or "
        f"remove {folder} to let it begin again in this one."
    )


def prune(folder: Path, keep: set[int], last: int = 2) -> None:
    """Remove all checkpoints but the last ones and those to keep."""
    present = steps(folder)
    for step in present[:-last]:
        if step not in keep:
            shutil.rmtree(folder / _name(step), ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step}"


def _checksum(path: Path, numbers: Mapping[str, Any]) -> str:
    """Of the tensors' file and of the numbers beside it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(numbers, sort_keys=True).encode())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writing a tuned model: beside, then renamed, so that the folder is whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tunewright.artifacts.card import Card
from tunewright.artifacts.fingerprint import fingerprint
from tunewright.errors import OutputError
from tunewright.methods import Method
from tunewright.tasks.base import Model


def save(model: Model, method: Method, folder: Path) -> None:
    """Write `model` as `method` saves it, with its card.

    Raises OutputError, and leaves what was there before, where the disk does not take it or part of it was left out.
    """
    from safetensors import SafetensorError

    try:
        with beside(folder) as draft:
            method.save(model, draft)
            card(model, method).write(draft)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"The model could not be written to {folder}: {error}. Mend that, then resume or export again."
        ) from error


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty folder to be renamed to `folder`. It lies beside it, under a name that nobody else can have taken."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(".draft", f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as place:
        draft = Path(place) / folder.name  # not the place itself, which only its owner may read
        draft.mkdir()
        yield draft


def clear_drafts(folder: Path) -> None:
    """Remove what a process that was killed left of a draft, where nobody else writes: in a run that is occupied."""
    for left in folder.glob(".*.draft"):
        shutil.rmtree(left, ignore_errors=True)


def refuse_place(folder: Path) -> None:
    """Raises OutputError where a new folder cannot be made. Asked before a model is loaded, which takes its time."""
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder} is not empty. Name a new folder.")
    if folder.resolve() == Path.cwd():  # the new folder would take its place, and leave a shell in one that is gone
        raise OutputError(f"{folder} is the folder that this runs in. Name a new folder.")
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} cannot be made: {place} is no folder that can be written to. Name another place.")


def refuse_file(path: Path) -> None:
    """Raises OutputError where a file cannot be written. Asked before the work that it is to tell of."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Name a file in it.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {path.parent} is no folder that can be written to.")


def card(model: Model, method: Method) -> Card:
    task = model.task
    whole = method.saved_as == "transformers"
    return Card(
        task=task.name,
        base="" if whole else model.base,
        method=method.model_dump(mode="json"),
        chats=model.chats,
        max_length=model.max_length,
        labels=getattr(task, "labels", None),
        kind=getattr(task, "kind", None),
        base_sha256=None if whole else fingerprint(model.base),
        templates=getattr(task, "templates", None) or None,
        pairs=model.pairs,
    )

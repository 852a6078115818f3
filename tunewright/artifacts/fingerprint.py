"""Whether a base still has the weights that it had: what was trained on it knows it by its name alone."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any

from tunewright.errors import BaseModelError
from tunewright.tasks._pipeline import INDEX

HERE: dict[str, Any] = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
BLOCKS, BLOCK = 64, 2**16
"""A file is read in so many pieces of so many bytes, spread over it: weights that trained on differ in all of them."""


def fingerprint(base: str) -> str | None:
    """SHA-256 over the sizes of a base's files and pieces of them; None where it has no files here.

    The files' names do not enter, so a folder may be moved. A base that was tuned, rescaled or converted has another
    one; a single number that was changed by hand may go unnoticed.
    """
    files = files_of(base)
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        with path.open("rb") as file:
            for place in sorted({size * i // BLOCKS for i in range(BLOCKS)}):
                file.seek(place)
                digest.update(file.read(BLOCK))
    return digest.hexdigest() if files else None


def refuse_lost(base: str, run: str | Path) -> None:
    """Raise BaseModelError where the folder of the base that a run or an adapter was trained on is not there."""
    if Path(base).is_absolute() and not Path(base).exists():
        raise BaseModelError(
            f"{run} was trained on {base}, which is not there. Put it back, or say where it is now: "
            f"tunewright relocate {shlex.quote(str(run))} --base FOLDER"
        )


def refuse_other_weights(base: str, known: str | None, record: Path) -> None:
    """Raise BaseModelError where a base is there and has other weights than `record` says that it had."""
    now = fingerprint(base) if known else None
    if now and now != known:
        raise BaseModelError(
            f"The weights of {base} are not those that the training began with. Put them back, or train anew; if you "
            f"mean these all the same, remove base_sha256 from {record}."
        )


def files_of(base: str) -> list[Path]:
    """The safetensors files of a base, in its folder or where the hub's were put when it was trained.

    A pipeline of diffusers' has them in folders, one for each component.
    """
    from transformers.utils import cached_file

    folder = Path(base)
    if not folder.is_dir():
        try:
            places = [cached_file(base, name, **HERE) for name in (INDEX, "config.json")]
        except OSError:  # no name on the hub either
            return []
        folder = next((Path(found).parent for found in places if found), folder)
    return sorted(folder.glob("*/*.safetensors" if (folder / INDEX).is_file() else "*.safetensors"))

"""Names that the service makes: ids, which nobody can guess, and those of models, which say where they come from."""

from __future__ import annotations

import re
import secrets
import string
from typing import Literal

LETTERS = string.ascii_letters + string.digits

Kind = Literal["file-", "ftjob-", "ftevent-", "ftckpt_", "upload_", "part_", "key_", "cp_"]


def random_text(length: int = 24) -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(length))


def new_id(kind: Kind) -> str:
    """Such as `file-` and 24 random characters."""
    return kind + random_text()


def model_name(base: str, tenant: str, suffix: str | None, job: str, step: int | None = None) -> str:
    """The name of what a job made: `ft:base:tenant:suffix:id`, and `:ckpt-step-N` where it is one of its checkpoints.

    A suffix is written in small letters, digits, dots and dashes: a colon or an at sign would mean something else here.
    """
    word = re.sub(r"[^a-z0-9.]+", "-", (suffix or "").lower()).strip("-")
    name = f"ft:{base}:{tenant}:{word}:{job.removeprefix('ftjob-')[:8]}"
    return name if step is None else f"{name}:ckpt-step-{step}"

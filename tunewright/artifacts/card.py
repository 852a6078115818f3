"""`tunewright.json` beside saved weights: what a folder of weights alone does not say."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import BaseModelError
from tunewright.methods import METHODS, Method
from tunewright.tasks import task_class
from tunewright.tasks.base import Task

CARD = "tunewright.json"


@dataclass(frozen=True)
class Card:
    """What stands beside saved weights.

    Attributes:
        task, labels, kind: how the model is fed, and what its outputs mean.
        base: the folder or hub name that an adapter belongs to; empty where the folder is whole.
        base_sha256: the fingerprint of the base's weights, where they lay in files.
        method: the method's own document.
        chats: whether the model was trained on conversations.
        templates: the prompts that the head was made of before it was tuned, where it was.
        max_length: the longest row in tokens that it was trained with, where the recipe set one.
        pairs: the rules that it was trained on, see `Model.pairs`.
    """

    task: str
    base: str
    method: dict[str, Any]
    chats: bool = False
    max_length: int | None = None
    labels: list[str] | None = None
    kind: str | None = None
    base_sha256: str | None = None
    templates: list[str] | None = None
    pairs: list[str] | None = None

    def make_task(self) -> Task:
        options: dict[str, Any] = {"labels": self.labels, "kind": self.kind} if self.labels else {}
        if self.templates:
            options["templates"] = self.templates
        return task_class(self.task)(**options)

    def make_method(self) -> Method:
        return METHODS[self.method["type"]].model_validate(self.method)

    def write(self, folder: Path) -> None:
        kept = {name: value for name, value in asdict(self).items() if value is not None}
        (folder / CARD).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(folder: Path) -> Card | None:
    """The card in a folder, if there is one. Raises BaseModelError for one that cannot be read."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}") from error

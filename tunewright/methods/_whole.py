"""What the methods share that train weights of the base itself and save the model whole."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tunewright.methods.base import Method
from tunewright.tasks.base import Model


class WholeModel(Method):
    """Saved as the model itself, in transformers' format."""

    saved_as: ClassVar[str] = "transformers"

    def save(self, model: Model, folder: Path) -> None:
        model.task.save(model, folder)

    def restore(self, model: Model, folder: Path) -> None:
        """Nothing to put on: the folder holds the model, and it was loaded from there."""

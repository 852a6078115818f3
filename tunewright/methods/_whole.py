"""What the methods share that train weights of the base itself and save the model whole."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tunewright.methods._saved import refuse_loss
from tunewright.methods.base import Method
from tunewright.tasks.base import Model


class WholeModel(Method):
    """Saved as the model itself, in transformers' format."""

    saved_as: ClassVar[str] = "transformers"

    def save(self, model: Model, folder: Path) -> None:
        from torch.nn import Parameter

        model.task.save(model, folder)
        plain = (p.numel() for p in model.module.parameters() if type(p) is Parameter)  # torchao packs its own kinds
        refuse_loss(folder, sum(plain))

    def restore(self, model: Model, folder: Path) -> None:
        """Nothing to put on: the folder holds the model, and it was loaded from there."""

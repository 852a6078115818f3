"""What the methods share that train weights of the base itself and save the model whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tunewright.errors import MethodError
from tunewright.methods._saved import refuse_loss
from tunewright.methods.base import Method, is_batch_norm
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn


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


class TunedTrunk(WholeModel):
    """A whole model whose trunk trains, and with it the batch norms there, if there are any.

    `train` normalizes by the rows of a step and lets the running statistics follow them; `freeze_stats` normalizes by
    the base's statistics, which stay; `freeze` keeps scale and shift as well.
    """

    batch_norm: Literal["train", "freeze_stats", "freeze"] = Field(
        "train", description="Batch norms: train, or freeze their statistics, or all of them."
    )

    @property
    def moves_statistics(self) -> bool:
        return self.batch_norm == "train"

    def settle_norms(self, module: nn.Module) -> None:
        """Freeze the batch norms where that was asked. Raises MethodError where there are none."""
        norms = [m for m in module.modules() if is_batch_norm(m)]
        if self.batch_norm != "train" and not norms:
            raise MethodError(f"batch_norm: {self.batch_norm}, but this model has no batch norm. Leave it out.")
        for norm in norms if self.batch_norm == "freeze" else ():
            norm.requires_grad_(False)

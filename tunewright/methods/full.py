"""`full`: every parameter trains."""

from __future__ import annotations

from typing import ClassVar, Literal

from tunewright.methods._whole import TunedTrunk
from tunewright.tasks.base import Model


class Full(TunedTrunk):
    """Every parameter trains; in text-to-image those of the U-Net."""

    learning_rate: ClassVar[float] = 2e-5
    trains_new_tokens: ClassVar[bool] = True
    type: Literal["full"] = "full"

    def attach(self, model: Model, seed: int = 0) -> None:
        model.module.requires_grad_(False)
        model.module.get_submodule(model.task.trunk).requires_grad_(True)
        self.settle_norms(model.module)


METHOD = Full

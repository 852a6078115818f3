"""`head`: only the task head trains, on features of the untouched base (a linear probe)."""

from __future__ import annotations

from typing import ClassVar, Literal

from tunewright.errors import MethodError
from tunewright.methods._whole import WholeModel
from tunewright.methods.base import train_only
from tunewright.tasks.base import Model


class Head(WholeModel):
    """Only the task head trains (and a pooler, where the base had none)."""

    learning_rate: ClassVar[float] = 5e-3
    type: Literal["head"] = "head"

    def attach(self, model: Model, seed: int = 0) -> None:
        heads = {*model.new, *model.task.head(model.module)}
        if not heads:
            raise MethodError(
                f"{model.task.name} has no head that could train alone. Use method: lora, freeze or full."
            )
        own = {n for n, _ in model.module.named_parameters() if n.startswith(tuple(f"{head}." for head in heads))}
        if not own:
            raise MethodError(
                "The head of this model is tied to its input embeddings, so it cannot train alone. "
                "Use method: freeze, lora or full."
            )
        train_only(model.module, own)


METHOD = Head

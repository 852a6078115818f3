"""`freeze`: the last blocks and what follows them train; the earlier layers stay bit for bit as they were."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tunewright.errors import MethodError
from tunewright.methods._whole import TunedTrunk
from tunewright.methods.base import train_only
from tunewright.tasks.base import Model


class Freeze(TunedTrunk):
    """Train the last n blocks, or everything from a named module on; what comes before stays frozen.

    "Before" is the order in which the model registers its parameters. Weights that are tied to frozen ones (a language
    model's head, often) stay frozen with them.
    """

    learning_rate: ClassVar[float] = 2e-5
    type: Literal["freeze"] = "freeze"
    last: int | None = Field(
        None, ge=1, description="How many of the trunk's last blocks train (1 if `first` is not given)."
    )
    first: str | None = Field(None, description="Name of the first module that trains, e.g. bert.encoder.layer.4.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Freeze:
        if self.last is not None and self.first is not None:
            raise ValueError("give `last` or `first`, not both")
        return self

    def attach(self, model: Model, seed: int = 0) -> None:
        start = f"{self._first_trained(model)}."
        names = [name for name, _ in model.module.named_parameters()]
        begin = next((i for i, name in enumerate(names) if name.startswith(start)), None)
        if begin is None:
            raise MethodError(f"There is no module {start[:-1]} with parameters. Blocks: {_few(_block_names(model))}.")
        train_only(model.module, set(names[begin:]) | {n for n in names if n.startswith(_dotted(model.along))})
        self.settle_norms(model.module)

    def _first_trained(self, model: Model) -> str:
        if self.first is not None:
            return self.first
        blocks = _block_names(model)
        wanted = self.last or 1
        if wanted > len(blocks):
            raise MethodError(
                f"freeze: last: {wanted} is more than the {len(blocks)} blocks there are. For all use method: full."
            )
        return blocks[-wanted]


def _block_names(model: Model) -> list[str]:
    return [name for name, _ in model.task.blocks(model.module)]


def _dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 6 else f"{names[0]} … {names[-1]}"


METHOD = Freeze

"""`freeze`: the last blocks and what follows them train; the earlier layers stay bit for bit as they were."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tunewright.errors import MethodError
from tunewright.methods._whole import TunedTrunk
from tunewright.methods.base import train_only
from tunewright.tasks.base import Model


class Freeze(TunedTrunk):
    """Train the last n blocks, or everything from a named block on; what comes before stays frozen.

    "Before" is the order in which the model registers its parameters, so stem and embeddings belong to what is frozen.
    Weights that are tied to frozen ones (a language model's head, often) stay frozen with them.
    """

    learning_rate: ClassVar[float] = 2e-5
    type: Literal["freeze"] = "freeze"
    last: int | None = Field(
        None, ge=1, description="How many of the trunk's last blocks train (1 if `until` is not given)."
    )
    until: Annotated[int, Field(ge=0, strict=True)] | str | None = Field(
        None,
        description="Freeze the blocks before this one: its name or number. layer3 freezes stem, layer1 and layer2; "
        "8 the first eight blocks.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Freeze:
        if self.last is not None and self.until is not None:
            raise ValueError("give `last` or `until`, not both")
        return self

    def attach(self, model: Model, seed: int = 0) -> None:
        start = f"{self._first_trained(model)}."
        names = [name for name, _ in model.module.named_parameters()]
        begin = next(i for i, name in enumerate(names) if name.startswith(start))
        train_only(model.module, set(names[begin:]) | {n for n in names if n.startswith(_dotted(model.along))})
        self.settle_norms(model.module)

    def _first_trained(self, model: Model) -> str:
        """The first module that trains."""
        blocks = _block_names(model)
        if isinstance(self.until, str):
            return _named(self.until, blocks, model)
        begin = len(blocks) - (self.last or 1) if self.until is None else self.until
        if not 0 <= begin < len(blocks):
            given = f"last: {self.last or 1}" if self.until is None else f"until: {self.until}"
            other = "full to train all" if begin < 0 else "head to train none"
            raise MethodError(f"freeze: {given} does not fit the {len(blocks)} blocks there are. Use method: {other}.")
        return blocks[begin]


def _named(wanted: str, blocks: list[str], model: Model) -> str:
    """The block whose name is or ends with `wanted`, else the module of that name."""
    for name in blocks:
        if f".{name}".endswith(f".{wanted}"):
            return name
    if not any(name.startswith(f"{wanted}.") for name, _ in model.module.named_parameters()):
        raise MethodError(f"freeze: until: there is no block {wanted}. Blocks: {', '.join(blocks) or 'none'}.")
    return wanted


def _block_names(model: Model) -> list[str]:
    return [name for name, _ in model.task.blocks(model.module)]


def _dotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


METHOD = Freeze

"""A task: what a pre-trained model is for, and so how it is loaded, fed, scored and saved.

One primitive carries every objective: `nll(module, batch)`, the negative log-likelihood at each position that has
weight. A language model has T positions a row, a classifier T = 1, a multi-label classifier T = classes.
What else a task may have is a named capability: `generate`, `classify`, `features`. It is asked for, never the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewright.data.batches import Example, split_by_tokens
from tunewright.data.rendered import Fitted
from tunewright.tasks._batch import Answer, Batch, Drawn, Likelihood, Predictions
from tunewright.tasks._blocks import trunk_blocks
from tunewright.tasks._quiet import quiet

__all__ = ["Answer", "Batch", "Drawn", "Encoded", "Likelihood", "Model", "Predictions", "Task", "in_batches"]

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass
class Model:
    """A torch module together with what feeds it.

    Attributes:
        module: the torch module (typed loosely: its attributes are the architecture's own); a method may wrap it.
        processor: tokenizer or image processor, saved beside the weights.
        task: how the module is fed, scored and saved.
        base: the folder or hub name whose weights these are; an adapter names it.
        chats: whether it is asked in conversations (by its chat template), or continues a text as it stands.
        max_length: the longest row in tokens that it was trained with, where a recipe set one.
        pairs: the rules that it was trained on, where its rows were a text, a rule and whether it is violated: none
            where they were single texts; None where they were other pairs, or there are too many to be named.
        along: modules that additive methods train along: a task head, the pooler in front of it.
        new: modules that the base did not have, and that begin from the seed.
        adapters: folders of LoRAs already merged into the weights, so that a new one can be saved over `base`; or of
            the bottleneck adapters that go on training.
        start_adapter: the adapter's weights at its start, where they were taken out of the base (PiSSA).
        reserve: tokens of a context that are kept free for an answer.
        new_tokens: vocabulary rows that were added and so must train.
        notices: what the user should know about the loading: a new head, a template that was added.
    """

    module: Any
    processor: Any
    task: Task
    base: str
    chats: bool = False
    max_length: int | None = None
    pairs: list[str] | None = None
    along: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    start_adapter: dict[str, Tensor] = field(default_factory=dict)
    reserve: int = 0
    new_tokens: tuple[int, ...] = ()
    notices: list[str] = field(default_factory=list)


class Task(ABC):
    """How models of one kind are loaded, fed, scored and saved."""

    name: ClassVar[str]
    data_kinds: ClassVar[tuple[str, ...]]  # the kinds of rows that the task can encode
    trunk: ClassVar[str] = ""  # the module that trains where nothing else is said; empty: all of them
    adapted: ClassVar[str] = "all-linear"  # the layers that LoRA then adapts
    diffuses: ClassVar[bool] = False  # its models are pipelines of diffusers', and so are its files
    packs: ClassVar[bool] = False  # rows may share one sequence, told apart by `position_ids`

    @abstractmethod
    def load(self, base: str, *, seed: int = 0, dtype: str | None = None, weights: bool = True) -> Model:
        """Load a base from a folder or the hub; without `weights`, its shapes alone, on the meta device.

        Args:
            dtype: the name of what its weights become, such as bfloat16; None: float32.
        """

    @abstractmethod
    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        """Turn records into examples; over-long rows are treated as `data.overlength` says, and counted."""

    def vary(self, examples: Sequence[Example], random: np.random.Generator) -> list[Example]:
        """The rows of one step as that step sees them: what chance there is in a row is drawn here, from `random`."""
        return list(examples)

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad examples into one batch, on the CPU."""

    @abstractmethod
    def nll(self, module: nn.Module, batch: Batch, *, smoothing: float = 0.0, router: bool = False) -> Likelihood:
        """The negative log-likelihood at every position with weight, by the model's own head."""

    @abstractmethod
    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        """What the model answers on encoded rows, in their order, without gradients."""

    @abstractmethod
    def pieces(self, model: Model, example: Example) -> list[tuple[str, float]]:
        """An encoded row in words: pieces of what the model is fed and should answer, each with its loss weight."""

    def width(self, module: nn.Module) -> int:
        """The width of the trunk, that learning rates follow."""
        return int(module.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]

    @abstractmethod
    def head(self, module: nn.Module) -> list[str]:
        """Names of the modules that make the task head, before any method has wrapped the model."""

    def routes(self, module: nn.Module) -> bool:
        """Whether `nll` can give the balance of a router."""
        return False

    def blocks(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """The trunk's blocks from input to output: see `trunk_blocks`."""
        return trunk_blocks(module)

    def save(self, model: Model, folder: Path) -> None:
        """Write weights (safetensors) and processor in the ecosystem's format."""
        with quiet():
            model.module.save_pretrained(folder)
        model.processor.save_pretrained(folder)


@dataclass(frozen=True)
class Encoded:
    """Examples, the longest row there may be, the account of longer rows, and what is wrong with skipped ones."""

    examples: list[Example]
    limit: int
    overlength: Fitted
    faults: list[str] = field(default_factory=list)


PASS = 4096
"""Positions of a forward pass that answers rows, without gradients."""


def in_batches(examples: Sequence[Example], budget: int = PASS) -> Iterator[list[int]]:
    """Row numbers in groups of similar length that each fit `budget` positions."""
    lengths = [e.length for e in examples]
    return split_by_tokens(sorted(range(len(lengths)), key=lambda i: -lengths[i]), lengths, budget)

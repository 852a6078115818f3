"""An objective: what the loss says, as named sums that the loop divides once.

    loss = Σ coefficient · total / count

A term is summed over one forward pass; its count is taken over the whole step, over all forward passes and ranks,
before the first of them. So neither the size of a forward pass nor the number of processes can change the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from tunewright.data.batches import Example
from tunewright.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class Term(NamedTuple):
    """One sum over a forward pass.

    Attributes:
        total: scalar tensor; it carries the gradient where the coefficient is not 0.
        per: the name of the count that divides it.
        coefficient: its share of the loss; 0 for what is only logged.
    """

    total: Tensor
    per: str
    coefficient: float = 0.0


class Objective(BaseModel):
    """What the loss says. Frozen: its fields are its hyperparameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str

    @abstractmethod
    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        """What the terms of these rows are divided by, by name. Counts of disjoint rows add up."""

    @abstractmethod
    def terms(self, task: Task, module: nn.Module, batch: Batch) -> dict[str, Term]:
        """The sums over one forward pass. The one called "loss" is what is evaluated and selected on."""

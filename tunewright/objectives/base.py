"""An objective: what the loss says, as named sums that the loop divides once.

    loss = Σ coefficient · total / count

A term is summed over one forward pass; its count is taken over the whole step, over all forward passes and ranks,
before the first of them. So neither the size of a forward pass nor the number of processes can change the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from tunewright.data.batches import Example
from tunewright.objectives._learner import Learner, Scored
from tunewright.options import Options
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


__all__ = ["Learner", "Objective", "Scored", "Sets", "Term"]

Sets = Mapping[str, Sequence[Example]]


class Objective(Options):
    """What the loss says. Frozen: its fields are its hyperparameters.

    Class attributes:
        reads: the kinds of rows that it learns from.
        tasks: the tasks that it is for; empty: all.
        rate: the automatic learning rate over that of supervised training.
        drops_out: whether dropout is on: not where likelihoods are compared with others that were taken without.
        packs: whether its rows may share one sequence, see `training.packing`.
    """

    reads: ClassVar[tuple[str, ...]]
    tasks: ClassVar[tuple[str, ...]] = ()
    rate: ClassVar[float] = 1.0
    packs: ClassVar[bool] = False
    drops_out: ClassVar[bool] = True
    type: str

    def refuse_others(self, chosen: str, options: Mapping[str, Sequence[str]]) -> None:
        """Raise ValueError for an option that was set, and is not for what was chosen.

        Args:
            options: what each option is for.
        """
        for option, fitting in options.items():
            changed = getattr(self, option) != type(self).model_fields[option].default
            if changed and chosen not in fitting:
                raise ValueError(f"{option} is for {' and '.join(fitting)}, not for {chosen}: leave it out")

    @property
    def needs_start(self) -> bool:
        """Whether likelihoods under the model that the run started from are asked for during the training."""
        return False

    @property
    def updates(self) -> int:
        """Steps that are taken on the same rows, one after another."""
        return 1

    @property
    def least(self) -> int:
        """Rows of the smallest step that anything can be learned from."""
        return 1

    @property
    def enough(self) -> int:
        """Rows of a step where `training.batch` is automatic, as far as there are so many."""
        return 1

    def begin(self, learner: Learner, sets: Sets) -> Sets:
        """The rows of each set, with what of them is fixed by the model that the run starts from."""
        return sets

    def prepare(self, learner: Learner, examples: Sequence[Example], step: int | None) -> Sequence[Example]:
        """The rows of one step, with what is fixed for all of them together before the first forward pass.

        Args:
            step: counted from 0; none for the validation rows.
        """
        return examples

    @abstractmethod
    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        """What the terms of these rows are divided by, by name. Counts of disjoint rows add up."""

    @abstractmethod
    def terms(self, task: Task, module: nn.Module, batch: Batch) -> dict[str, Term]:
        """The sums over one forward pass. What is evaluated and selected on is "loss", else all of them together."""

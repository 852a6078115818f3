"""What an objective may ask of the run beside a forward pass, before a step; and what it is given of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tunewright.data.batches import Example
from tunewright.tasks.base import Drawn, Model

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Scored:
    """An answer that the policy has drawn, and the number of each reward by its name."""

    answer: Drawn
    rewards: Mapping[str, float]


class Learner(Protocol):
    """All answers are the same in every process, and as the model is now, in eval mode and without gradients.

    Attributes:
        shares: whether answers to a prompt may share it.
        width: the model's hidden size, by which it is told whether sharing pays.
        knows_start: whether likelihoods at the start of the run can still be had.
    """

    @property
    def model(self) -> Model: ...
    @property
    def seed(self) -> int: ...
    @property
    def shares(self) -> bool: ...
    @property
    def width(self) -> int: ...
    @property
    def knows_start(self) -> bool: ...

    def answer_scores(self, examples: Sequence[Example], start: bool = False) -> np.ndarray:
        """The log-likelihood of each part of these elements, [S].

        Args:
            start: whether the model is as the run started from it.
        """
        ...

    def nll(self, examples: Sequence[Example], temperature: float, start: bool = False) -> list[list[np.ndarray]]:
        """For each element and part the negative log-likelihood of each token of the answer, now or at the start."""
        ...

    def values(self, examples: Sequence[Example]) -> list[list[np.ndarray]]:
        """For each element and part what the value net expects before each token of the answer."""
        ...

    def sample(
        self, prompts: Sequence[Example], *, copies: int, max_new_tokens: int, temperature: float, step: int | None
    ) -> list[list[Scored]]:
        """For each prompt so many answers, with their rewards. The same seed and step give the same random numbers."""
        ...

    def remember(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays until the next call; they are part of a checkpoint."""

    def remembered(self) -> Mapping[str, np.ndarray]: ...

    def number(self, name: str, otherwise: float) -> float:
        """A number that changes during the run, and is part of a checkpoint."""
        ...

    def set_number(self, name: str, value: float) -> None: ...

    def note(self, name: str, value: Any) -> None:
        """Add something to this step's line of metrics.jsonl."""

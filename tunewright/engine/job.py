"""A run, resolved: all that the loop works on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunewright.data.batches import Example, epoch_plan
from tunewright.engine.config import TrainingConfig
from tunewright.engine.memory import Memory
from tunewright.engine.processes import Processes
from tunewright.methods.base import Method, moving_norms
from tunewright.objectives.base import Objective
from tunewright.tasks.base import Model

Rewards = Callable[[Sequence[int], Sequence[Any]], Mapping[str, Sequence[float]]]
"""(places of the prompts among all, answers) → the numbers of each reward, by its name."""
Watcher = Callable[[Mapping[str, Any]], None]


@dataclass
class Job:
    """A run, resolved: `config` has no `auto` left but that of the forward pass."""

    model: Model
    method: Method
    objective: Objective
    config: TrainingConfig
    train: Sequence[Example]
    validation: Sequence[Example]
    folder: Path
    device: Any
    precision: str
    prior: Sequence[Example] = ()  # with each row of a step one of these is learned, see `Example.prior`
    tests: Mapping[str, Sequence[Example]] = field(default_factory=dict)  # what else is measured in the end
    rewards: Rewards | None = None  # scores answers, where that is what the objective learns from
    critic: Any = None  # a value net, trained beside the model
    memory: Memory = field(default_factory=Memory)
    processes: Processes = field(default_factory=Processes)
    watchers: Sequence[Watcher] = ()

    @cached_property
    def lengths(self) -> list[int]:
        return [e.length for e in self.train]

    def epoch(self, number: int) -> list[list[int]]:
        config = self.config
        return epoch_plan(self.lengths, number, config.seed, _rows(config), config.batch_tokens, self._least)

    @cached_property
    def _least(self) -> int:
        """Rows of the smallest step: one row alone is nothing that batch norms could normalize by."""
        return 2 if moving_norms(self.model.module, self.method) else self.objective.least

    @cached_property
    def plan(self) -> list[tuple[float, list[int]]]:
        """Every step of the run: (epochs done after it, its rows)."""
        steps: list[tuple[float, list[int]]] = []
        for number in range(math.ceil(self.config.epochs) if self.config.max_steps is None else 2**31):
            rows = self.epoch(number)
            done = [(number + (i + 1) / len(rows), step) for i, step in enumerate(rows)]
            steps += [step for step in done for _ in range(self.objective.updates)]
            if self.config.max_steps is not None and len(steps) >= self.config.max_steps:
                return steps[: self.config.max_steps]
        return [step for step in steps if step[0] <= self.config.epochs + 1e-9] or steps[:1]

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations: as the recipe says, else those of an epoch."""
        return self.config.evaluate_every or max(1, sum(1 for done, _ in self.plan if done <= 1))


def _rows(config: TrainingConfig) -> int:
    return 1 if config.batch == "auto" else config.batch

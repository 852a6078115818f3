"""How deep a trained weight lies: what layer-wise learning rates and gradual unfreezing go by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunewright.engine.job import Job
from tunewright.errors import RecipeError
from tunewright.methods.base import trained_parameters
from tunewright.tasks.base import Model


def depths(model: Model) -> dict[str, int]:
    """Of each trained parameter by its name: 0 in front of the trunk's n blocks, 1 … n within them, n + 1 behind.

    What lies in no block is in front of or behind them as the model registers it.
    """
    blocks = [f"{name}." for name, _ in model.task.blocks(model.module)]
    trained, found, outside = trained_parameters(model.module), {}, 0
    for name, _ in model.module.named_parameters():
        inside = next((i for i, block in enumerate(blocks, 1) if name.startswith(block)), None)
        outside = len(blocks) + 1 if inside else outside
        if name in trained:
            found[name] = inside or outside
    return found


def layer_rates(model: Model, decay: float) -> dict[str, float]:
    """The share of the learning rate that each trained parameter has: `decay` to the power of the blocks above it.

    Discriminative fine-tuning (Howard & Ruder, arXiv 1801.06146, section 3.2: 1/2.6), layer-wise decay in BEiT
    (arXiv 2106.08254). What lies behind the trunk has the full rate, its last block `decay` of it, and so on.

    Raises:
        RecipeError: all that trains is equally deep, so that `decay` would have no effect.
    """
    found = depths(model)
    if decay == 1:
        return {}
    _refuse_one_depth("layer_decay", found)
    top = len(model.task.blocks(model.module)) + 1
    return {name: decay ** (top - depth) for name, depth in found.items()}


@dataclass(frozen=True)
class Unfreezing:
    """Which weights train at which step: from the top down, one more depth every so many epochs.

    Gradual unfreezing (Howard & Ruder, arXiv 1801.06146, section 3.3): first what lies behind the trunk, then with it
    the last block, and so on. A function of the step, so that there is nothing to save.

    Attributes:
        waves: the trained parameters by depth, the deepest last.
        every: epochs from one to the next.
        begun: the epochs done before each step.
    """

    waves: list[list[Any]]
    every: float
    begun: list[float]

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Inside, what does not train yet at this step (from 0 on) is frozen like anything else that is."""
        resting = [p for wave in self.waves[1 + int(self.begun[step] / self.every + 1e-9) :] for p in wave]
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)


def unfreezing(job: Job) -> Unfreezing:
    """Raises RecipeError where there is nothing to unfreeze, or some of it would never train."""
    parameters, every = trained_parameters(job.model.module), job.config.gradual_unfreezing
    if every is None:
        return Unfreezing([], 1.0, [0.0] * len(job.plan))
    found = depths(job.model)
    _refuse_one_depth("gradual_unfreezing", found)
    order = sorted(set(found.values()), reverse=True)
    waves = [[p for name, p in parameters.items() if found[name] == depth] for depth in order]
    begun = [0.0, *(done for done, _ in job.plan[:-1])]
    most = begun[-1] / (len(waves) - 1)
    if every > most + 1e-9:
        raise RecipeError(
            f"training.gradual_unfreezing: {every:g} epochs for each of {len(waves)} depths are more than the run has, "
            f"and the lowest would never train. Set it to at most {int(most * 1000) / 1000:g}, or train longer."
        )
    return Unfreezing(waves, every, begun)


def _refuse_one_depth(option: str, found: dict[str, int]) -> None:
    if len(set(found.values())) < 2:
        raise RecipeError(f"training.{option}: all that trains here is equally deep. Leave it out.")

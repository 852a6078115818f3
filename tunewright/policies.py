"""A run that learned from comparisons or rewards, asked again: what it is measured by beside its own likelihoods.

Its start is the other half of that: rewards are read beside the KL from it, and what DPO and its family learn as a
reward is what an answer became likelier than it was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from tunewright.artifacts.interpolate import load
from tunewright.artifacts.start import parse_point
from tunewright.data.batches import Example
from tunewright.data.kinds import Prompt
from tunewright.engine.device import pick_device, pick_precision
from tunewright.engine.job import Job
from tunewright.engine.learner import Learner
from tunewright.errors import DataError, MethodError
from tunewright.evaluation.evaluate import rewarded
from tunewright.folder import INFO, Run
from tunewright.methods import Full
from tunewright.objectives.preference import REFERENCED
from tunewright.rewards import placed, rewards_of
from tunewright.tasks.base import Model, Predictions, Task


class Asking:
    """How the models of a run are measured: its start, its end and the points between, all by the same random numbers.

    Args:
        where: a run, or a point of its path; anything else is measured by its likelihoods alone.
        records: what will be asked. Rewards find the columns of a prompt's row in them.
        likelihoods: whether nothing is to be compared with the run's start.

    Raises DataError where these are prompts, and there is no run that has rewards.
    """

    def __init__(
        self, where: str | PathLike[str] | Model, records: Sequence[Any], device: str, likelihoods: bool = False
    ) -> None:
        self.run = run_of(where)
        self.records, self.device, self.notices = records, pick_device(device), []  # type: ignore[var-annotated]
        self.likelihoods = likelihoods
        self.objective: Any = self.run.recipe.objective if self.run else None
        self.prompts = bool(records) and isinstance(records[0], Prompt)
        if self.prompts and not hasattr(self.objective, "measure"):
            raise DataError(
                "These rows are prompts without answers. They are measured by the rewards of what is answered, and "
                f"{_named(where)} was not trained by any. Name a run of objective: rl, or rows with answers."
            )

    @property
    def reserve(self) -> int:
        """Tokens of a context that are kept free for an answer."""
        return int(getattr(self.objective, "max_new_tokens", 0))

    def __call__(self, model: Model, examples: Sequence[Example]) -> Predictions:
        if self.prompts:
            prompts = placed(examples, self.records)
            return rewarded(self.objective, self._learner(model, prompts), prompts)
        found = model.task.predict(model, examples)
        if (
            self.likelihoods
            or found.score_S is None
            or getattr(self.objective, "loss", "") not in REFERENCED
            or self.start is None
        ):
            return found  # simpo and orpo know no start
        return replace(found, start_S=self.start.task.predict(self.start, examples).score_S)

    @cached_property
    def start(self) -> Model | None:
        """What the run started from; none, and a notice, where that is lost."""
        assert self.run is not None
        try:
            return load(self.run.folder, str(self.device), alpha=0.0)
        except MethodError as error:
            self.notices.append(f"Nothing is compared with the run's start: {error}")
            return None

    @cached_property
    def _rewards(self) -> Any:
        return rewards_of(self.objective.rewards, self.records, str(self.device))

    def _learner(self, model: Model, examples: Sequence[Example]) -> Learner:
        assert self.run is not None
        recipe = self.run.recipe
        job = Job(
            model=model,
            method=Full(),  # nothing of the model can be switched off: `start` is given, or nobody asks for it
            objective=self.objective,
            config=recipe.training,
            train=examples,
            validation=(),
            folder=self.run.folder,
            device=self.device,
            precision=pick_precision(recipe.training.precision, self.device),
            rewards=self._rewards,
        )
        learner = Learner(job)
        learner.start = None if self.likelihoods or not self.start else self.start.module
        return learner


def run_of(where: str | PathLike[str] | Model) -> Run | None:
    """The run that a model is named by, or a point of its path; none where it is named otherwise."""
    if isinstance(where, Model):
        return None
    folder = Path(parse_point(str(where))[0]).expanduser()
    return Run(folder) if (folder / INFO).is_file() else None


def kinds_of(run: Run | None, task: type[Task] | Task) -> tuple[str, ...]:
    """The kinds of rows that a model is measured on, as its run read them.

    Where it learned from rewards, all rows are prompts; where from preferences, a label says whether an answer is good.
    Rows that look like nothing of the kind are what they are to everybody.
    """
    reads = run.recipe.objective.reads if run else ()
    if "prompt" in reads:
        return ("prompt",)
    return tuple(kind for kind in reads if kind in task.data_kinds) if "rated" in reads else task.data_kinds


def _named(where: str | PathLike[str] | Model) -> str:
    return where.base if isinstance(where, Model) else str(where)

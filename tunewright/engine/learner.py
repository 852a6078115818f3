"""What an objective may ask of the run before a step: answers, and likelihoods without gradients, alike everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.batches import Example, micro_batches
from tunewright.data.groups import ends_of
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.engine.processes import Processes
from tunewright.errors import MethodError, RecipeError
from tunewright.objectives._rollouts import answered, group
from tunewright.objectives.base import Scored
from tunewright.tasks.base import PASS, Batch, Model

if TYPE_CHECKING:
    from torch import Tensor


class Learner:
    """The run's side of `objectives.base.Learner`. Each process computes its share, and all get all of it.

    Args:
        stand_in: whether zeros stand for what would take a pass over all rows: where nothing is really trained.
    """

    def __init__(self, job: Job, stand_in: bool = False) -> None:
        self.job, self.stand_in = job, stand_in
        self.noted: dict[str, Any] = {}
        self.start: Any = None  # a copy of the module, where switching the method off is not exact

    @property
    def model(self) -> Model:
        return self.job.model

    @property
    def seed(self) -> int:
        return self.job.config.seed

    @cached_property
    def shares(self) -> bool:
        """As the model itself says of the two shortest rows; prompts are given made-up answers for that."""
        job, task, free = self.job, self.model.task, self.model.reserve
        if not (job.method.packs() and hasattr(task, "shares")):
            return False
        job.model.module.eval()
        rows = sorted(job.train, key=lambda e: e.length)[:2]
        two = [e if e.parts else _with_answers(e) for e in rows]
        with computing(job.precision, job.device):
            longest = max(part.length for e in job.train for part in (e.parts or (e,)))
            shared: bool = task.shares(self.model, two, longest + free)
        return shared

    @property
    def width(self) -> int:
        return self.model.task.width(self.model.module)

    @property
    def knows_start(self) -> bool:
        return self.start is not None or self._has_off

    @cached_property
    def _has_off(self) -> bool:
        """Whether switching the method off gives the start: asked once, as it goes through all layers."""
        try:
            with self.job.method.off(self.model):
                return True
        except MethodError:
            return False

    def alone(self) -> Learner:
        """For what only one of the processes asks."""
        other = copy.copy(self)
        other.job = replace(self.job, processes=Processes())
        return other

    def hold_start(self) -> None:
        """Keep a copy of the model as it is now, unless switching the method off gives it back."""
        if not self.knows_start:
            self.start = copy.deepcopy(self.model.module).eval().requires_grad_(False)

    def answer_scores(self, examples: Sequence[Example], start: bool = False) -> np.ndarray:
        if self.stand_in:
            return np.zeros(sum(len(e.parts) for e in examples))
        off = start and self._has_off  # what was added does nothing yet: without it the same comes sooner
        with self.job.method.off(self.model) if off else nullcontext():
            found = self._of_tokens(examples, lambda batch: self.model.task.nll(self.model.module, batch).nll_BT)
        return np.array([-values.sum() for own in found for values in own])

    def nll(self, examples: Sequence[Example], temperature: float, start: bool = False) -> list[list[np.ndarray]]:
        task: Any = self.model.task
        module = self.start if start and self.start is not None else self.model.module
        off = start and self.start is None
        with self.job.method.off(self.model) if off else nullcontext():
            return self._of_tokens(examples, lambda batch: task.nll(module, batch, temperature=temperature).nll_BT)

    def values(self, examples: Sequence[Example]) -> list[list[np.ndarray]]:
        task: Any = self.model.task
        return self._of_tokens(examples, task.values)

    def sample(
        self, prompts: Sequence[Example], *, copies: int, max_new_tokens: int, temperature: float, step: int | None
    ) -> list[list[Scored]]:
        """The random numbers of a prompt follow from the seed, the step and its place in it, and from nothing else."""
        job, world, task = self.job, self.job.processes, self.model.task
        draw = 0 if step is None else step + 1
        own = list(range(len(prompts)))[world.rank :: world.world]
        uniform = [np.random.default_rng([self.seed, draw, i]).random((copies, max_new_tokens)) for i in own]
        found: list[list[Any]] = []
        if own:
            with computing(job.precision, job.device):
                found = task.sample(  # type: ignore[attr-defined]
                    self.model, [prompts[i] for i in own], np.concatenate(uniform), copies, max_new_tokens, temperature
                )
        rows = [int(prompts[i].fixed["row"]) for i in own]
        flat = [(row, answer) for row, answers in zip(rows, found, strict=True) for answer in answers]
        assert job.rewards is not None
        scores = job.rewards([row for row, _ in flat], [answer for _, answer in flat]) if flat else {}
        drawn = [
            Scored(answer, {name: values[k] for name, values in scores.items()}) for k, (_, answer) in enumerate(flat)
        ]
        mine = [(i, drawn[n * copies : (n + 1) * copies]) for n, i in enumerate(own)]
        return [answers for _, answers in sorted(world.gather(mine), key=lambda pair: pair[0])]

    def remember(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.job.memory.arrays = dict(arrays)

    def remembered(self) -> Mapping[str, np.ndarray]:
        return self.job.memory.arrays

    def number(self, name: str, otherwise: float) -> float:
        return self.job.memory.numbers.get(name, otherwise)

    def set_number(self, name: str, value: float) -> None:
        self.job.memory.numbers[name] = value

    def note(self, name: str, value: Any) -> None:
        self.noted[name] = value

    def take_notes(self) -> dict[str, Any]:
        """What was noted since this was last asked."""
        noted, self.noted = self.noted, {}
        return noted

    def _of_tokens(self, examples: Sequence[Example], compute: Callable[[Batch], Tensor]) -> list[list[np.ndarray]]:
        """Of each element and part what `compute` gives at the positions with weight."""
        import torch

        job, world, lengths = self.job, self.job.processes, [e.length for e in examples]
        found: list[tuple[int, list[np.ndarray]]] = []
        job.model.module.eval()
        with torch.no_grad(), computing(job.precision, job.device):
            for group in micro_batches(range(len(examples)), lengths, PASS, world.rank, world.world):
                rows = [examples[i] for i in group]
                batch = job.model.task.collate(rows).to(job.device)
                parts = _by_sequence(batch, compute(batch))
                ends = [0, *ends_of(rows), len(parts)]
                found += [(i, parts[ends[k] : ends[k + 1]]) for k, i in enumerate(group)]
        return [own for _, own in sorted(world.gather(found), key=lambda pair: pair[0])]


def begin(job: Job, learner: Learner) -> None:
    """Let the objective fix what the start of the run says of the rows, in place."""
    if not job.objective.drops_out:
        silence(job)
    if job.objective.needs_start:
        learner.hold_start()
    sets = job.objective.begin(learner, {"train": job.train, "validation": job.validation, **job.tests})
    job.train, job.validation = sets["train"], sets["validation"]
    job.tests = {name: sets[name] for name in job.tests}
    for name in ("lengths", "plan"):
        vars(job).pop(name, None)  # they follow from the rows


def _with_answers(prompt: Example) -> Example:
    """A prompt with two answers: its own last tokens, and the same the other way round."""
    tokens = prompt.inputs["input_ids"][-8:]
    return group([answered(prompt, tokens), answered(prompt, tokens[::-1])], prompt.source)


def silence(job: Job) -> None:
    """Switch off all dropout of the model. Raises RecipeError where the method was asked to add some."""
    from torch.nn.modules.dropout import _DropoutNd

    if getattr(job.method, "dropout", 0):
        raise RecipeError(
            f"method.dropout: objective {job.objective.type} compares likelihoods, and takes none of them with "
            "dropout. Leave it out."
        )
    for module in job.model.module.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout"):  # chances that attention itself looks up
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _by_sequence(batch: Batch, values_BT: Tensor) -> list[np.ndarray]:
    """The values at the positions with weight of each sequence, in fp64."""
    picked_BT = batch.weight != 0
    sequence_N = batch.sequence[picked_BT].cpu().numpy()
    value_N = values_BT[picked_BT].double().cpu().numpy()
    assert batch.element_S is not None
    counts_S = np.bincount(sequence_N, minlength=len(batch.element_S))
    return np.split(value_N[np.argsort(sequence_N, kind="stable")], np.cumsum(counts_S)[:-1])

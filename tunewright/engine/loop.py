"""The one loop, for all tasks, methods and objectives.

A step is a set of rows, given by (seed, step). It is cut into forward passes that fit, and dealt to the processes;
terms are summed and divided by counts of the whole step, so neither the cut nor the deal changes the gradient.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.data.batches import Example, micro_batches, pack
from tunewright.engine import checkpoint
from tunewright.engine.config import TrainingConfig
from tunewright.engine.depth import unfreezing
from tunewright.engine.device import computing, micro_batch_tokens
from tunewright.engine.interrupt import kept_if_refused, until_interrupted
from tunewright.engine.job import Job
from tunewright.engine.learner import Learner, begin
from tunewright.engine.log import Log
from tunewright.engine.norms import needs_one_pass
from tunewright.engine.optimizer import learning_rate, set_rate
from tunewright.engine.packing import refuse_leaks
from tunewright.engine.prefix_cache import feeding, prefix_cache
from tunewright.engine.recompute import recompute_activations
from tunewright.engine.state import TrainState
from tunewright.engine.sums import Sums
from tunewright.engine.track import require
from tunewright.errors import BaseModelError, Interrupted, TrainingDiverged
from tunewright.methods.base import enter_training


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps done, which weights it ends with, and what it cost."""

    steps: int
    weights: str
    best: dict[str, float] | None
    notices: list[str]


def ready(job: Job, resume: bool = False, rehearsal: bool = False) -> Step:
    """What takes the first step, or the one behind the last checkpoint. All that the loop refuses, it refuses here.

    Args:
        rehearsal: whether nothing will be trained, so that what takes a pass over all rows need not be true.

    Raises:
        RecipeError, BaseModelError, MissingExtra: an option that this model or installation does not have.
        CheckpointError: no checkpoint is whole, or they are of another run.
    """
    require(job.config.track)
    job.model.module.to(job.device)
    if job.config.packing:
        refuse_leaks(job)
    if job.config.activation_checkpointing:
        recompute_activations(job.model)
    learner = Learner(job, rehearsal)
    begin(job, learner)
    state = TrainState(job.model, job.method, job.config, job.precision, job.critic, job.memory)
    step = Step(job, state, learner)
    folder = job.folder / "checkpoints"
    if resume and checkpoint.steps(folder):
        *saved, step.passed = checkpoint.newest(folder)
        step.state.load(*saved)
    return step


def train(step: Step) -> Outcome:
    """Train until the plan ends or patience does, and leave the model with the weights that are to be kept.

    Raises:
        TrainingDiverged: the loss is not finite; the last good checkpoint is kept.
        Interrupted: the user stopped the run; a checkpoint is written.
    """
    job, state, folder = step.job, step.state, step.job.folder / "checkpoints"
    every, last = job.evaluate_every, len(job.plan)
    with Log(job, state.step, last) as log, until_interrupted() as stopped:
        while state.step < last and not _impatient(state, job.config):
            with kept_if_refused(job, state):
                log.step(step.take())
            evaluated = bool(job.validation) and (state.step % every == 0 or state.step == last)
            best = evaluated and state.judge(log.evaluation(evaluate(step)))
            due = state.step % (job.config.checkpoint_every or every) == 0
            stop = job.processes.any(stopped())
            ends = state.step == last or _impatient(state, job.config)
            if job.processes.first and (best or due or stop or ends):
                checkpoint.write(folder, state.step, state.tensors(), state.numbers())
                checkpoint.prune(folder, {int(state.best["step"])} if state.best else set())
            if stop:
                job.processes.wait()  # for the checkpoint
                raise Interrupted(state.step)
    return Outcome(state.step, _keep(job, state, folder), state.best, step.notices)


class Step:
    """One step of the optimizer, in as many forward passes as memory wants."""

    def __init__(self, job: Job, state: TrainState, learner: Learner | None = None) -> None:
        self.job, self.state, self.learner = job, state, learner or Learner(job)
        self.whole = needs_one_pass(job)
        self.budget = sys.maxsize if self.whole else micro_batch_tokens(job.config, job.device)
        self.passed: list[str] = []  # damaged checkpoints that were passed over to go on, in words
        self.cache, self.notices = prefix_cache(job)
        self.unfreezing = unfreezing(job)

    def take(self) -> dict[str, Any]:
        """Move the weights once; the line for metrics.jsonl."""
        with self.unfreezing.of(self.state.step):
            return self._take()

    def _take(self) -> dict[str, Any]:
        import torch

        job, state = self.job, self.state
        epoch, rows = job.plan[state.step]
        state.step += 1
        torch.manual_seed((job.config.seed * 1_000_003 + state.step) * 1024 + job.processes.rank)
        chance = np.random.default_rng([job.config.seed, state.step])
        chosen = [job.train[i] for i in rows]
        if job.prior:
            chosen += [job.prior[i] for i in chance.integers(len(job.prior), size=len(rows))]
        examples = job.objective.prepare(self.learner, job.model.task.vary(chosen, chance), state.step - 1)
        enter_training(job.model, job.method)
        totals = self._accumulate(examples, _counts(job, examples))
        training = [p for p in state.parameters.values() if p.requires_grad]
        for parameter in training:
            parameter.grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        job.processes.add([p.grad for p in training])
        state.scaler.unscale_(state.optimizer)
        norm = state.clip(job.config.gradient_clip or math.inf)
        if not math.isfinite(norm) and not state.scaler.is_enabled():
            raise TrainingDiverged(self._diverged("gradient", [e.source for e in examples]))
        rate = learning_rate(state.step, len(job.plan), job.config)
        set_rate(state.optimizer, rate)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.update_average()
        return {
            "step": state.step,
            "epoch": round(epoch, 4),
            **totals,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens": sum(e.length for e in examples),
            "rows": len(examples),
            **self.learner.take_notes(),
        }

    def _accumulate(self, examples: Sequence[Example], counts: Mapping[str, float]) -> dict[str, float]:
        """Gradients of the whole step, by forward passes of at most `budget` positions: fewer where memory runs out."""
        import torch

        while True:
            try:
                return self._passes(examples, counts)
            except torch.OutOfMemoryError as error:
                self.state.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                longest = max(e.length for e in examples)
                if self.whole or self.budget <= longest or self.job.processes.world > 1:
                    held = min(self.budget, longest * len(examples))
                    raise BaseModelError(
                        f"Out of memory at step {self.state.step}, with forward passes of {held} positions. Set "
                        "training.activation_checkpointing: true, a smaller training.micro_batch_tokens or "
                        "training.batch, or method: lora."
                    ) from error
                self.budget = max(longest, self.budget // 2)
                self.notices.append(
                    f"Step {self.state.step} did not fit: forward passes cut to {self.budget} positions."
                )

    def _passes(self, examples: Sequence[Example], counts: Mapping[str, float]) -> dict[str, float]:
        world, sums, lengths = self.job.processes, Sums(), [e.length for e in examples]
        for group in micro_batches(range(len(lengths)), lengths, self.budget, world.rank, world.world):
            terms = self._forward([examples[i] for i in group])
            loss = sum(t.coefficient * t.total / counts[t.per] for t in terms.values() if t.coefficient)
            if not math.isfinite(loss.item()):
                raise TrainingDiverged(self._diverged("loss", [examples[i].source for i in group]))
            self.state.scaler.scale(loss).backward()
            sums.add(terms)
        return sums.means(world, counts)

    def _forward(self, examples: Sequence[Example]) -> dict[str, Any]:
        job = self.job
        with feeding(self.cache, examples) as fed, computing(job.precision, job.device):
            batch = job.model.task.collate([pack(fed)] if job.config.packing else fed).to(job.device)
            return job.objective.terms(job.model.task, job.model.module, batch)

    def _diverged(self, what: str, sources: Sequence[str]) -> str:
        named = ", ".join(sources[:8]) + (f" and {len(sources) - 8} more" if len(sources) > 8 else "")
        kept = checkpoint.steps(self.job.folder / "checkpoints")
        last = f"The checkpoint of step {kept[-1]} is kept." if kept else "No checkpoint had been written yet."
        return (
            f"The {what} is not finite at step {self.state.step}, in rows {named}. {last} "
            "Lower training.learning_rate, or look at those rows."
        )


def evaluate(step: Step) -> dict[str, float]:
    """The objective's terms on the validation rows, divided by their counts; with the weights that are to be saved."""
    import torch

    job = step.job
    world, sums = job.processes, Sums()
    budget = micro_batch_tokens(job.config, job.device)
    with step.state.judged_weights(), torch.no_grad(), computing(job.precision, job.device):
        rows = job.objective.prepare(step.learner, job.validation, None)
        counts, lengths = _counts(job, rows), [e.length for e in rows]
        job.model.module.eval()
        for group in micro_batches(range(len(lengths)), lengths, budget, world.rank, world.world):
            with feeding(step.cache, [rows[i] for i in group]) as fed:
                batch = job.model.task.collate(fed).to(job.device)
                sums.add(job.objective.terms(job.model.task, job.model.module, batch))
    return sums.means(world, counts)


def _counts(job: Job, examples: Sequence[Example]) -> dict[str, float]:
    """Rows whose weights are all 0 have sums of 0, which stay 0 when they are divided by 1."""
    return {name: count or 1.0 for name, count in job.objective.counts(examples).items()}


def _keep(job: Job, state: TrainState, folder: Path) -> str:
    """Give the model the weights that the run ends with, and say which those are."""
    kind = "average" if state.average else "weight"
    said = f"moving average (decay {job.config.ema})" if state.average else "trained weights"
    step = state.step
    if job.config.keep == "best" and state.best:
        step = int(state.best["step"])
        said += f" of step {step}, the best validation loss"
    else:
        said += f" of the last step, {step}"
    job.processes.wait()  # until the first one has written the checkpoint
    state.load_weights(checkpoint.read(folder / f"step-{step}")[0], kind)
    job.model.module.eval()
    return said


def _impatient(state: TrainState, config: TrainingConfig) -> bool:
    return config.patience is not None and state.stale >= config.patience

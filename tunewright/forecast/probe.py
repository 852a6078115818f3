"""A few pieces of a run, done for real and thrown away: steps, answers, a checkpoint; and what each of them cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.data.batches import Example, micro_batches
from tunewright.engine import checkpoint
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.engine.loop import Step
from tunewright.engine.prefix_cache import feeding
from tunewright.evaluation.evaluate import score
from tunewright.evaluation.metrics import generation
from tunewright.evaluation.paired import subset
from tunewright.forecast.costs import Passes, passes, spread_out
from tunewright.forecast.meter import Cost, measured
from tunewright.methods.base import enter_training
from tunewright.tasks.base import PASS, Model, in_batches

SECONDS = 5.0  # on the clock, for the steps; at least three are taken, whatever they need
LEAST, MOST = 3, 12
STILL = 1e-12
WRITTEN = 2**28  # bytes of a checkpoint that are written to see how long all of it will take
TOKENS = 4  # that are generated to see how long a token takes
DRAWN_STEPS = 2  # beside the first, of an image that is drawn to see how long a step takes


@dataclass(frozen=True)
class Probe:
    """Some passes, the optimizer's steps among them, and what they cost."""

    work: Passes
    steps: int
    cost: Cost


def work_of(job: Job, rows: Sequence[int], budget: int, world: int = 1) -> Passes:
    """The forward passes of one step, for the process that has the most to do of `world`."""
    return passes(micro_batches(rows, job.lengths, budget, 0, world), job.lengths, job.config.packing)


@dataclass(frozen=True)
class Steps:
    """What some of a run's steps cost.

    Attributes:
        probes: in no particular order; the largest step is among them where it had room.
        fixed: bytes that any step holds: weights, gradients, what the optimizer keeps.
        per_position: bytes that a forward pass holds for each of its padded positions.
        largest: padded positions of the largest pass there will be.
        took_largest: whether the largest step was taken; if not, it was too large for the memory there is.
        fills, answers: where states of frozen blocks are kept, what it takes to compute those of some rows, and then to
            answer these rows.
        to_keep: bytes of the states that are still to come.
    """

    probes: list[Probe]
    fixed: int
    per_position: float
    largest: int
    took_largest: bool
    fills: Sequence[Probe] = ()
    answers: Sequence[Probe] = ()
    to_keep: int = 0

    @property
    def peak(self) -> int:
        """Bytes: what was seen, or what the largest pass would need."""
        seen = max(probe.cost.peak for probe in (*self.probes, *self.fills))
        unseen = 0 if self.took_largest else int(self.fixed + self.per_position * self.largest)
        return max(seen, unseen) + self.to_keep


def probe_steps(step: Step, room: int) -> Steps:
    """Take steps of a run's plan: a small one first, then the largest, then others, for about `SECONDS`.

    The largest is left out where the small one shows that it would need more than `room` bytes, since a system that
    runs out of memory ends the process without a word. Out of their order, steps could diverge at the rate they have in
    the plan; with next to none the weights stay about where they are.
    """
    job = step.job
    job.config = job.config.model_copy(update={"learning_rate": STILL})
    works = [work_of(job, rows, step.budget) for _, rows in job.plan]
    offered = works[: sum(1 for done, _ in job.plan if done <= 1) or 1] if step.cache else works
    order = spread_out([work.positions for work in offered])
    before = measured(lambda: None, job.device)[1].peak
    fills: dict[int, Probe] = {}

    def take(number: int) -> Probe:
        step.state.step = number
        if step.cache and number not in fills:
            fills[number] = _fill(step, number)
        return Probe(works[number], 1, measured(step.take, job.device)[1])

    take(order[0])  # pays for what all later steps use, as does what is filled for it
    small = take(order[0])
    fixed = before + state_bytes(step)
    per_position = max(0.0, (small.cost.peak - fixed) / small.work.largest)
    largest = max(works, key=lambda work: work.largest).largest
    probes, began = [small], time.perf_counter()
    fits = fixed + per_position * largest <= room
    for number in order[1:MOST]:
        if len(probes) >= LEAST and time.perf_counter() - began > SECONDS:
            break
        if fits or works[number].largest < largest:
            probes.append(take(number))
    if fits and largest > small.work.largest:
        probes.append(take(order[1]))  # once more, as memory looks after a while
    top = max(probes, key=lambda probe: probe.cost.peak)
    per_position = max(per_position, (top.cost.peak - fixed) / top.work.largest) if fits else per_position
    found = Steps(probes, fixed, per_position, largest, fits)
    if step.cache is None:
        return found
    answers = [_answer_kept(step, number) for number in (order[0], *fills)][1:]
    to_keep = step.cache.size - step.cache.filled
    return replace(found, fills=[*fills.values()][1:] or [*fills.values()], answers=answers, to_keep=to_keep)


def fill_work(job: Job, rows: Sequence[int]) -> Passes:
    """The passes that compute the states of rows which share a step of the first epoch."""
    return work_of(job, rows, PASS)


def _fill(step: Step, number: int) -> Probe:
    """Compute what frozen blocks make of the rows of a step of the first epoch."""
    job, cache, rows = step.job, step.cache, step.job.plan[number][1]
    assert cache is not None
    enter_training(job.model, job.method)
    _, cost = measured(lambda: cache.fill([job.train[i] for i in rows]), job.device)
    return Probe(fill_work(job, rows), 0, cost)


def _answer_kept(step: Step, number: int) -> Probe:
    """Answer the rows of a step from states that are kept."""
    import torch

    job, rows = step.job, step.job.plan[number][1]
    job.model.module.eval()

    def answer() -> None:
        for group in micro_batches(rows, job.lengths, step.budget):
            with feeding(step.cache, [job.train[i] for i in group]) as fed, computing(job.precision, job.device):
                job.objective.terms(job.model.task, job.model.module, job.model.task.collate(fed).to(job.device))

    with torch.no_grad():
        _, cost = measured(answer, job.device)
    return Probe(work_of(job, rows, step.budget), 0, cost)


def state_bytes(step: Step) -> int:
    """Of gradients, and of what the optimizer and an average keep beside the weights."""
    weights = sum(p.nbytes for p in step.state.parameters.values())
    kept = sum(t.nbytes for name, t in step.state.tensors().items() if name.startswith(("optimizer/", "average/")))
    return weights + kept


def probe_answers(
    model: Model, sets: Sequence[Sequence[Example]], budget: int, precision: str, device: Any
) -> list[Probe]:
    """Predict the largest batch of the evaluation sets, one such as training makes, and the shortest row alone.

    Args:
        budget: positions of a pass while training, in which validation rows are evaluated.
    """
    examples = [example for one in sets for example in one]
    lengths = [e.length for e in examples]

    def predict(batch: list[int]) -> Probe:
        rows = [examples[i] for i in batch]
        with computing(precision, device):
            _, cost = measured(lambda: model.task.predict(model, rows), device)
        return Probe(passes([batch], lengths), 0, cost)

    def size(batch: list[int]) -> int:
        return passes([batch], lengths).positions

    shortest = [int(np.argmin(lengths))]
    between = sorted(in_batches(examples, budget // 2), key=size)
    predict(shortest)  # pays for what all others use
    return [predict(b) for b in (shortest, between[len(between) // 2], max(in_batches(examples), key=size))]


def probe_scores(model: Model, examples: Sequence[Example], precision: str, device: Any) -> Cost:
    """Scores and their intervals for as many rows as a set has, from the answers to a few of them."""
    few = examples[:16]
    with computing(precision, device):
        answers = model.task.predict(model, few)
    as_many = subset(answers, np.resize(np.arange(len(few)), len(examples)))
    return measured(lambda: score(as_many, getattr(model.task, "labels", [])), device)[1]


def probe_generated_scores(references: Sequence[str], pattern: str | None, device: Any) -> Cost:
    """Scores of generated answers, with the library that they are taken from."""
    return measured(lambda: generation(references, references, [True] * len(references), pattern), device)[1]


@dataclass(frozen=True)
class Generation:
    """What prompts cost that are answered together: `prompt` to read them and say one token, `token` for each more."""

    rows: int
    prompt: Cost
    token: Cost


def probe_generation(model: Model, prompts: Sequence[Any], device: Any) -> Generation:
    """Answer as many of the prompts as `generate` would take together, with few tokens."""

    def answer(tokens: int) -> Cost:
        return measured(lambda: model.task.generate(model, prompts, max_new_tokens=tokens), device)[1]  # type: ignore[attr-defined]

    answer(1)
    one, more = answer(1), answer(1 + TOKENS)
    token = Cost(
        max(0.0, more.seconds - one.seconds) / TOKENS, max(0.0, more.cpu_seconds - one.cpu_seconds) / TOKENS, more.peak
    )
    return Generation(len(prompts), one, token)


@dataclass(frozen=True)
class Picture:
    """What it costs to draw an image: `first` for the text encoders, one step and the VAE, `step` for each more."""

    first: Cost
    step: Cost

    def of(self, steps: int) -> tuple[float, float]:
        """Seconds on the clock and of the processors."""
        return (
            self.first.seconds + (steps - 1) * self.step.seconds,
            self.first.cpu_seconds + (steps - 1) * self.step.cpu_seconds,
        )


def probe_picture(model: Model, prompt: str, precision: str, device: Any) -> Picture:
    """Draw an image in one step, and in a few."""

    def draw(steps: int) -> Cost:
        with computing(precision, device):
            return measured(lambda: model.task.images(model, [prompt], steps=steps), device)[1]  # type: ignore[attr-defined]

    one = draw(1)
    one = draw(1) if one.seconds < SECONDS else one  # the first pays for what all later ones use
    more = draw(1 + DRAWN_STEPS)
    clock, cpu = more.seconds - one.seconds, more.cpu_seconds - one.cpu_seconds
    return Picture(one, Cost(max(0.0, clock) / DRAWN_STEPS, max(0.0, cpu) / DRAWN_STEPS, more.peak))


def probe_checkpoint(step: Step) -> tuple[Cost, int]:
    """Write as much of a checkpoint as `WRITTEN`; the cost of all of it, and its bytes."""
    tensors = step.state.tensors()
    total = sum(tensor.nbytes for tensor in tensors.values())
    some: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if sum(t.nbytes for t in some.values()) < WRITTEN:
            some[name] = tensor
    written = sum(tensor.nbytes for tensor in some.values())
    with tempfile.TemporaryDirectory(dir=step.job.folder) as place:
        _, cost = measured(lambda: checkpoint.write(Path(place), 1, some, step.state.numbers()), step.job.device)
    share = total / written
    return Cost(cost.seconds * share, cost.cpu_seconds * share, cost.peak), total


def evaluation_work(examples: Sequence[Example], budget: int = PASS) -> Passes:
    """The passes that all rows of a set need."""
    return passes(in_batches(examples, budget), [e.length for e in examples])

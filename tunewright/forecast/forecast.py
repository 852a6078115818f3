"""From probes to a whole run: its time, its memory, its disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.artifacts.prior import STEPS
from tunewright.engine.device import micro_batch_tokens
from tunewright.engine.job import Job
from tunewright.engine.log import peak_memory
from tunewright.engine.loop import Step, ready
from tunewright.evaluation.evaluate import question_of, rows_to_ask
from tunewright.forecast.costs import Passes, Rate, fit
from tunewright.forecast.draws import probe_draws, probe_measuring
from tunewright.forecast.meter import Cost, available
from tunewright.forecast.probe import (
    Probe,
    Steps,
    evaluation_work,
    fill_work,
    probe_answers,
    probe_checkpoint,
    probe_generated_scores,
    probe_generation,
    probe_picture,
    probe_scores,
    probe_steps,
    work_of,
)
from tunewright.head_first import alone
from tunewright.methods.base import parameter_count, train_only, trained_parameters
from tunewright.prepare import Prepared

MEMORY_ERROR, TIME_ERROR = 0.10, 0.15
"""More than eight of ten recipes of benchmarks/results/forecast.md ended within these shares of what was forecast."""
DRAWN_ERROR = 0.5
"""The same for the time of a policy that draws answers, where it was seen on two recipes only."""
ASKED = 32
"""Prompts that are answered together to see how long all of them will take."""


@dataclass
class Forecast:
    """What a run will cost: seconds of each phase on the clock and of the processors, and bytes held in each.

    Attributes:
        steps: what the steps were found to cost, for advice.
        disk: bytes of the checkpoints that are kept at the same time, and of the model.
        room: bytes that the process may hold on its device.
        error: how far off the time may be.
    """

    steps: Steps
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    room: int = 0
    error: float = TIME_ERROR

    def spend(self, phase: str, seconds: float, cpu_seconds: float) -> None:
        before = self.seconds.get(phase, (0.0, 0.0))
        self.seconds[phase] = before[0] + seconds, before[1] + cpu_seconds

    def hold(self, phase: str, peak: int) -> None:
        self.peaks[phase] = max(self.peaks.get(phase, 0), peak)

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.room

    def to_dict(self, folder: Path) -> dict[str, Any]:
        clock, cpu = (sum(spent[i] for spent in self.seconds.values()) for i in (0, 1))
        return {
            "time": {
                "seconds": clock,
                "cpu_seconds": cpu,
                "error": self.error,
                "phases": {name: spent[0] for name, spent in self.seconds.items()},
                "probes": len(self.steps.probes),
            },
            "memory": {
                "peak": self.peak,
                "error": MEMORY_ERROR,
                "available": self.room,
                "fits": self.fits,
                "phases": self.peaks,
            },
            "disk": {"needed": self.disk, "free": shutil.disk_usage(folder).free},
        }


@dataclass(frozen=True)
class Rates:
    """What passes cost on the clock and of the processors."""

    clock: Rate
    cpu: Rate

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> Rates:
        clock = fit([(p.work, p.steps, p.cost.seconds) for p in probes])
        return cls(clock, fit([(p.work, p.steps, p.cost.cpu_seconds) for p in probes]))

    def spend(self, work: Passes, steps: int = 0) -> tuple[float, float]:
        return self.clock.of(work, steps), self.cpu.of(work, steps)


def forecast(prepared: Prepared, job: Job) -> Forecast:
    """Take a few steps of a run, and answer and save a little, and add up what all of it will cost.

    The model and the job are of no use afterwards. What a run costs that stops early is not foreseen.
    """
    loaded, room = peak_memory(job.device), available(job.device)
    step = ready(job, rehearsal=True)
    prepared.adopt(job)
    prepared.notices.extend(step.notices)
    head = _head(job, room) if job.config.head_first else None
    if hasattr(job.objective, "measure"):  # it learns from what it answers
        steps, notice = probe_draws(step)
        prepared.notices.append(notice)
        found = Forecast(steps, room=room, error=DRAWN_ERROR)
    else:
        found = Forecast(probe_steps(step, room), room=room)
    answers = _answers(prepared, step)  # behind the steps, when as much is held as at the end of a run
    found.hold("loading", loaded)
    for before in (True, False) if prepared.recipe.evaluation.before else (False,):
        name = "answers before" if before else "answers after"
        found.spend(name, *answers.spend(before))
        found.hold(name, answers.peak)
    if head:
        _train(found, "head first", head.job, head.steps, answers.rates)
    _train(found, "training", job, found.steps, answers.rates)
    _draw(found, prepared, job)
    _save(found, step)
    return found


@dataclass(frozen=True)
class Answers:
    """What it costs to measure the model once: the passes with their scores, and what is generated.

    Attributes:
        generated: seconds before training (True), and after it.
    """

    rates: Rates
    passes: tuple[float, float]
    generated: Mapping[bool, tuple[float, float]]
    peak: int

    def spend(self, before: bool) -> tuple[float, float]:
        return self.passes[0] + self.generated[before][0], self.passes[1] + self.generated[before][1]


def _answers(prepared: Prepared, step: Step) -> Answers:
    job = step.job
    if hasattr(job.objective, "measure"):
        return _drawn(prepared, step)
    model, device, names = prepared.model, job.device, prepared.evaluation_sets()
    sets = [prepared.examples(name) for name in names] or [list(job.train[:64])]
    budget = micro_batch_tokens(job.config, device)
    probes = probe_answers(model, [*sets, job.validation], budget, job.precision, device)
    rates = Rates.of(probes)
    seconds = [rates.spend(evaluation_work(examples)) for examples in sets] if names else []
    costs = [probe.cost for probe in probes]
    for name in names:
        scored = probe_scores(model, prepared.examples(name), job.precision, device)
        seconds.append((scored.seconds, scored.cpu_seconds))
        costs.append(scored)
    generated = {True: (0.0, 0.0), False: (0.0, 0.0)}
    for name in names:
        for before, spent, cost in _generated(prepared, name, device):
            generated[before] = generated[before][0] + spent[0], generated[before][1] + spent[1]
            costs.append(cost)
    total = sum(s for s, _ in seconds), sum(c for _, c in seconds)
    return Answers(rates, total, generated, max(cost.peak for cost in costs))


def _drawn(prepared: Prepared, step: Step) -> Answers:
    """What it costs to measure a policy: answers to the prompts, and what these get."""
    sets = [prepared.examples(name) for name in prepared.evaluation_sets()]
    probe, cost = probe_measuring(step, [e for one in sets for e in one] or step.job.train)
    rates, nothing = Rates.of([probe]), (0.0, 0.0)
    seconds = [rates.spend(evaluation_work(examples)) for examples in sets]
    total = sum(s for s, _ in seconds), sum(c for _, c in seconds)
    return Answers(rates, total, {True: nothing, False: nothing}, cost.peak)


def _generated(prepared: Prepared, name: str, device: Any) -> Iterator[tuple[bool, tuple[float, float], Cost]]:
    """What generating answers to one set costs before training and after it.

    Before, a base is taken to go on as long as it may; after, to answer as long as the longest reference.
    """
    evaluation, model = prepared.recipe.evaluation, prepared.model
    records = prepared.rows.sets()[name].records
    asked = list(rows_to_ask(model, prepared.examples(name), records, evaluation.generate))
    if not asked:
        return
    pairs = [question_of(record) for record in asked]
    found = probe_generation(model, [question for question, _ in pairs[:ASKED]], device)
    longest = max(len(model.processor(reference)["input_ids"]) for _, reference in pairs) + 1
    share = len(pairs) / found.rows
    scored = probe_generated_scores([reference for _, reference in pairs], evaluation.pattern, device)
    for before, tokens in ((True, evaluation.max_new_tokens), (False, min(longest, evaluation.max_new_tokens))):
        clock, cpu = (
            share * (getattr(found.prompt, unit) + (tokens - 1) * getattr(found.token, unit)) + getattr(scored, unit)
            for unit in ("seconds", "cpu_seconds")
        )
        yield before, (clock, cpu), max(found.token, scored, key=lambda cost: cost.peak)


@dataclass(frozen=True)
class _Head:
    job: Job
    steps: Steps


def _head(job: Job, room: int) -> _Head:
    """The head's own training, with the model's other weights put back in training afterwards."""
    trained = set(trained_parameters(job.model.module))
    own = alone(job, job.folder)
    steps = probe_steps(ready(own, rehearsal=True), room)
    train_only(job.model.module, trained)
    return _Head(own, steps)


def _train(found: Forecast, phase: str, job: Job, steps: Steps, answers: Rates) -> None:
    """Steps and the evaluations among them."""
    budget, world = micro_batch_tokens(job.config, job.device), job.config.processes
    work = sum((work_of(job, rows, budget, world) for _, rows in job.plan), Passes())
    found.spend(phase, *Rates.of(steps.probes).spend(work, len(job.plan)))
    found.hold(phase, steps.peak * (world if job.device.type == "cpu" else 1))
    if steps.fills:
        fill = sum((fill_work(job, rows) for rows in job.epoch(0)), Passes())
        found.spend(f"{phase}: frozen blocks", *Rates.of(steps.fills).spend(fill))
    if job.validation:
        times, work = math.ceil(len(job.plan) / job.evaluate_every), evaluation_work(job.validation, budget)
        first = answers.spend(work)
        later = Rates.of(steps.answers).spend(work) if steps.answers else first
        found.spend(f"{phase}: validation", *((a + (times - 1) * b) / world for a, b in zip(first, later, strict=True)))


def _draw(found: Forecast, prepared: Prepared, job: Job) -> None:
    """Images of the class before the training, each by itself as on a CPU, and sample pictures."""
    data, wanted, prompts = prepared.recipe.data, prepared.recipe.evaluation, prepared.sample_prompts()
    prior = data.prior_images if data.prior_prompt else 0
    if not (prior or prompts):
        return
    picture = probe_picture(prepared.model, (prompts or [str(data.prior_prompt)])[0], job.precision, job.device)
    between = (len(job.plan) - 1) // job.evaluate_every if wanted.prompts else 0
    times = len(prompts) * (1 + between + bool(wanted.prompts or wanted.before))
    for phase, count, steps in (("images of the class", prior, STEPS), ("sample pictures", times, wanted.image_steps)):
        if count:
            clock, cpu = picture.of(steps)
            found.spend(phase, count * clock, count * cpu)
            found.hold(phase, picture.step.peak)


def _save(found: Forecast, step: Step) -> None:
    """Checkpoints, and at the end the weights that are kept: read again, and saved."""
    job = step.job
    cost, size = probe_checkpoint(step)
    every, last = job.config.checkpoint_every or job.evaluate_every, len(job.plan)
    written = set(range(every, last, every)) | {last}
    written |= set(range(job.evaluate_every, last, job.evaluate_every)) if job.validation else set()
    times = len(written) + 1  # reading one back costs about the same
    found.spend("checkpoints", times * cost.seconds, times * cost.cpu_seconds)
    found.hold("checkpoints", cost.peak)
    weights = sum(p.nbytes for p in step.state.parameters.values())
    if job.device.type == "cpu":  # those that are kept are read beside all that a step needs
        found.hold("end", found.steps.fixed + weights)
    whole = job.method.saved_as == "transformers"
    found.disk = 4 * size + (4 * parameter_count(job.model.module) if whole else weights)

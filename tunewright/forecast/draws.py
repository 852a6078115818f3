"""What a policy costs that learns from its own answers: a few draws done whole, with all steps that are taken on them.

How long answers are decides what they cost, and that is known by drawing some. They are the base's: a policy that
learns to say more, or less, takes longer, or less long, than is foreseen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tunewright.data.batches import Example
from tunewright.engine.loop import Step
from tunewright.errors import counted
from tunewright.forecast.costs import Passes
from tunewright.forecast.meter import Cost, measured
from tunewright.forecast.probe import SECONDS, STILL, Probe, Steps, state_bytes

MOST = 3
ASKED = 8
"""Prompts that are answered to see how long it takes to measure the policy."""


def probe_draws(step: Step) -> tuple[Steps, str]:
    """Draw answers and learn from them, for about `SECONDS` but once at least; and a sentence on what was found."""
    job, each = step.job, step.job.objective.updates
    job.config = job.config.model_copy(update={"learning_rate": STILL})
    before = measured(lambda: None, job.device)[1].peak
    draws = len(job.plan) // each or 1
    probes, lengths, began = [], [], time.perf_counter()
    for draw in range(min(MOST, draws)):
        lines: list[dict[str, Any]] = []
        step.state.step = draw * each
        own = min(each, len(job.plan) - draw * each)
        cost = measured(lambda own=own, lines=lines: lines.extend(step.take() for _ in range(own)), job.device)[1]  # type: ignore[misc]
        probes.append(Probe(Passes(), own, cost))
        lengths.append(lines[0]["length"])
        if time.perf_counter() - began > SECONDS:
            break
    probes = probes[1:] or probes  # the first pays for what all later ones use
    said = f"{sum(lengths) / len(lengths):.3g} tokens"
    notice = (
        f"Time is foreseen from {counted(len(lengths), 'draw')} of answers, {said} long on average: it grows with "
        "their length, which learning can change."
    )
    return Steps(probes, before + state_bytes(step), 0.0, 0, True), notice


def probe_measuring(step: Step, prompts: Sequence[Example]) -> tuple[Probe, Cost]:
    """What it costs to answer some prompts once and score the answers, by their positions."""
    objective: Any = step.job.objective
    few = list(prompts)[:ASKED]
    cost = measured(lambda: objective.measure(step.learner, few), step.job.device)[1]
    return Probe(Passes(positions=sum(e.length for e in few)), 0, cost), cost

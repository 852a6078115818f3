"""A new head learns alone on the frozen base before the method begins (LP-FT, Kumar et al., arXiv 2202.10054).

The method then distorts the features less, and both ends of the path from start to end share a head (WiSE-FT).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tunewright.artifacts.start import HEAD, Start, keep_head, new_parameters
from tunewright.deciding import hidden_size
from tunewright.engine.device import auto_learning_rate
from tunewright.engine.job import Job, Watcher
from tunewright.engine.loop import Step, ready, train
from tunewright.errors import RecipeError
from tunewright.methods import Head
from tunewright.methods.base import train_only, trained_parameters


def refuse_idle(job: Job) -> None:
    """Raises RecipeError where there is no new head, or nothing else trains."""
    new = {name for name, _ in new_parameters(job.model)}
    if not new:
        raise RecipeError("training.head_first: the base has its head already, or it does not train. Leave it out.")
    if new == trained_parameters(job.model.module).keys():
        raise RecipeError("training.head_first: only the head trains here anyway. Leave it out.")


def train_head(job: Job, start: Start) -> Step:
    """Train the new head alone for `training.head_first` epochs, and keep it as the run's start; the run's first step.

    It is a run of the loop within the run's `start/` folder, with checkpoints of its own until it is done: one that
    was interrupted goes on there.
    """
    trained = set(trained_parameters(job.model.module))
    passed: list[str] = []
    if not (start.folder / HEAD).is_file():
        start.folder.mkdir(exist_ok=True)
        step = ready(alone(job, start.folder), resume=True)
        passed = step.passed
        train(step)
        if job.processes.first:
            keep_head(job.model, start.folder)
            shutil.rmtree(start.folder / "checkpoints", ignore_errors=True)
        job.processes.wait()
        train_only(job.model.module, trained)
    start.overlay(job.model)
    step = ready(job, resume=False)
    step.notices += passed
    return step


def alone(job: Job, folder: Path) -> Job:
    """The head's own training, within `folder`; from here on nothing else of the model trains."""
    train_only(job.model.module, {name for name, _ in new_parameters(job.model)})
    rate = auto_learning_rate(Head.learning_rate, hidden_size(job.model))
    warmup = job.config.warmup if job.config.warmup < 1 else job.config.warmup / len(job.plan)  # the share of the run
    plan = {
        "epochs": job.config.head_first, "max_steps": None, "learning_rate": rate, "ema": None, "patience": None,
        "layer_decay": 1.0, "gradual_unfreezing": None, "warmup": warmup,
    }  # fmt: skip
    return replace(
        job,
        method=Head(),
        config=job.config.model_copy(update=plan),
        folder=folder,
        watchers=[_as_head(w) for w in job.watchers],
    )


def _as_head(watcher: Watcher) -> Watcher:
    """Tell the lines of the head's own training from those of the run."""
    return lambda line: watcher({**line, "phase": "head"})

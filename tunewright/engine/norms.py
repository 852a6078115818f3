"""Batch norms in training: what a row becomes depends on the rows beside it, so a step must be one forward pass."""

from __future__ import annotations

from tunewright.engine.job import Job
from tunewright.errors import RecipeError
from tunewright.methods.base import moving_norms

REMEDY = "Leave it out, or set method.batch_norm: freeze_stats."


def needs_one_pass(job: Job) -> bool:
    """Whether all rows of a step must share a forward pass.

    Raises RecipeError where the recipe cuts steps into several, or deals them to several processes.
    """
    if not moving_norms(job.model.module, job.method):
        return False
    why = "Batch norms that train normalize by all rows of a step"
    if job.processes.world > 1:
        raise RecipeError(f"training.processes: {why}, which processes share out. {REMEDY}")
    budget = job.config.micro_batch_tokens
    largest = max(max(job.lengths[i] for i in rows) * len(rows) for _, rows in job.plan)
    if budget != "auto" and budget < largest:
        raise RecipeError(
            f"training.micro_batch_tokens: {why}, and the largest step has {largest:,} positions. {REMEDY}"
        )
    return True

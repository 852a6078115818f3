"""Batch norms in training: what a row becomes depends on the rows beside it, so a step must be one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.errors import RecipeError
from tunewright.methods.base import moving_norms

if TYPE_CHECKING:
    from torch import nn

REMEDY = "Leave it out, or set method.batch_norm: freeze_stats."


def needs_one_pass(job: Job) -> bool:
    """Whether all rows of a step must share a forward pass.

    Raises RecipeError where the recipe cuts steps into several, deals them to several processes, or has a step of one
    row that leaves a norm with one value a channel.
    """
    norms = moving_norms(job.model.module, job.method)
    if not norms:
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
    lone = next((rows[0] for _, rows in job.plan if len(rows) == 1), None)
    if lone is not None and min(_values(job, lone, norms), default=2) < 2:
        raise RecipeError(
            f"training.batch: {why}, and a step of one row leaves them one number a channel, whose variance is none. "
            "Make it 2 or more, or set method.batch_norm: freeze_stats."
        )
    return True


def _values(job: Job, row: int, norms: list[nn.Module]) -> list[int]:
    """How many numbers each norm has for a channel in a forward pass of one row."""
    import torch

    found: list[int] = []

    def note(_: nn.Module, given: tuple[Any, ...]) -> None:
        found.append(given[0].numel() // given[0].shape[1])

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    job.model.module.eval()  # so that nothing moves
    try:
        with torch.no_grad(), computing(job.precision, job.device):
            job.model.task.nll(job.model.module, job.model.task.collate([job.train[row]]).to(job.device))
    finally:
        for handle in handles:
            handle.remove()
    return found

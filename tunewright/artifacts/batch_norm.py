"""The statistics of batch norms between a run's start and its end, measured anew on training rows.

The activations of blended weights have other means and variances than the blend of both ends' (Izmailov et al.,
arXiv 1803.05407, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.batches import Example
from tunewright.errors import RecipeError
from tunewright.methods.base import is_batch_norm, plain_name
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn

ROWS = 2_000
"""Enough rows for means and variances."""

BATCH = 32


def moved_norms(start: Model, end: Model) -> set[str]:
    """The batch norms whose statistics followed the training rows.

    One that was held still is the same affine layer at both ends, and so at every point between: to measure it anew
    would lead off the path.

    Raises:
        RecipeError: there is none.
    """
    import torch

    before, after = dict(batch_norms(start.module)), dict(batch_norms(end.module))
    if not after:
        raise RecipeError("batch_norm: this model has no batch norm: leave it out.")
    moved = {name for name, norm in after.items() if not torch.equal(before[name].running_mean, norm.running_mean)}
    if not moved:
        raise RecipeError("batch_norm: the batch norms of this run were held still in training: leave it out.")
    return moved


def batch_norms(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """All batch norms, by their names in the model that no method has wrapped."""
    for name, layer in module.named_modules():
        if is_batch_norm(layer) and ".original_module" not in name:
            yield plain_name(name), layer


def recompute(model: Model, names: set[str], examples: Sequence[Example]) -> None:
    """Measure the statistics of the named batch norms anew, in place: their mean over random batches of the rows.

    Everything else stays in eval mode, so that no dropout adds to them.
    """
    import torch

    norms = [norm for name, norm in batch_norms(model.module) if name in names]
    momenta = [norm.momentum for norm in norms]
    device = next(model.module.parameters()).device
    order = np.random.default_rng(0).permutation(len(examples))
    model.module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean over all batches
        norm.train()
    with torch.no_grad():
        for rows in np.array_split(order, math.ceil(len(order) / BATCH)):  # of nearly one size: none has a single row
            model.task.nll(model.module, model.task.collate([examples[i] for i in rows]).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()

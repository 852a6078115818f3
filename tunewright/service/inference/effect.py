"""Whether a tuned model answers otherwise than its start does: where it does not, its weights have no effect."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tunewright.artifacts.interpolate import load as load_point
from tunewright.errors import TunewrightError
from tunewright.service.effect import Effect, Finding
from tunewright.service.errors import Refused
from tunewright.service.inference.models import Models, Ready
from tunewright.service.inference.protocol import ModelRef
from tunewright.tasks import task_class

PROBE = "Once upon a time there was"
LAST = 8
"""Tokens at the end of the vocabulary that are asked too: rows of those that were added may be all that trained."""
ROUNDING = 16
"""Times the precision's epsilon: a smaller change may be lost where answers are made in another way."""


def same_answers(tuned: Ready, start: Ready) -> bool:
    """Whether both give the same logits, to the last bit."""
    ids = probe(tuned, start)
    one, other = logits_of(tuned, ids), logits_of(start, ids)
    return bool(torch.equal(one, other))


def probe(*models: Ready) -> list[int]:
    """Tokens that all of them read."""
    rows = [model.model.module.get_input_embeddings().weight.shape[0] for model in models]
    known = min(*rows, len(models[0].model.processor))
    ids = [*models[0].renderer.prompt(PROBE), *range(max(0, known - LAST), known)]
    return [id for id in ids if id < known][-models[0].limit :]


def logits_of(ready: Ready, ids: Sequence[int]) -> Tensor:
    """[T, V], made as answers are."""
    shared = ready.shared
    if not shared.bank:
        return _logits(shared.module, ids)
    with shared.bank.using(shared.bank.route([ready.terms])):
        return _logits(shared.module, ids)


def _logits(module: Any, ids: Sequence[int]) -> Tensor:
    device = next(module.parameters()).device
    with torch.inference_mode():
        logits_1TV = module(input_ids=torch.tensor([ids], device=device)).logits
    return logits_1TV[0, -len(ids) :]  # type: ignore[no-any-return]


def effect_of(model: ModelRef, task: str) -> Finding:
    """What becomes of a run's weights where they answer. Asked is a run on this machine that has ended."""
    if not hasattr(task_class(task), "generate"):
        return Finding(Effect.THERE)  # answered by the code that trained it
    models = Models(sys.maxsize)
    try:
        tuned = models.take(model)
    except Refused as error:
        broken = isinstance(error.__cause__, TunewrightError | SafetensorError)
        return Finding(Effect.BROKEN if broken else Effect.UNKNOWN, str(error.__cause__ or error))
    try:
        start = models.take(replace(model, alpha=0.0))
    except Refused:  # there is no path to where it began
        return Finding(Effect.THERE)
    if not same_answers(tuned, start):
        return Finding(Effect.THERE)
    ids = probe(tuned, start)
    end, begin = (_logits(load_point(str(model.run_folder), alpha=alpha).module, ids) for alpha in (1.0, 0.0))
    change = float((end - begin).abs().max() / begin.abs().max())
    return Finding(Effect.LOST if change > ROUNDING * torch.finfo(models.dtype).eps else Effect.NONE)

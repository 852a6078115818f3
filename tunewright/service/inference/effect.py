"""Whether a tuned model answers otherwise than its start does: where it does not, its weights have no effect."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tunewright.artifacts.interpolate import load as load_point
from tunewright.errors import MethodError, TunewrightError
from tunewright.service.errors import Refused
from tunewright.service.inference.models import Models, Ready
from tunewright.service.inference.protocol import Effect, Finding, ModelRef
from tunewright.tasks import task_class
from tunewright.tasks._rows import Batch, Form

PROBE = "Once upon a time there was"
LAST = 8
"""Tokens at the end of the vocabulary that are asked too: rows of those that were added may be all that trained."""
SHARE = 0.25
"""Of what LoRAs change: so much is a part of them, where it is lost."""
ROUNDING = 16
"""Times the precision's epsilon: a smaller change may be lost where answers are made in another way."""


def probe(*models: Ready) -> list[int]:
    """Tokens that all of them read."""
    rows = [model.model.module.get_input_embeddings().weight.shape[0] for model in models]
    known = min(*rows, len(models[0].model.processor))
    ids = [*models[0].renderer.prompt(PROBE), *range(max(0, known - LAST), known)]
    return [id for id in ids if id < known][-models[0].limit :]


def read_by(ready: Ready, ids: Sequence[int]) -> Tensor:
    """[1, V], as prompts are read."""
    with torch.inference_mode(), _using(ready, 1):
        return _batch(ready).read([ids])


def made_by(ready: Ready, start: Ready, ids: Sequence[int], plain: bool = False) -> Tensor:
    """[B, V], as answers go on: after each of the last tokens, if it came first after a prompt that the start has read.

    So what the tuned model makes of the prompt does not show; where models keep more than keys and values, it does.

    Args:
        plain: whether transformers makes it, and not what takes fewer calls.
    """
    form = _form(ready)
    reader = start if _form(start).joins and form.joins else ready
    count = min(LAST, len(ids) - 1)
    batch = _batch(reader)
    with torch.inference_mode():
        with _using(reader, 1):
            batch.read([ids[:-count]], count)
        batch.form = replace(form, quick=None) if plain else form
        with _using(ready, count):
            return batch.step(torch.tensor(ids[-count:], device=next(ready.shared.module.parameters()).device))


def loses(made: Sequence[Tensor], tuned: Ready, start: Ready, ids: Sequence[int]) -> bool:
    """Whether the way with fewer calls leaves a part of LoRAs out: it errs by a part of what these change.

    Args:
        made: what it makes of the tuned model and of the start.
    """
    if tuned.shared is not start.shared or not _form(tuned).quick:
        return False
    own = [made_by(ready, start, ids, plain=True).float() for ready in (tuned, start)]
    off, rounded = (float((one - other).abs().max()) for one, other in zip(made, own, strict=True))
    rounded = max(rounded, float(own[1].abs().max()) * torch.finfo(made[0].dtype).eps)
    return off > max(SHARE * float((own[0] - own[1]).abs().max()), ROUNDING * rounded)


def _batch(ready: Ready) -> Batch:
    form = _form(ready)
    return Batch(form, ready.model.processor.pad_token_id, ready.limit, open=form.joins)


def _form(ready: Ready) -> Form:
    assert ready.shared.form, "what generates has a form"
    return ready.shared.form


def _using(ready: Ready, rows: int) -> AbstractContextManager[None]:
    bank = ready.shared.bank
    return bank.using(bank.route([ready.terms] * rows)) if bank else nullcontext()


def _logits(module: Any, ids: Sequence[int]) -> Tensor:
    device = next(module.parameters()).device
    with torch.inference_mode():
        logits_1TV = module(input_ids=torch.tensor([ids], device=device)).logits
    return logits_1TV[0, -len(ids) :]  # type: ignore[no-any-return]


def effect_of(model: ModelRef, task: str, device: str = "auto") -> Finding:
    """What becomes of a run's weights where they answer. Asked is a run on this machine that has ended."""
    if not hasattr(task_class(task), "generate"):
        return Finding(Effect.THERE)  # answered by the code that trained it
    models = Models(sys.maxsize, device)
    try:
        tuned = models.take(model)
    except Refused as error:
        broken = isinstance(error.__cause__, TunewrightError | SafetensorError)
        return Finding(Effect.BROKEN if broken else Effect.UNKNOWN, str(error.__cause__ or error))
    try:
        start = models.take(replace(model, alpha=0.0))
    except Refused as error:
        pathless = isinstance(error.__cause__, MethodError)  # there is nothing to compare with
        return Finding(Effect.THERE) if pathless else Finding(Effect.UNKNOWN, str(error.__cause__ or error))
    ids = probe(tuned, start)
    read = [read_by(ready, ids) for ready in (tuned, start)]
    made = [made_by(ready, start, ids) for ready in (tuned, start)]
    seen = [not torch.equal(*pair) for pair in (read, made)]
    if all(seen):
        return Finding(Effect.LOST if loses(made, tuned, start, ids) else Effect.THERE)
    end, begin = (_logits(load_point(str(model.run_folder), alpha=alpha).module, ids) for alpha in (1.0, 0.0))
    change = float((end - begin).abs().max() / begin.abs().max())
    if change > ROUNDING * torch.finfo(models.dtype).eps:
        return Finding(Effect.LOST)
    return Finding(Effect.THERE if any(seen) else Effect.NONE)

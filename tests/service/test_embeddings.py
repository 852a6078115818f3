"""Vectors of texts are those of a whole pass, and are made without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.service.inference import train, tuned, with_engine
from tests.tiny import DECODERS, OTHERS
from tunewright.service.inference.local import LocalEngine, embedded
from tunewright.service.inference.models import Models, Ready
from tunewright.service.inference.protocol import Embed, ModelRef

TOKENS = [[5, 6, 7, 8, 9], [10, 11, 12]]


def whole(ready: Ready) -> torch.Tensor:
    """The mean of the last hidden states of a pass through all of the model, of which the second text is padded."""
    bank, pad = ready.shared.bank, ready.model.processor.pad_token_id
    ids_BT = torch.tensor([TOKENS[0], [*TOKENS[1], pad, pad]])
    mask_BT = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    with torch.inference_mode(), bank.using(bank.route([ready.terms] * 2)) if bank else nullcontext():
        found = ready.shared.module(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
    states_BTH = found.hidden_states[-1][:, -5:]
    return torch.stack([states_BTH[0].mean(0), states_BTH[1, :3].mean(0)])


def watched(ready: Ready) -> list[Any]:
    """Grows when the head computes logits."""
    calls: list[Any] = []
    ready.shared.module.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_who_goes_away_stops_nothing(tiny_base: Callable[..., str]) -> None:
    """What it asked may be waiting its turn, or be under way."""
    model = ModelRef("base", tiny_base("llama"))

    async def story(engine: LocalEngine) -> bool:
        busy, go_on = threading.Event(), threading.Event()
        await engine.embed(Embed(model, ((5, 6),)))
        for under_way in (False, True):
            busy.clear()
            go_on.clear()

            def hold() -> None:
                busy.set()
                go_on.wait(20)

            first = asyncio.ensure_future(engine._between(hold))
            await asyncio.to_thread(busy.wait, 20)
            asked = first if under_way else asyncio.ensure_future(engine.embed(Embed(model, ((5, 6),))))
            await asyncio.sleep(0.05)
            asked.cancel()
            await asyncio.sleep(0.05)
            go_on.set()
            found = await asyncio.wait_for(engine.embed(Embed(model, ((5, 6),))), 20)
            assert found.tokens == 2
        return await engine.healthy()

    assert with_engine(story)


@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_no_logits_are_made(tiny_base: Callable[..., str], kind: str) -> None:
    ready = Models(10**9, "cpu").take(ModelRef("base", tiny_base(kind)))
    expected, calls = whole(ready), watched(ready)
    torch.testing.assert_close(torch.tensor(embedded(ready, TOKENS)), expected, rtol=1e-6, atol=1e-6)
    assert not calls


@pytest.mark.parametrize("method", ["lora", "full", "dora", "adapter", "ia3", "prompt"])
def test_so_it_is_of_tuned_models(tiny_base: Callable[..., str], tmp_path: Path, method: str) -> None:
    base = tiny_base("llama")
    ready = Models(10**9, "cpu").take(tuned(base, train(base, tmp_path / "run", method)))
    expected, calls = whole(ready), watched(ready)
    torch.testing.assert_close(torch.tensor(embedded(ready, TOKENS)), expected, rtol=1e-6, atol=1e-6)
    assert len(calls) == (method == "prompt"), "virtual tokens go through the whole"

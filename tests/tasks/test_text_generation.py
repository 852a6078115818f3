"""What a language model is fed of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.contracts.steps import prepared
from tests.tiny import chats
from tunewright.data.config import DataConfig
from tunewright.data.records import load_records
from tunewright.data.rendered import Rendered
from tunewright.errors import DataError
from tunewright.tasks.text_generation import TextGeneration

TURNS = [{"messages": [*a["messages"], *b["messages"]]} for a, b in zip(chats(6), chats(12)[6:], strict=True)]


def encoded(base: str, rows: list[dict[str, Any]], **reading: Any) -> tuple[Any, Any]:
    """A model with its rows, which it reads by the built-in template: a newline token or two follow each end."""
    config = DataConfig(train=rows, chat_template="plain", **reading)
    task = TextGeneration()
    model = task.load(base)
    records = load_records(rows, config)
    task.prepare(model, config, True)
    return model, task.encode(model, records.records, config)


def learned(model: Any, examples: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The likelihood of each trained token, and the gradients of their sum."""
    batch = model.task.collate(examples)
    nll_BT = model.task.nll(model.module, batch).nll_BT
    (nll_BT * batch.weight).sum().backward()
    return nll_BT[batch.weight != 0].detach(), [p.grad for p in model.module.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "mixtral", "gpt2", "mamba"])
@pytest.mark.parametrize("rows", [chats(6), TURNS], ids=["single", "turns"])
def test_what_follows_the_last_trained_token_is_not_fed_and_changes_nothing(
    kind: str, rows: Any, tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, experts and recurrence too: each token is learned from those before it, and these are the same."""
    model, short = encoded(tiny_base(kind), rows)
    monkeypatch.setattr(Rendered, "without_tail", lambda whole: whole)
    other, long = encoded(tiny_base(kind), rows)
    for a, b in zip(short.examples, long.examples, strict=True):
        assert a.length < b.length and a.trained == b.trained and a.weight[-1] > 0 and not b.weight[a.length :].any()
        for one, whole in ((a.inputs["input_ids"], b.inputs["input_ids"]), (a.target, b.target), (a.weight, b.weight)):
            assert np.array_equal(one, whole[: a.length])
    (nll, gradients), (nll_before, gradients_before) = learned(model, short.examples), learned(other, long.examples)
    torch.testing.assert_close(nll, nll_before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, gradients_before, rtol=1e-4, atol=1e-5)


def test_a_row_whose_end_token_fits_is_whole(tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    longest = max(e.length for e in encoded(base, TURNS)[1].examples) + 1  # its last token is not fed
    _, found = encoded(base, TURNS, max_length=longest, overlength="truncate")
    assert not found.overlength.truncated and found.limit == longest
    with pytest.raises(DataError, match="longer than"):
        encoded(base, TURNS, max_length=longest - 1)


@pytest.mark.parametrize("objective", ["preference", "reward"])
def test_answers_that_are_compared_are_read_to_their_last_token(objective: str, tiny_base: Callable[..., str]) -> None:
    """A reward model's score is read off it, as when it is served."""
    rows = [{"prompt": row["messages"][:1], "chosen": "a fox", "rejected": "an apple"} for row in chats(6)]
    found = prepared(tiny_base("llama"), rows, objective=objective, data={"chat_template": "plain"})
    tokenizer = found.model.processor
    ends = [part.inputs["input_ids"] for e in found.examples("train") for part in e.parts]
    last = {"preference": -1, "reward": -2}[objective]  # of a language model's row the last token is a target alone
    assert {int(ids[last]) for ids in ends} == {tokenizer.eos_token_id}

"""Tokenizing piece by piece gives what the tokenizer gives."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from tests.fixtures import FAMILIES, tiny_tokenizer
from tunewright.data.encoding import Encoder

SPECIAL = [token for names in FAMILIES.values() for token in (names.bos, names.eos, *names.others) if token]
texts = st.lists(st.sampled_from([*SPECIAL, "<|im", "[INST]x", " ", "  ", "\n", "\n\n", "Paris", "is", "é你"])).map(
    "".join
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=60)
@example(shared="Paris\n<s>is", ends=["<s>", " <eos>is<eos>"])
@example(shared="is<s>", ends=["x<eos>", "y"])
@given(shared=texts, ends=st.lists(texts, max_size=3))
def test_texts_are_encoded_as_each_is_alone(family, shared, ends):
    tokenizer = tiny_tokenizer(family)
    for greedy in ("is<eos>", "<s>x", "x<eos>", "</s>\n"):
        tokenizer.add_tokens([AddedToken(greedy, special=True)])
    tokenizer.add_tokens([AddedToken("<eos>", lstrip=True, special=True), AddedToken("\n<s>", normalized=False)])
    whole = [shared + end for end in ends]
    assert Encoder(tokenizer)(whole) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in whole]


def test_what_texts_share_is_tokenized_once(monkeypatch):
    tokenizer = tiny_tokenizer("chatml")
    encoder, seen = Encoder(tokenizer), []
    monkeypatch.setattr(Encoder, "_tokens", lambda self, texts: seen.extend(texts) or [[0]] * len(texts))
    turn = "<|im_start|>user\nHi<|im_end|>"
    assert encoder([turn, turn * 2, turn * 3]) == [[0] * 2, [0] * 4, [0] * 6]
    assert seen == ["<|im_start|>user\nHi", "<|im_end|>"]

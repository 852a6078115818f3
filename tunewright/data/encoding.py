"""Tokenizing many texts that share most of their parts, as the prompts of one conversation do.

A tokenizer cuts a text at its special tokens before anything else. So a text is its pieces, each from one special token
up to the next, and each piece is tokenized once however many texts hold it: a conversation of n turns costs n pieces,
not n prompts of n turns each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoder:
    """Texts to tokens, as the tokenizer does it alone, without what it puts in front of a text (BOS) or behind it."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text."""
        pieces = [self._pieces(text) for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(pieces)))
        tokens = dict(zip(distinct, self._tokens(distinct), strict=True))
        return [list(chain.from_iterable(tokens[piece] for piece in own)) for own in pieces]

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(found["input_ids"])

    def _pieces(self, text: str) -> list[str]:
        if self._added is None:
            return [text]
        cuts = [match.start() for match in self._added.finditer(text) if match[0] in self._cuts]
        return [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)]) if start < stop]

    @cached_property
    def _cuts(self) -> frozenset[str]:
        """Special tokens at which a text can be cut: not those that look at the text before them."""
        added = self.tokenizer.added_tokens_decoder.values()
        return frozenset(
            token.content
            for token in added
            if token.special and not (token.lstrip or token.single_word or token.normalized)
        )

    @cached_property
    def _added(self) -> re.Pattern[str] | None:
        """The tokens that are found first, the longest before others; none for a tokenizer in Python."""
        if not self.tokenizer.is_fast or not self._cuts:
            return None
        added = self.tokenizer.added_tokens_decoder.values()
        contents = sorted((token.content for token in added if not token.normalized), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, contents)))

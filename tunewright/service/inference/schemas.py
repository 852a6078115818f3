"""Answers that follow a JSON schema: only tokens are drawn with which an answer can still become such a document.

What follows from a schema is computed by llguidance, token for token.
"""

from __future__ import annotations

from typing import Any

import llguidance
import numpy as np
from llguidance.hf import from_tokenizer

from tunewright.service.errors import Refused
from tunewright.service.inference.models import Ready

BLANKS = r"[ \n\t]{0,20}"
"""White space between parts of a document; small models else go on with it for ever."""
OPTIONS: Any = {"whitespace_pattern": BLANKS, "coerce_one_of": True}
"""What is one of several is taken as any of them: a token cannot tell that two fit."""
LONGEST = 1 << 17
"""Characters of a schema, which take a second to read."""


class Follower:
    """Where an answer stands within its schema."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Follower:
        return Follower(self._matcher.deep_copy())

    def allowed(self, count: int) -> np.ndarray:
        """[V] of bool: which of so many tokens may come next; those that end answers where the document is whole."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
        return np.pad(bits[:count], (0, max(0, count - len(bits))))

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)


def follower_of(ready: Ready, schema: str) -> Follower:
    """For answers of this model that are to follow a JSON schema. Raises Refused (400): no schema, or no tokenizer.

    To read a large vocabulary takes a second, once for a model.
    """
    grammar = _grammar(schema)
    kept: dict[str, Any] = vars(ready.model)
    if "_vocabulary" not in kept:
        kept["_vocabulary"] = _vocabulary_of(ready)
    if fault := llguidance.LLMatcher.validate_grammar(grammar, kept["_vocabulary"]):
        raise _refused(fault)
    return Follower(llguidance.LLMatcher(kept["_vocabulary"], grammar, log_level=0))


def _grammar(schema: str) -> str:
    if len(schema) > LONGEST:
        raise _refused(f"it has {len(schema):,} characters, and {LONGEST:,} at most may be read")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS)
    except ValueError as error:
        raise _refused(str(error)) from error


def _vocabulary_of(ready: Ready) -> llguidance.LLTokenizer:
    tokenizer = ready.model.processor
    try:
        return from_tokenizer(tokenizer, n_vocab=len(tokenizer), eos_token=ready.renderer.stop_ids())
    except ValueError as error:
        said = f"response_format: the tokenizer of {ready.ref.shown} is too old to follow a schema: ask for text."
        raise Refused(400, said, param="response_format") from error


def _refused(fault: str) -> Refused:
    return Refused(400, f"response_format: the schema cannot be followed: {fault:.300}.", param="response_format")

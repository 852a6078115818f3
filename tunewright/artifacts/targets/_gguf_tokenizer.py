"""A tokenizer as llama.cpp keeps it in a gguf file: tokens, their kinds, merges, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunewright.data.render import Renderer
from tunewright.data.templates import leading_tokens
from tunewright.errors import BaseModelError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
}
"""How a byte-level tokenizer cuts a text before it merges, and the name that llama.cpp knows this by."""


def write_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Write a tokenizer to a file whose embeddings have so many rows.

    Raises BaseModelError for a tokenizer that llama.cpp would not cut texts like.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, pre = _kind(document)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [vocabulary.get(index, f"[PAD{index}]") for index in range(rows)]
    writer.add_token_list(tokens)
    writer.add_token_types(_types(document, tokens, vocabulary, kind))
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in document["model"]["merges"]]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    if kind == "llama":
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix("Prepend" in json.dumps(document["normalizer"]) or _metaspace(document))
    _write_special(writer, tokenizer)


def _kind(document: Mapping[str, Any]) -> tuple[str, str]:
    """llama.cpp's kind of tokenizer, and the way it cuts texts."""
    steps = document["pre_tokenizer"] or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    byte_level = next((step for step in steps if step["type"] == "ByteLevel"), None)
    splits = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if document["model"]["type"] == "BPE" and document["model"].get("byte_fallback"):
        return "llama", "default"
    if document["model"]["type"] == "BPE" and byte_level:
        pre = "gpt-2" if byte_level["use_regex"] and not splits else SPLITS.get("|".join(map(str, splits)))
        if pre:
            return "gpt2", pre
    raise BaseModelError(
        "This tokenizer cuts texts in a way that is not written to gguf: known are SentencePiece with bytes, and the "
        "byte-level ones of GPT-2, Llama 3 and Qwen. Export the model as merged."
    )


def _metaspace(document: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space in front of a text by its pre-tokenizer."""
    step = document["pre_tokenizer"] or {}
    return step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never"


def _types(document: Mapping[str, Any], tokens: list[str], vocabulary: Mapping[int, str], kind: str) -> list[int]:
    from gguf import TokenType

    added = {token["content"]: token["special"] for token in document["added_tokens"]}
    unknown = document["model"].get("unk_token")

    def type_of(index: int, token: str) -> int:
        if index not in vocabulary:
            return TokenType.UNUSED
        if kind == "llama" and token == unknown:
            return TokenType.UNKNOWN
        if token in added:
            return TokenType.CONTROL if added[token] else TokenType.USER_DEFINED
        is_byte = kind == "llama" and len(token) == 6 and token.startswith("<0x")
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    return [int(type_of(index, token)) for index, token in enumerate(tokens)]


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp joins the two neighbours whose token scores highest: here the one that is merged first."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _write_special(writer: Any, tokenizer: Any) -> None:
    writer.add_eos_token_id(tokenizer.eos_token_id)
    turn_ends = [token for token in Renderer(tokenizer).stop_ids() if token != tokenizer.eos_token_id]
    if turn_ends:
        writer.add_eot_token_id(turn_ends[0])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer.bos_token_id in leading_tokens(tokenizer))
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)

"""The chat template of a tokenizer that has none, and the choice of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.data.chat import PROBE, Chat
from tunewright.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = """\
{%- if tools %}{{ raise_exception("the plain template cannot present tools") }}{% endif %}
{%- for message in messages %}
{%- if message.tool_calls %}{{ raise_exception("the plain template cannot present tool calls") }}{% endif %}
{{- message.role + ":\\n" + message.content }}
{{- (eos_token if message.role == "assistant" else "") + "\\n\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "assistant:\\n" }}{% endif %}"""
"""Roles as plain words, so that no token is new; an answer ends with EOS."""


def ensure_chat_template(tokenizer: PreTrainedTokenizerBase, choice: str | None) -> str | None:
    """Give the tokenizer the chat template that it is trained, saved and served with.

    Args:
        choice: the path of a Jinja file; "plain" for the built-in one; none for the tokenizer's own, and the built-in
            one where it has none.

    Returns:
        What was done, if anything.

    Raises:
        DataError: the file cannot be read, or is no chat template.
    """
    if choice is None and tokenizer.chat_template:
        return None
    if choice is None or choice == "plain":
        tokenizer.chat_template = _plain(tokenizer)
        why = "the tokenizer has no chat template" if choice is None else "data.chat_template is plain"
        return f"{why}: the built-in plain one is used, and saved with the model."
    tokenizer.chat_template = _from_file(choice)
    Chat(tokenizer).text(PROBE, add_generation_prompt=True)  # a mistake in it shows here, not at the first row
    return f"the chat template of {choice} is used, and saved with the model."


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts in front of a text, e.g. BOS."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    return next(whole[:start] for start in range(len(whole)) if whole[start : start + len(bare)] == bare)


def _plain(tokenizer: PreTrainedTokenizerBase) -> str:
    bos = tokenizer.bos_token_id
    return ("{{- bos_token }}\n" if bos is not None and bos in leading_tokens(tokenizer) else "") + PLAIN


def _from_file(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.chat_template: {path} cannot be read ({error}).") from error

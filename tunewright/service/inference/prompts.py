"""What a model is fed when it is asked: as it saw prompts in training."""

from __future__ import annotations

from tunewright.api import question
from tunewright.data.kinds import Conversation
from tunewright.data.messages import check_prompt, text_of
from tunewright.data.render import Renderer
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Generate
from tunewright.tasks.text_generation import prompt_tokens

PIECE = 1 << 16
"""Characters of a prompt that are read at a time while it may be too long: a thread is soon free again."""
EDGE = 16
"""Tokens by which a text may have less than two parts of it have together."""


def tokens_of(asked: Generate, renderer: Renderer, chats: bool) -> list[int]:
    """The tokens that a model is fed: as it saw them in training.

    One that does not chat is given the texts of the messages, a line each. Raises DataError for what cannot be read.
    """
    return list(asked.prompt) if isinstance(asked.prompt, tuple) else prompt_tokens(renderer, _read(asked, chats))


def is_long(asked: Generate) -> bool:
    """Whether it is worth a look at the pieces first: to read a text of megabytes takes seconds."""
    given = asked.prompt if isinstance(asked.prompt, str) else repr((asked.messages, asked.tools))
    return not isinstance(asked.prompt, tuple) and len(given) > PIECE


def pieces_of(asked: Generate, renderer: Renderer, chats: bool) -> list[str]:
    """The text of a prompt, cut. Raises DataError as `tokens_of` does."""
    prompt = _read(asked, chats)
    told = (prompt.messages, prompt.tools) if isinstance(prompt, Conversation) else (prompt,)
    text = renderer.text(*told)
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def room_for_answer(shown: str, count: int, limit: int, chat: bool, about: str = "") -> int:
    """How many tokens an answer may have behind a prompt of `count`. Raises Refused where there is room for none.

    Args:
        shown: the model's name.
        limit: positions that a prompt and its answer may fill together.
        chat: whether messages were asked, and no prompt.
        about: what stands in front of the count, where it is not exact.
    """
    if count < limit:
        return limit - count
    raise Refused(
        400, f"The prompt has {about}{count} tokens, and {shown} can hold {limit} together with the answer. Shorten "
        "it.", "context_length_exceeded", "messages" if chat else "prompt",
    )  # fmt: skip


def _read(asked: Generate, chats: bool) -> str | Conversation:
    if asked.prompt is not None:
        assert isinstance(asked.prompt, str)
        return question(asked.prompt, None, False)
    messages = check_prompt(asked.messages)
    return question(messages, asked.tools, True) if chats else "\n".join(map(text_of, messages))

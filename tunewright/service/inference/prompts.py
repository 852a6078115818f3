"""What a model is fed when it is asked: as it saw prompts in training."""

from __future__ import annotations

from tunewright.api import question
from tunewright.data.messages import check_prompt, text_of
from tunewright.data.render import Renderer
from tunewright.service.inference.protocol import Generate
from tunewright.tasks.text_generation import prompt_tokens


def tokens_of(asked: Generate, renderer: Renderer, chats: bool) -> list[int]:
    """The tokens that a model is fed: as it saw them in training.

    One that does not chat is given the texts of the messages, a line each. Raises DataError for what cannot be read.
    """
    if isinstance(asked.prompt, tuple):
        return list(asked.prompt)
    if asked.prompt is not None:
        return prompt_tokens(renderer, question(asked.prompt, None, False))
    messages = check_prompt(asked.messages)
    if not chats:
        return prompt_tokens(renderer, "\n".join(map(text_of, messages)))
    return prompt_tokens(renderer, question(messages, asked.tools, True))

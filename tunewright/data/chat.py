"""Chat templates: the text of a conversation exactly as it is served, and what of it is learned.

`{% generation %}` blocks are not used: the stock templates of most models have none, and a mask taken from them is
silently empty. Instead each answer is rendered twice, before and after it is given:

    prompt = template(messages before the answer, add_generation_prompt=True)
    full   = template(messages with the answer)
    answer = full without the prompt in front

so what is trained follows, character for character, the text that is fed when serving.

Some templates add to the prompt what they do not render in front of an answer, so that `full` does not begin with
`prompt`. Call what the prompt has beyond their common beginning the gap. Two cases can be trained as they are served:

    the gap is white space         the answer is what `full` has after it
    the message begins with it     ("<think>\\n" of DeepSeek-R1, whose template drops the reasoning)
                                   the answer is the rest of the message and the template's closing

Anything else would teach an answer that follows a text that is never served, and is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tunewright.data.kinds import Conversation
from tunewright.data.messages import Message, for_template, text_of, weight_of
from tunewright.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE: list[Message] = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]


@dataclass(frozen=True)
class Turn:
    """One trained answer: the text that is fed when it is served, the text that is learned, and its weight."""

    prompt: str
    answer: str
    weight: float


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template, for training and for serving."""

    tokenizer: PreTrainedTokenizerBase

    def text(self, messages: list[Message], tools: list[Any] | None = None, *, add_generation_prompt: bool) -> str:
        """What the template makes of the messages.

        Raises:
            DataError: the template refuses them, with its own reason (the order of roles, a role it does not know), or
                there is none.
        """
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise DataError(
                "the model has no chat template, so it reads no messages: give it one text, or train it on chat rows "
                "first, with which it gets one"
            )
        try:
            knows_developer = "developer" in self.tokenizer.get_chat_template(tools=tools)
            rendered = self.tokenizer.apply_chat_template(
                for_template(messages, knows_developer),
                tools=tools,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error
        return str(rendered)

    def turns(self, conversation: Conversation, loss_on: Literal["all", "last"]) -> list[Turn]:
        """The trained answers of a conversation, each with the prompt of its moment.

        Raises:
            DataError: the template refuses the conversation, or an answer cannot be trained as it would be served.
        """
        messages = conversation.messages
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        trained = answers if loss_on == "all" else answers[-1:]
        return [self._turn(conversation, index) for index in trained if weight_of(messages[index])]

    @cached_property
    def closing(self) -> str:
        """What the template writes after an answer: the end-of-turn token, often a newline."""
        return self.text(PROBE, add_generation_prompt=False).rpartition(text_of(PROBE[-1]))[2]

    def _turn(self, conversation: Conversation, index: int) -> Turn:
        messages, tools = conversation.messages, conversation.tools
        if index == 0:
            raise DataError("messages[0] is an answer to nothing: put a user message before it, or give it weight 0")
        prompt = self.text(messages[:index], tools, add_generation_prompt=True)
        full = self.text(messages[: index + 1], tools, add_generation_prompt=False)
        answer = self._answer(prompt, full, text_of(messages[index]))
        if not answer.removesuffix(self.closing).strip():
            raise DataError(f"the chat template renders nothing of messages[{index}]: there is nothing to learn")
        return Turn(prompt, answer, weight_of(messages[index]))

    def _answer(self, prompt: str, full: str, written: str) -> str:
        """The text to learn after the prompt; see the module's docstring for the cases."""
        common = _common_length(prompt, full)
        gap = prompt[common:]
        if not gap:
            return full[common:]
        if gap.isspace():
            return full[common:].lstrip()
        if written.startswith(gap):
            return written[len(gap) :] + self.closing
        raise DataError(
            f"the chat template ends a prompt with {gap!r}, but renders an answer without it: begin the answer with "
            "it, or set data.chat_template"
        )


def _common_length(prompt: str, full: str) -> int:
    if full.startswith(prompt):
        return len(prompt)
    return next(index for index, char in enumerate(prompt) if full[index : index + 1] != char)

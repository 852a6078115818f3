"""Records become tokens with a weight per token: what is trained is what is served.

The prompt of every trained answer is tokenized exactly as in serving, and the answer as its continuation. A
conversation is one sequence as long as each prompt continues the sequence so far, token for token. Where a template
changes history (Qwen3 drops the reasoning of earlier turns), a new sequence begins with the prompt as then served.

Weights come from positions, never from the value of a token: EOS is learned also where it is the padding token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tunewright.data.chat import PROBE, Chat, Turn
from tunewright.data.encoding import Encoder
from tunewright.data.kinds import Completion, Conversation, Document, Record
from tunewright.data.messages import Message
from tunewright.data.rendered import Fitted, Rendered, fit
from tunewright.data.templates import ensure_chat_template, leading_tokens
from tunewright.errors import DataError, counted, them

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Fitted", "Rendered", "Renderer", "ensure_chat_template", "fit"]

MARKER = re.compile(r"<\|[^<>|\s]+\|>|<[a-z]+(?:_[a-z]+)+>")
"""How templates mark turns: <|im_start|>, <start_of_turn>."""

BATCH = 1000  # records that are tokenized in one call: enough for speed, few enough to hold their texts


@dataclass(frozen=True)
class Answer:
    """A turn in tokens. Of `answer`, the first `learned` tokens have the weight; `ended` by an end token or not."""

    prompt: list[int]
    answer: list[int]
    learned: int
    ended: bool
    weight: float

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer

    @property
    def history(self) -> list[int]:
        """What a later prompt has to begin with: a newline after the end token may merge with what follows it."""
        return self.prompt + self.answer[: self.learned]


@dataclass(frozen=True)
class Renderer:
    """Renders records with one tokenizer.

    Args:
        loss_on: "all" assistant turns of a conversation are trained, or only the "last".
    """

    tokenizer: PreTrainedTokenizerBase
    loss_on: Literal["all", "last"] = "all"

    def __call__(self, record: Record) -> list[Rendered]:
        """One record as one sequence; several where the chat template changes history between trained turns.

        Raises:
            DataError: see `render_all`.
        """
        return self.render_all([record])

    def render_all(self, records: Sequence[Record], faults: list[str] | None = None) -> list[Rendered]:
        """All records in order.

        Args:
            faults: where given, "source: reason" of each record that cannot be rendered is added to it instead of
                raised.

        Raises:
            DataError: records that cannot be rendered: refused by the chat template, or without a trained token.
                It names all of them.
        """
        found: list[str] = []
        rendered = [one for batch in _batches(records, BATCH) for one in self._render_batch(batch, found)]
        if faults is not None:
            faults += found
        elif found:
            rows = f"{len(found):,} of {counted(len(records), 'row')}"
            raise DataError(f"{rows} cannot be rendered: mend or remove {them(len(found))}.", found)
        return rendered

    def prompt(self, messages_or_text: list[Message] | str, tools: list[Any] | None = None) -> list[int]:
        """The tokens that are fed when serving, and that precede the answer in training."""
        tokens = self._encode([self.text(messages_or_text, tools)])[0]
        if isinstance(messages_or_text, str):
            return self._lead(tokens) or [self._eos]  # a model must be fed something
        return tokens

    def text(self, messages_or_text: list[Message] | str, tools: list[Any] | None = None) -> str:
        """A prompt as the tokenizer reads it."""
        if isinstance(messages_or_text, str):
            return messages_or_text
        return self._chat.text(messages_or_text, tools, add_generation_prompt=True)

    def count(self, text: str) -> int:
        """The tokens that a text has by itself."""
        return len(self._encode([text])[0])

    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: EOS, and the template's end-of-turn token."""
        ends = {self._eos}
        if self.tokenizer.chat_template:
            ends.update(self._special.intersection(self._encode([self._chat.closing])[0]))
        return sorted(ends)

    def template_notices(self, chosen: bool) -> list[str]:
        """What the chat template writes and the tokenizer has no special token for.

        Args:
            chosen: whether the template is not the tokenizer's own, which may spell markers out as its model learned.
        """
        closing = self._chat.closing
        ended = not self._special.isdisjoint(self._encode([closing])[0])
        markers = dict.fromkeys(MARKER.findall(self._chat.text(PROBE, add_generation_prompt=False)))
        lacking = [m for m in markers if len(self._encode([m])[0]) > 1 or (m in closing and not ended)]
        add = f"add data.special_tokens: {json.dumps(lacking)}"
        if not ended:
            eos = self.tokenizer.eos_token
            return [
                f"The chat template ends an answer with {closing!r}, in which the tokenizer knows no special token: it "
                f"is learned as text, and of a conversation's answers only the last ends with {eos}: "
                + (f"{add}." if lacking else f"have the template write {eos} behind each.")
            ]
        if lacking and chosen:
            return [
                f"The chat template writes {', '.join(lacking)}, which the tokenizer spells in several tokens: {add}."
            ]
        return []

    @cached_property
    def _encode(self) -> Encoder:
        return Encoder(self.tokenizer)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.tokenizer)

    @cached_property
    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no EOS token, so that no answer could end: set its eos_token.")
        return self.tokenizer.eos_token_id

    @cached_property
    def _leading(self) -> list[int]:
        return leading_tokens(self.tokenizer)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Control tokens. UNK is none, although tokenizers list it: it stands for text."""
        added = {token for token, entry in self.tokenizer.added_tokens_decoder.items() if entry.special}
        return frozenset((added | set(self.tokenizer.all_special_ids)) - {self.tokenizer.unk_token_id} | {self._eos})

    def _render_batch(self, records: Sequence[Record], faults: list[str]) -> Iterator[Rendered]:
        """Texts first, then one call of the tokenizer for all of them, then tokens and weights."""
        passages = [(record, turns) for record in records if (turns := self._turns(record, faults))]
        texts = [text for _, turns in passages for turn in turns for text in (turn.prompt, turn.prompt + turn.answer)]
        tokens = iter(self._encode(texts))
        for record, turns in passages:
            answers = [self._tokenized(turn, record, next(tokens), next(tokens)) for turn in turns]
            for group in _continuing(answers):
                yield self._sequence(group, record.source)

    def _turns(self, record: Record, faults: list[str]) -> list[Turn]:
        """The passages to learn. A record that has none is a fault, never a silent row without loss."""
        try:
            if turns := self._turns_of(record):
                return turns
            faults.append(f"{record.source}: nothing in this row is trained: every weight is 0")
        except DataError as error:
            faults.append(f"{record.source}: {error}")
        return []

    def _turns_of(self, record: Record) -> list[Turn]:
        match record:
            case Conversation():
                return self._chat.turns(record, self.loss_on)
            case Completion(prompt, completion):
                return [Turn(prompt, completion, 1.0)]
            case Document(text):
                return [Turn("", text, 1.0)]
        raise DataError("a labelled text holds no answer to generate: use a classification task, or another format")

    def _lead(self, tokens: list[int]) -> list[int]:
        """Tokens with what the tokenizer puts in front of a text, once: the text may hold it already."""
        return tokens if tokens[: len(self._leading)] == self._leading else self._leading + tokens

    def _tokenized(self, turn: Turn, record: Record, prompt: list[int], whole: list[int]) -> Answer:
        """The answer as the continuation of the prompt's own tokens."""
        answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._segment(turn.answer)
        if isinstance(record, Conversation):
            learned, ended = self._end_of_turn(answer)
            return Answer(prompt, answer, learned, ended, turn.weight)
        tokens, prompt = self._lead(prompt + answer), self._lead(prompt)
        answer = tokens[len(prompt) :]
        if isinstance(record, Completion):
            prompt = prompt or [self._eos]  # as it is served
        return Answer(prompt, answer, len(answer), answer[-1:] == [self._eos], turn.weight)

    def _segment(self, text: str) -> list[int]:
        """Tokens of a text that follows another, where a token of the whole would straddle the boundary.

        Some tokenizers put a space in front of every text; behind an anchor they do not.
        """
        for anchor in ("\n", ":"):
            before, both = self._encode([anchor, anchor + text])
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._encode([text])[0]

    def _end_of_turn(self, answer: list[int]) -> tuple[int, bool]:
        """(tokens up to and including the end-of-turn token, True), or (all of them, False) where there is none.

        The end-of-turn token is the last special token, if nothing but white space follows it.
        """
        for end in range(len(answer), 0, -1):
            if answer[end - 1] in self._special:
                return end, True
            if str(self.tokenizer.decode([answer[end - 1]])).strip():
                break
        return len(answer), False

    def _sequence(self, answers: list[Answer], source: str) -> Rendered:
        """Answers that continue each other as one sequence; EOS ends it where the template writes no end of turn."""
        last = answers[-1]
        tokens = last.tokens
        weights = [0.0] * len(tokens)
        for one in answers:
            start = len(one.prompt)
            weights[start : start + one.learned] = [one.weight] * one.learned
        if not last.ended:
            tokens, weights = [*tokens, self._eos], [*weights, last.weight]
        weights[0] = 0.0  # no token precedes the first one to predict it from
        return Rendered(tokens, weights, source)


def _continuing(answers: list[Answer]) -> list[list[Answer]]:
    """Answers in groups, in which each prompt begins with all tokens so far: what is served then is what was before."""
    groups: list[list[Answer]] = []
    for answer in answers:
        history = groups[-1][-1].history if groups else []
        if groups and answer.prompt[: len(history)] == history:
            groups[-1].append(answer)
        else:
            groups.append([answer])
    return groups


def _batches(records: Sequence[Record], size: int) -> Iterable[Sequence[Record]]:
    return (records[start : start + size] for start in range(0, len(records), size))

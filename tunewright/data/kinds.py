"""The kinds of record that a row can become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunewright.data.pictures import Picture

Label = str | float | list[str] | dict[str, float] | None
"""A class name; a number to regress on; the names of all classes that apply; a probability for each class; unknown."""


@dataclass(frozen=True)
class Conversation:
    """Chat messages in OpenAI's form; an assistant message may carry a `weight`. `tools` are JSON schemas."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    source: str


@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it, joined without anything in between."""

    prompt: str
    completion: str
    source: str


@dataclass(frozen=True)
class Document:
    """Plain text, all of it learned."""

    text: str
    source: str


class Classified:
    """A row with a label, and a weight in the loss."""

    label: Label
    source: str
    weight: float


@dataclass(frozen=True)
class Labelled(Classified):
    """A text, or a pair of texts, with its label and its weight in the loss."""

    text: str
    label: Label
    source: str
    text_pair: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class LabelledImage(Classified):
    """An image with its label and its weight in the loss."""

    image: Picture
    label: Label
    source: str
    weight: float = 1.0


@dataclass(frozen=True)
class CaptionedImage:
    """An image with a text that describes it, and its weight in the loss."""

    image: Picture
    text: str
    source: str
    weight: float = 1.0


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt, the best first, each a row of its own with that prompt: a pair is a ranking of two.

    `margin` says by how much each is better than the next one; 0 where nobody says.
    """

    answers: tuple[Conversation, ...] | tuple[Completion, ...]
    source: str
    margin: float = 0.0


@dataclass(frozen=True)
class Rated:
    """An answer to a prompt that is good, or bad, without another one beside it."""

    answer: Conversation | Completion
    good: bool
    source: str


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a text, or messages of which the last is no answer. `item` holds the row's columns."""

    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    item: dict[str, Any]
    source: str


Record = Conversation | Completion | Document | Labelled | LabelledImage | CaptionedImage | Ranking | Rated | Prompt

KINDS: dict[type, str] = {
    Conversation: "chat",
    Completion: "prompt_completion",
    Document: "text",
    Labelled: "classification",
    LabelledImage: "image",
    CaptionedImage: "captioned_image",
    Ranking: "preference",
    Rated: "rated",
    Prompt: "prompt",
}


def in_turns(record: Record) -> bool:
    """Whether a row is a conversation, and so is read by the chat template."""
    match record:
        case Ranking(answers):
            return isinstance(answers[0], Conversation)
        case Rated(answer):
            return isinstance(answer, Conversation)
        case Prompt(prompt):
            return isinstance(prompt, list)
    return isinstance(record, Conversation)

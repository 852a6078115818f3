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


Record = Conversation | Completion | Document | Labelled | LabelledImage | CaptionedImage

KINDS: dict[type, str] = {
    Conversation: "chat",
    Completion: "prompt_completion",
    Document: "text",
    Labelled: "classification",
    LabelledImage: "image",
    CaptionedImage: "captioned_image",
}

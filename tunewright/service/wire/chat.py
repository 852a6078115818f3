"""What is asked of a model and what it answers, in no API's words: requests become these, and these JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunewright.service.inference.protocol import Piece, Sampling, Token

MOST_ANSWERS = 128
MOST_STOPS = 4


@dataclass(frozen=True)
class ChatRequest:
    """One request for answers: to a conversation, or to prompts, each a text or tokens.

    Attributes:
        model: the name without α.
        alpha: how far between base and tuned model (0 to 1); None: the tuned model as it is.
        named: the name as the client wrote it, which the answer repeats.
        messages: in OpenAI's form; None where there are prompts.
        tools: JSON schemas in OpenAI's form, which the chat template is given.
        usage: whether a stream ends with the counts of tokens.
    """

    model: str
    alpha: float | None
    named: str
    messages: list[dict[str, Any]] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()
    tools: list[dict[str, Any]] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    usage: bool = False


@dataclass(frozen=True)
class EmbeddingRequest:
    """One request for vectors of texts. `base64`: as little-endian fp32, which the client asks for by itself."""

    model: str
    alpha: float | None
    named: str
    inputs: tuple[str | tuple[int, ...], ...]
    base64: bool = False


@dataclass(frozen=True)
class ToolCall:
    """A tool that an answer calls; `arguments` are JSON, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """A whole answer. `finish`: `stop`, `length`, or `tool_calls`."""

    text: str
    finish: str
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Said(Piece):
    """A piece of a stream that may call tools."""

    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What each answer and chunk repeats: its id, when it was made, and the model's name as the client wrote it."""

    id: str
    created: int
    model: str

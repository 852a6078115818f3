"""What is asked of a model and what it answers, in no API's words: requests become these, and these JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Finish = Literal["stop", "length", "tool_calls"]

MOST_ANSWERS = 128
MOST_STOPS = 4


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_tokens: the longest answer; None: as long as the context allows.
        seed: of the draws; None: another one each time.
        stop: texts that end an answer, which they are no part of.
        n: answers to each prompt.
        logprobs: how many likeliest tokens are told at each place beside the drawn one; None: no likelihoods at all.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None


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
    sampling: Sampling = Sampling()
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
class Token:
    """A token that was drawn: its text, its log-probability (natural), and the likeliest at its place.

    `raw`: its bytes, where they are no whole characters.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    raw: bytes | None = None


@dataclass(frozen=True)
class ToolCall:
    """A tool that an answer calls; `arguments` are JSON, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish: Finish
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a stream says next of one of its answers; `finish` where it is the last of that answer."""

    text: str = ""
    index: int = 0
    finish: Finish | None = None
    tokens: tuple[Token, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens that were read, and that were drawn."""

    prompt: int
    completion: int = 0

    def told(self) -> Mapping[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Reply:
    """What each answer and chunk repeats: its id, when it was made, and the model's name as the client wrote it."""

    id: str
    created: int
    model: str

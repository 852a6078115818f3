"""OpenAI's chat completions, completions and embeddings: requests → `chat.py`, and answers → JSON and chunks."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from tunewright.data.messages import check_prompt
from tunewright.errors import DataError
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage
from tunewright.service.inference.protocol import logprob as finite
from tunewright.service.wire import openai
from tunewright.service.wire.body import Body, parsed, split_alpha
from tunewright.service.wire.chat import (
    MOST_ANSWERS,
    MOST_STOPS,
    Answer,
    ChatRequest,
    EmbeddingRequest,
    Reply,
    Said,
    ToolCall,
)

DONE = b"data: [DONE]\n\n"
DEFAULT_LENGTH = 16
"""Tokens of a completion, where nothing else is said: OpenAI's own."""
MOST_INPUTS = 2048
ANY_OBJECT = '{"type": "object"}'

Stop = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Texts = str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]


class Options(Body):
    """What all of them may say. Fields that have no effect here are taken only with the value that has none."""

    model: str = Field(min_length=1)
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    """Not OpenAI's, but that of most servers of open models, where 0 and -1 stand for all tokens."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = Field([])
    stream: bool = False
    stream_options: dict[str, bool] = Field({})
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=300),
    ] = Field({})
    user: str | None = None


class Schema(Body):
    """A JSON schema with its name. Answers follow it strictly, whether that is asked for or not."""

    name: str = Field(min_length=1, max_length=64)
    content: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Format(Body):
    """What answers are."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Schema | None = None

    @property
    def schema_text(self) -> str | None:
        """Raises Refused where there is none."""
        if self.type == "json_schema" and self.json_schema is None:
            raise Refused(400, "response_format.json_schema is missing.", param="response_format.json_schema")
        if self.type == "json_schema" and self.json_schema:
            return json.dumps(self.json_schema.content)
        return ANY_OBJECT if self.type == "json_object" else None


class Chat(Options):
    """POST /chat/completions. Names of the client's own (user, metadata, …) and what it stores are passed over."""

    messages: list[Any] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field([])
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Format = Format()
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class Complete(Options):
    """POST /completions."""

    prompt: Texts
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: int | None = None
    echo: Literal[False] = False
    suffix: None = None


class Embed(Body):
    """POST /embeddings."""

    model: str = Field(min_length=1)
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    user: str | None = None


# Requests


def chat(body: Any, deployment: str | None = None) -> ChatRequest:
    """A chat completion. Raises Refused (400) that names the field.

    Args:
        deployment: the model where Azure's address names it.
    """
    asked = parsed(Chat, _with_model(body, deployment))
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refused(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    told = (asked.top_logprobs or 0) if asked.logprobs else None
    schema = asked.response_format.schema_text
    sampling = replace(_sampling(asked, asked.max_completion_tokens or asked.max_tokens, told), schema=schema)
    tools = asked.tools if asked.tools and asked.tool_choice != "none" else None
    if schema and tools:
        raise Refused(400, "response_format: an answer that follows a schema calls no tools. Leave one of them out, or "
                      'set tool_choice to "none".', param="response_format")  # fmt: skip
    return _request(asked, sampling, messages=checked_messages(asked.messages), tools=tools)


def completion(body: Any, deployment: str | None = None) -> ChatRequest:
    """A completion of one prompt or several. Raises Refused (400) that names the field."""
    asked = parsed(Complete, _with_model(body, deployment))
    if asked.best_of not in (None, asked.n):
        raise Refused(400, "best_of: all answers that are drawn are given: leave it out.", param="best_of")
    sampling = _sampling(asked, asked.max_tokens or DEFAULT_LENGTH, asked.logprobs)
    return _request(asked, sampling, prompts=_texts(asked.prompt, "prompt"))


def embedding(body: Any, deployment: str | None = None) -> EmbeddingRequest:
    """Vectors of one text or several. Raises Refused (400) that names the field."""
    asked = parsed(Embed, _with_model(body, deployment))
    model, alpha = split_alpha(asked.model)
    inputs = _texts(asked.input, "input")
    if "" in inputs:
        raise Refused(400, "input: an empty text has no vector.", param="input")
    return EmbeddingRequest(model, alpha, asked.model, inputs, asked.encoding_format == "base64")


def checked_messages(messages: Any, param: str = "messages") -> list[dict[str, Any]]:
    """Messages that a chat template can present. Raises Refused."""
    try:
        return check_prompt(messages)
    except DataError as error:
        raise Refused(400, str(error), param=param) from error


def _with_model(body: Any, deployment: str | None) -> Any:
    return {**body, "model": deployment} if deployment and isinstance(body, dict) else body


def _request(asked: Options, sampling: Sampling, **what: Any) -> ChatRequest:
    model, alpha = split_alpha(asked.model)
    if unknown := [name for name in asked.stream_options if name not in ("include_usage", "include_obfuscation")]:
        param = f"stream_options.{unknown[0]:.100}"
        raise Refused(400, f"Unknown field {param}.", param=param)
    if asked.stream_options and not asked.stream:
        raise Refused(400, "stream_options needs stream: true.", param="stream_options")
    usage = asked.stream_options.get("include_usage", False)
    return ChatRequest(model, alpha, asked.model, sampling=sampling, stream=asked.stream, usage=usage, **what)


def _sampling(asked: Options, longest: int | None, logprobs: int | None) -> Sampling:
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop)
    bias = {int(token): value for token, value in asked.logit_bias.items()}  # "1" and "01" are the same
    return Sampling(
        asked.temperature, asked.top_p, asked.seed, longest, stop, asked.n, logprobs,
        asked.presence_penalty, asked.frequency_penalty, tuple(bias.items()),
        top_k=asked.top_k if asked.top_k > 0 else None,
    )  # fmt: skip


def _texts(given: Any, param: str) -> tuple[str | tuple[int, ...], ...]:
    """A text, several, the tokens of one, or the tokens of several."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given[0], int):
        return (tuple(given),)
    if len(given) > MOST_INPUTS:
        raise Refused(400, f"{param}: {len(given):,} are more than {MOST_INPUTS:,}.", param=param)
    return tuple(one if isinstance(one, str) else tuple(one) for one in given)


# Answers


def chat_answer(reply: Reply, answers: Sequence[Answer], usage: Usage, logprobs: bool = False) -> dict[str, Any]:
    choices = [
        {
            "index": index,
            "message": _message(answer),
            "logprobs": _logprobs(answer.tokens) if logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return {**_head(reply, "chat.completion"), "choices": choices, "usage": _usage(usage)}


def chat_start(reply: Reply, index: int = 0) -> dict[str, Any]:
    """The first chunk of an answer, which says who speaks."""
    return _chunk(reply, {"role": "assistant", "content": "", "refusal": None}, index)


def chat_piece(reply: Reply, piece: Piece, logprobs: bool = False) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": piece.text} if piece.text or piece.tokens else {}
    if isinstance(piece, Said) and piece.tool_calls:
        delta["tool_calls"] = [{"index": i, **_tool_call(call)} for i, call in enumerate(piece.tool_calls)]
    told = _logprobs(piece.tokens) if logprobs and piece.tokens else None
    return _chunk(reply, delta, piece.index, piece.finish, told)


def chat_usage(reply: Reply, usage: Usage) -> dict[str, Any]:
    """The last chunk of a stream that was asked for its counts."""
    return {**_head(reply, "chat.completion.chunk"), "choices": [], "usage": _usage(usage)}


def completion_answer(reply: Reply, answers: Sequence[Answer], usage: Usage, logprobs: bool = False) -> dict[str, Any]:
    """Whole answers: those to the first prompt come first."""
    choices = [
        {
            "index": index,
            "text": answer.text,
            "logprobs": _plain_logprobs(answer.tokens) if logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return {**_head(reply, "text_completion"), "choices": choices, "usage": _usage(usage)}


def completion_piece(reply: Reply, piece: Piece, logprobs: bool = False, begun: int = 0) -> dict[str, Any]:
    """A chunk; `begun`: how many characters of the answer came before it."""
    told = _plain_logprobs(piece.tokens, begun) if logprobs and piece.tokens else None
    choice = {"index": piece.index, "text": piece.text, "logprobs": told, "finish_reason": piece.finish}
    return {**_head(reply, "text_completion"), "choices": [choice]}


def completion_usage(reply: Reply, usage: Usage) -> dict[str, Any]:
    return {**_head(reply, "text_completion"), "choices": [], "usage": _usage(usage)}


def embedding_answer(asked: EmbeddingRequest, vectors: Sequence[Sequence[float]], tokens: int) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if asked.base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.named, "usage": usage}


def event(told: Mapping[str, Any]) -> bytes:
    """A chunk as a server-sent event."""
    return b"data: " + json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def failure(error: Exception) -> dict[str, Any]:
    """What a stream says that cannot go on: clients raise it. Of an error that is not meant for them only that."""
    told = error if isinstance(error, Refused) else Refused(500, "The model could not finish its answer. Try again.")
    return openai.error(told)


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}


def _chunk(
    reply: Reply, delta: Mapping[str, Any], index: int, finish: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {**_head(reply, "chat.completion.chunk"), "choices": [choice]}


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in answer.tool_calls]
        message["content"] = answer.text or None
    return message


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {
        "content": [{**_token(one), "top_logprobs": [_token(top) for top in one.top]} for one in tokens],
        "refusal": None,
    }


def _token(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.bytes)}


def _plain_logprobs(tokens: Sequence[Token], begun: int = 0) -> dict[str, Any]:
    offsets = [begun]
    for token in tokens:
        offsets.append(offsets[-1] + len(token.text))
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{top.text: finite(top.logprob) for top in token.top} for token in tokens],
        "text_offset": offsets[:-1],
    }


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

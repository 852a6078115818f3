"""Models answer: chat, completions, embeddings, predictions and images."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from structlog import get_logger

from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody
from tunewright.service.connected import while_connected
from tunewright.service.errors import Refused
from tunewright.service.ids import random_text
from tunewright.service.inference.protocol import Classify, Draw, Embed, Generate, ModelRef, Piece, Usage
from tunewright.service.routes._documents import STREAMED, body_of
from tunewright.service.routes._state import Parts, State
from tunewright.service.tool_calls import may_call, taken_out
from tunewright.service.wire import openai_chat
from tunewright.service.wire.body import Body, parsed, split_alpha
from tunewright.service.wire.chat import MOST_ANSWERS, Answer, ChatRequest, Reply, Said

router = APIRouter(tags=["Inference"])
log = get_logger()

MAY = caller("inference")
MOST_PIXELS = 4 << 20
"""Of all images of a request."""


@dataclass(frozen=True)
class Form:
    """How an API writes answers: whole, and in a stream.

    Attributes:
        whole: (reply, answers, usage, with log-probabilities) → JSON.
        begin: (reply, number of an answer) → what a stream says before its first piece.
        piece: (reply, piece, with log-probabilities, characters of that answer before it) → what it says next.
        end: (reply, usage) → what it says last, where that was asked for.
        done: the bytes behind everything.
    """

    kind: str
    whole: Callable[..., dict[str, Any]]
    piece: Callable[..., dict[str, Any]]
    begin: Callable[..., dict[str, Any]] | None = None
    end: Callable[..., dict[str, Any]] | None = None
    done: bytes = b""


def _chat_piece(reply: Reply, piece: Piece, logprobs: bool, begun: int) -> dict[str, Any]:
    return openai_chat.chat_piece(reply, piece, logprobs)


CHAT = Form(
    "chatcmpl-",
    openai_chat.chat_answer,
    _chat_piece,
    openai_chat.chat_start,
    openai_chat.chat_usage,
    openai_chat.DONE,
)
COMPLETION = Form(
    "cmpl-",
    openai_chat.completion_answer,
    openai_chat.completion_piece,
    None,
    openai_chat.completion_usage,
    openai_chat.DONE,
)


@router.post("/chat/completions", openapi_extra=body_of(openai_chat.Chat), response_model=None, responses=STREAMED)
async def chat(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> Response:
    """The answer to a conversation. A tuned model takes α in its name: `ft:…@0.6`."""
    return await answer(request, parts, who, openai_chat.chat(body), CHAT)


@router.post("/completions", openapi_extra=body_of(openai_chat.Complete), response_model=None, responses=STREAMED)
async def complete(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> Response:
    """The continuation of texts as they stand."""
    return await answer(request, parts, who, openai_chat.completion(body), COMPLETION)


async def answer(request: Request, parts: State, who: Caller, asked: ChatRequest, form: Form) -> Response:
    """Answer whole, or piece by piece. What is refused is refused before the first byte of a stream."""
    if (count := len(asked.prompts) * asked.sampling.n) > MOST_ANSWERS:
        raise Refused(
            400, f"prompt: {count} answers are more than {MOST_ANSWERS} at a time: ask in parts.", param="prompt"
        )
    model = await run_in_threadpool(parts.model, who, asked.model, asked.alpha)
    reply = Reply(f"{form.kind}{random_text()}", int(time.time()), asked.named)
    said = _said(parts, who, model, asked)
    if not asked.stream:
        whole = _collected(said, len(asked.prompts or [1]) * asked.sampling.n)
        answers, usage = await while_connected(request, whole)
        answers = [_calling(one) for one in answers] if asked.tools else answers
        return JSONResponse(form.whole(reply, answers, usage, asked.sampling.logprobs is not None))
    said = _held_back(said) if asked.tools else said
    first = await while_connected(request, anext(said))
    return StreamingResponse(_streamed(first, said, reply, asked, form), media_type="text/event-stream")


async def count(request: Request, parts: State, who: Caller, asked: ChatRequest) -> int:
    """How many tokens a conversation has, with all that the template makes of it."""
    model = await run_in_threadpool(parts.model, who, asked.model, asked.alpha)
    return await while_connected(request, parts.engine.count(_conversation(who, model, asked)))


def _said(parts: State, who: Caller, model: ModelRef, asked: ChatRequest) -> AsyncIterator[Piece | Usage]:
    """What the model says: to a conversation, or to several prompts at once, whose answers are numbered through."""
    if not asked.prompts:
        return parts.engine.generate(_conversation(who, model, asked))
    each = [
        parts.engine.generate(Generate(model, None, prompt, None, asked.sampling, asked.stream, tenant=who.tenant))
        for prompt in asked.prompts
    ]
    return each[0] if len(each) == 1 else _together(each, asked.sampling.n)


def _conversation(who: Caller, model: ModelRef, asked: ChatRequest) -> Generate:
    return Generate(model, asked.messages, None, asked.tools, asked.sampling, asked.stream, tenant=who.tenant)


async def _together(each: Sequence[AsyncIterator[Piece | Usage]], n: int) -> AsyncIterator[Piece | Usage]:
    """Several streams as one; the last thing said is the usage of all."""
    heard: asyncio.Queue[Piece | Usage | BaseException | None] = asyncio.Queue()

    async def listen(number: int, said: AsyncIterator[Piece | Usage]) -> None:
        try:
            async for one in said:
                await heard.put(replace(one, index=number * n + one.index) if isinstance(one, Piece) else one)
            await heard.put(None)
        except Exception as error:
            await heard.put(error)

    tasks = [asyncio.create_task(listen(number, said)) for number, said in enumerate(each)]
    going, total = len(tasks), Usage(0, 0)
    try:
        while going:
            one = await heard.get()
            if isinstance(one, BaseException):
                raise one
            if isinstance(one, Usage):
                total = Usage(total.prompt_tokens + one.prompt_tokens, total.completion_tokens + one.completion_tokens)
            elif one is not None:
                yield one
            going -= one is None
        yield total
    finally:
        for task in tasks:
            task.cancel()


async def _collected(said: AsyncIterator[Piece | Usage], count: int) -> tuple[list[Answer], Usage]:
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    usage = Usage(0, 0)
    async for one in said:
        if isinstance(one, Usage):
            usage = one
        else:
            pieces[one.index].append(one)
    return [_joined(each) for each in pieces], usage


def _joined(pieces: Sequence[Piece]) -> Answer:
    finish = pieces[-1].finish if pieces else None
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Answer("".join(piece.text for piece in pieces), finish or "stop", tokens)


def _calling(answer: Answer) -> Answer:
    """An answer with the calls of tools that its text holds."""
    text, calls = taken_out(answer.text)
    return replace(answer, text=text, tool_calls=calls, finish="tool_calls") if calls else answer


async def _held_back(said: AsyncIterator[Piece | Usage]) -> AsyncIterator[Piece | Usage]:
    """A stream in which tools may be called: from what may be a call on, an answer comes when it has ended."""
    held: dict[int, list[Piece]] = {}
    async for one in said:
        if isinstance(one, Usage):
            yield one
            continue
        pieces = held.setdefault(one.index, [])
        pieces.append(one)
        text = "".join(piece.text for piece in pieces)
        if one.finish:
            whole = _calling(_joined(pieces))
            yield Said(one.index, whole.text, whole.tokens, whole.finish, whole.tool_calls)
        elif not may_call(text):
            held[one.index] = []
            yield Piece(one.index, text, tuple(token for piece in pieces for token in piece.tokens))


async def _streamed(
    first: Piece | Usage, rest: AsyncIterator[Piece | Usage], reply: Reply, asked: ChatRequest, form: Form
) -> AsyncIterator[bytes]:
    """A stream that ends with `[DONE]`, or with an error that the client raises: one that just ends means success."""
    begun: dict[int, int] = {}
    try:
        async for one in _chained(first, rest):
            if isinstance(one, Usage):
                if form.end and asked.usage:
                    yield openai_chat.event(form.end(reply, one))
                continue
            if one.index not in begun and form.begin:
                yield openai_chat.event(form.begin(reply, one.index))
            at = begun.get(one.index, 0)
            yield openai_chat.event(form.piece(reply, one, asked.sampling.logprobs is not None, at))
            begun[one.index] = at + len(one.text)
        yield form.done
    except Exception as error:
        if not isinstance(error, Refused):
            log.exception("stream broke", model=asked.named)
        yield openai_chat.event(openai_chat.failure(error))


async def _chained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for one in rest:
        yield one


@router.post("/embeddings", openapi_extra=body_of(openai_chat.Embed))
async def embed(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """Vectors of texts."""
    asked = openai_chat.embedding(body)
    model = await run_in_threadpool(parts.model, who, asked.model, asked.alpha)
    found = await while_connected(request, parts.engine.embed(Embed(model, asked.inputs, who.tenant)))
    return openai_chat.embedding_answer(asked, found.vectors, found.tokens)


class Predict(Body):
    """POST /predictions: texts, pairs of texts, or images in base64."""

    model: str = Field(min_length=1)
    input: (
        str
        | Annotated[
            list[str | Annotated[list[str], Field(min_length=2, max_length=2)]],
            Field(min_length=1, max_length=openai_chat.MOST_INPUTS),
        ]
    )


@router.post("/predictions", openapi_extra=body_of(Predict))
async def predict(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """What a classifier says of texts or images: a label, and the probability of each."""
    asked = parsed(Predict, body)
    name, alpha = split_alpha(asked.model)
    model = await run_in_threadpool(parts.model, who, name, alpha)
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    inputs = tuple(one if isinstance(one, str) else (one[0], one[1]) for one in given)
    found = await while_connected(request, parts.engine.classify(Classify(model, inputs, who.tenant)))
    data = [{"object": "prediction", "index": index, **one} for index, one in enumerate(found)]
    return {"object": "list", "data": data, "model": asked.model}


class DrawImages(Body):
    """POST /images/generations. What goes beyond OpenAI's: seed, steps, guidance, negative_prompt.

    What has no effect here is taken only with OpenAI's own defaults.
    """

    model: str = Field(min_length=1)
    prompt: str = Field(min_length=1, max_length=4000)
    n: int = Field(1, ge=1, le=10)
    size: Annotated[str, Field(pattern=r"^([1-9]\d{1,3}x[1-9]\d{1,3}|auto)$")] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    quality: Literal["auto", "standard"] = "auto"
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    steps: Annotated[int, Field(ge=1, le=150)] = 30
    guidance: Annotated[float, Field(ge=1, le=100)] = 7.5
    negative_prompt: str | None = None
    user: str | None = None


@router.post("/images/generations", openapi_extra=body_of(DrawImages))
async def draw(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> Mapping[str, Any]:
    """Images of a text, as PNG in base64."""
    asked = parsed(DrawImages, body)
    name, alpha = split_alpha(asked.model)
    model = await run_in_threadpool(parts.model, who, name, alpha)
    size = None if asked.size == "auto" else (int(asked.size.split("x")[0]), int(asked.size.split("x")[1]))
    if size and size[0] * size[1] * asked.n > MOST_PIXELS:
        raise Refused(400, f"size: more than {MOST_PIXELS:,} pixels in all: ask in parts.", param="size")
    wanted = Draw(
        model, asked.prompt, asked.n, asked.seed, size, asked.steps, asked.guidance, asked.negative_prompt, who.tenant
    )
    images = await while_connected(request, parts.engine.images(wanted))
    return {"created": int(time.time()), "data": [{"b64_json": base64.b64encode(one).decode()} for one in images]}

"""Chat, completions and embeddings in OpenAI's words: clients' requests are understood, and answers read by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage
from tunewright.service.wire import openai_chat as wire
from tunewright.service.wire.body import split_alpha
from tunewright.service.wire.chat import (
    Answer,
    ChatRequest,
    EmbeddingRequest,
    Reply,
    Said,
    ToolCall,
)

REPLY = Reply("chatcmpl-1", 1_700_000_000, "ft:m:acme::1@0.6")
HE, NO = Token("Hé", tuple("Hé".encode()), -0.5), Token("No", tuple(b"No"), -math.inf)
TOKENS = (replace(HE, top=(HE, NO)), Token("�", (255,), -1.0))
ANSWER = Answer("Hé�", "stop", TOKENS)
CALL = ToolCall("call_1", "weather", '{"city": "Oslo"}')
ASK = [{"role": "user", "content": "Hi"}]


def client(answer: bytes | dict[str, Any] = b"", seen: list[Any] | None = None) -> openai.OpenAI:
    """A client whose server answers this, whatever is asked."""

    def respond(request: httpx.Request) -> httpx.Response:
        (seen if seen is not None else []).append(json.loads(request.content))
        if isinstance(answer, dict):
            return httpx.Response(200, json=answer)
        return httpx.Response(200, content=answer, headers={"content-type": "text/event-stream"})

    http = httpx.Client(transport=httpx.MockTransport(respond))
    return openai.OpenAI(api_key="tw-x", base_url="http://here/v1", http_client=http, max_retries=0)


def sent(call: Callable[[openai.OpenAI], Any]) -> Any:
    seen: list[Any] = []
    call(client({"data": [{"embedding": [1.0], "index": 0}], "choices": [], "object": "list"}, seen))
    return seen[0]


def test_a_chat_of_a_client() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    body = sent(
        lambda c: c.chat.completions.create(
            model="ft:m:acme::1@0.6",
            messages=[*ASK, {"role": "assistant", "content": None, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ]}, {"role": "tool", "tool_call_id": "call_1", "content": "warm"}],
            tools=tools, temperature=0, top_p=0.5, n=2, max_tokens=9, max_completion_tokens=7, seed=3, stop="\n",
            logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True},
            user="u", metadata={"a": "b"}, store=False, presence_penalty=1, frequency_penalty=-0.5,
            logit_bias={"7": -100}, response_format={"type": "text"}, parallel_tool_calls=True,
            extra_body={"top_k": 40},
        )
    )  # fmt: skip
    asked = wire.chat(body)
    assert (asked.model, asked.alpha, asked.named) == ("ft:m:acme::1", 0.6, "ft:m:acme::1@0.6")
    assert asked.sampling == Sampling(0.0, 0.5, 3, 7, ("\n",), 2, 2, 1.0, -0.5, ((7, -100.0),), top_k=40)
    assert asked.tools == tools and asked.stream and asked.usage
    assert [m["role"] for m in asked.messages or []] == ["user", "assistant", "tool"]
    assert wire.chat({**body, "tool_choice": "none"}).tools is None


def test_a_chat_of_few_words() -> None:
    body = {"messages": ASK, "stop": None, "temperature": None}
    for every in ({}, {"top_k": -1}, {"top_k": 0}):  # as other servers have them
        assert wire.chat({**body, **every}, deployment="m") == ChatRequest("m", None, "m", ASK)


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"model": "m@1.01"}, "model"),
        ({"model": "m@.5"}, "model"),
        ({"model": "m@0.123"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"n": 0}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"one": 2}}, "logit_bias.one"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object"}, "tools": [{"type": "function", "function": {"name": "f"}}]},
            "response_format",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"functions": []}, "functions"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        wire.chat({"model": "m", "messages": ASK, **changes})
    assert refused.value.status == 400 and (refused.value.param or "").split(".0")[0] == param


@pytest.mark.parametrize(
    "read, changes, said",
    [
        (wire.chat, {"stop": ["a"] * 5}, "stop: List should have at most 4 items"),
        (wire.completion, {"prompt": []}, "prompt: List should have at least 1 item"),
        (wire.completion, {"prompt": [-1]}, "prompt.0: Input should be greater than or equal to 0"),
        (wire.completion, {"prompt": 5}, "prompt: Input should be a valid string"),
        (wire.embedding, {"input": []}, "input: List should have at least 1 item"),
        (wire.chat, {"messages": ASK, "tempreature": 1}, "Unknown field tempreature. Did you mean temperature?"),
    ],
)
def test_of_a_field_of_several_kinds_is_told_what_is_wrong_with_the_kind_that_was_given(
    read: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused) as refused:
        read({"model": "m", **({"messages": ASK} if read is wire.chat else {}), **changes})
    assert str(refused.value).startswith(said)


@given(st.integers(0, 100), st.text("ab:/-", min_size=1))
def test_every_hundredth_is_an_alpha(hundredths: int, name: str) -> None:
    assert split_alpha(f"{name}@{hundredths / 100}") == (name, hundredths / 100)
    assert split_alpha(name) == (name, None)


def test_completions_of_a_client() -> None:
    body = sent(lambda c: c.completions.create(model="m", prompt=["a", "b"], logprobs=0, echo=False, best_of=1))
    asked = wire.completion(body)
    assert asked.prompts == ("a", "b") and asked.sampling == Sampling(max_tokens=16, logprobs=0)
    assert wire.completion({"model": "m", "prompt": [1, 2]}).prompts == ((1, 2),)
    assert wire.completion({"model": "m", "prompt": [[1], [2, 3]]}).prompts == ((1,), (2, 3))
    for changes in (
        {"echo": True},
        {"best_of": 2},
        {"suffix": "x"},
        {"prompt": []},
        {"prompt": [-1]},
        {"prompt": ["a", 1]},
    ):
        with pytest.raises(Refused):
            wire.completion({"model": "m", "prompt": "a", **changes})


def test_embeddings_of_a_client() -> None:
    body = sent(lambda c: c.embeddings.create(model="m@0.5", input=["a", "b"]))
    asked = wire.embedding(body)
    assert asked == EmbeddingRequest("m", 0.5, "m@0.5", ("a", "b"), base64=True)
    answer = wire.embedding_answer(asked, [[0.5, -2.0], [1.0, 0.25]], 4)
    read = client(answer).embeddings.create(model="m", input="a")
    assert [one.embedding for one in read.data] == [[0.5, -2.0], [1.0, 0.25]]
    plain = wire.embedding({"model": "m", "input": "a"})
    CreateEmbeddingResponse.model_validate(wire.embedding_answer(plain, [[0.5]], 1), strict=True)
    for changes in ({"input": ""}, {"input": []}, {"dimensions": 3}, {"input": ["a"] * 2049}):
        with pytest.raises(Refused):
            wire.embedding({"model": "m", "input": "a", **changes})


def test_whole_answers() -> None:
    told = wire.chat_answer(REPLY, [ANSWER, Answer("", "tool_calls", (), (CALL,))], Usage(5, 2), logprobs=True)
    read = ChatCompletion.model_validate(told, strict=True)
    assert read.model == "ft:m:acme::1@0.6" and read.usage and read.usage.total_tokens == 7
    first, second = read.choices
    assert first.logprobs and first.logprobs.content and first.logprobs.content[1].bytes == [255]
    assert first.logprobs.content[0].top_logprobs[1].logprob == -9999
    assert second.message.content is None and second.message.tool_calls and second.finish_reason == "tool_calls"
    assert ChatCompletion.model_validate(wire.chat_answer(REPLY, [ANSWER], Usage(5, 2))).choices[0].logprobs is None
    plain = wire.completion_answer(REPLY, [ANSWER], Usage(5, 2), logprobs=True)
    logprobs = Completion.model_validate(plain, strict=True).choices[0].logprobs
    assert logprobs and logprobs.text_offset == [0, 2] and logprobs.token_logprobs == [-0.5, -1.0]


def stream(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(wire.event(one) for one in events)


def test_a_stream_is_read_as_the_answer() -> None:
    pieces = [Piece(0, "Hé", TOKENS[:1]), Piece(0, "�", TOKENS[1:]), Piece(0, "", finish="stop")]
    content = stream([
        wire.chat_start(REPLY),
        *(wire.chat_piece(REPLY, piece, logprobs=True) for piece in pieces),
        wire.chat_usage(REPLY, Usage(5, 2)),
    ]) + wire.DONE  # fmt: skip
    chunks = list(client(content).chat.completions.create(model="m", messages=[], stream=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ANSWER.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.prompt_tokens == 5


def test_a_stream_of_calls_and_of_plain_text() -> None:
    chunk = wire.chat_piece(REPLY, Said(0, "", finish="tool_calls", tool_calls=(CALL,)))
    delta = ChatCompletionChunk.model_validate(chunk, strict=True).choices[0].delta
    assert (
        delta.tool_calls and delta.tool_calls[0].function and delta.tool_calls[0].function.arguments == CALL.arguments
    )
    content = stream([
        wire.completion_piece(REPLY, Piece(1, "Hé", TOKENS[:1]), logprobs=True),
        wire.completion_piece(REPLY, Piece(1, "�", TOKENS[1:], "length"), logprobs=True, begun=2),
        wire.completion_usage(REPLY, Usage(1, 2)),
    ]) + wire.DONE  # fmt: skip
    first, second, last = client(content).completions.create(model="m", prompt="", stream=True)
    assert (first.choices[0].text, second.choices[0].finish_reason) == ("Hé", "length")
    assert second.choices[0].logprobs and second.choices[0].logprobs.text_offset == [2]
    assert last.choices == [] and last.usage and last.usage.total_tokens == 3


@pytest.mark.parametrize("error, said", [(Refused(400, "Too long."), "Too long."), (OSError("/secret"), "Try again")])
def test_a_stream_that_fails_raises(error: Exception, said: str) -> None:
    content = stream([wire.chat_start(REPLY), wire.failure(error)]) + wire.DONE
    with pytest.raises(openai.APIError, match=said) as raised:
        list(client(content).chat.completions.create(model="m", messages=[], stream=True))
    assert "/secret" not in str(raised.value)


def test_answers_may_have_to_follow_a_schema() -> None:
    class Person(BaseModel):
        name: str
        age: int

    for wanted, expected in (
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (Person, {**Person.model_json_schema(), "additionalProperties": False}),
    ):
        said = {} if wanted is None else {"response_format": wanted}
        body = sent(lambda c, said=said: c.chat.completions.parse(model="m", messages=ASK, **said))  # type: ignore[misc]
        schema = wire.chat(body).sampling.schema
        assert (schema and json.loads(schema)) == expected

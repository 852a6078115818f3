"""Google's generateContent: requests → `chat.py`, and answers and pieces of streams → JSON."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, AliasGenerator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_snake

from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage
from tunewright.service.inference.protocol import logprob as finite
from tunewright.service.wire.body import Body, parsed, split_alpha
from tunewright.service.wire.chat import Answer, ChatRequest, Reply, Said, ToolCall
from tunewright.service.wire.google import model_of
from tunewright.service.wire.openai_chat import checked_messages

FINISHED = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
MOST_CANDIDATES = 8


def _refusing(why: str) -> BeforeValidator:
    """For a field that is known, and refused with the reason."""

    def refuse(_: Any) -> Any:
        raise ValueError(f"{why}: leave it out")

    return BeforeValidator(refuse)


Foreign = Annotated[None, _refusing("images and files are not read here, only text and functions")]


class Fields(Body):
    """Google's JSON takes the names of fields in either spelling: `systemInstruction`, `system_instruction`."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=lambda name: AliasChoices(name, to_snake(name)))
    )


class Call(Fields):
    name: str = Field(min_length=1)
    args: dict[str, Any] = Field({})
    id: str | None = None


class Response(Fields):
    name: str = Field(min_length=1)
    response: dict[str, Any] = Field({})
    id: str | None = None


class Part(Fields):
    """A text, a call of a function, or what it returned."""

    text: str | None = None
    functionCall: Call | None = None
    functionResponse: Response | None = None
    inlineData: Foreign = None
    fileData: Foreign = None

    @model_validator(mode="after")
    def _one(self) -> Part:
        if sum(one is not None for one in (self.text, self.functionCall, self.functionResponse)) != 1:
            raise ValueError("give one of text, functionCall and functionResponse")
        return self


class Instruction(Fields):
    """Whose it is said to be has no meaning."""

    role: str | None = None
    parts: list[Part] = Field(min_length=1)


class Content(Instruction):
    role: Literal["user", "model", "function"] | None = None


class Function(Fields):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    parametersJsonSchema: dict[str, Any] | None = None


class Tool(Fields):
    functionDeclarations: list[Function] = Field(min_length=1)


class Conversation(Fields):
    """What is said, and what may be called."""

    contents: list[Content] = Field(min_length=1)
    systemInstruction: Instruction | None = None
    tools: list[Tool] = Field([])


class Settings(Fields):
    """Fields that have no effect here are taken only with the value that has none."""

    temperature: float = Field(1.0, ge=0, le=2)
    topP: float = Field(1.0, gt=0, le=1)
    topK: Annotated[float, Field(ge=1, multiple_of=1, allow_inf_nan=False)] | None = None  # a float in Google's API
    candidateCount: int = Field(1, ge=1, le=MOST_CANDIDATES)
    maxOutputTokens: Annotated[int, Field(ge=1)] | None = None
    stopSequences: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=5)
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    responseLogprobs: bool = False
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    presencePenalty: float = Field(0.0, ge=-2, le=2)
    frequencyPenalty: float = Field(0.0, ge=-2, le=2)
    thinkingConfig: Annotated[None, _refusing("models that are tuned here think as they were taught")] = None
    responseMimeType: Literal["text/plain", "application/json"] = "text/plain"
    responseSchema: dict[str, Any] | None = None
    responseJsonSchema: dict[str, Any] | None = None
    responseModalities: list[Literal["TEXT"]] = Field([])


class Generate(Conversation):
    """POST {model}:generateContent, :streamGenerateContent and :countTokens. There is no filter that safety settings
    could set.
    """

    generationConfig: Settings = Settings()
    safetySettings: list[dict[str, Any]] = Field([])
    labels: dict[str, str] = Field({})


def generate(model: str, body: Any, stream: bool = False) -> ChatRequest:
    """A request for candidates. Raises Refused (400) that names the field.

    Args:
        model: as it stands in the address, before the colon of the method.
    """
    asked, named = parsed(Generate, body), model_of(model)
    name, alpha = split_alpha(named)
    chosen = asked.generationConfig
    if chosen.logprobs is not None and not chosen.responseLogprobs:
        raise Refused(400, "generationConfig.logprobs needs responseLogprobs.", param="generationConfig.logprobs")
    sampling = Sampling(
        chosen.temperature,
        chosen.topP,
        chosen.seed,
        chosen.maxOutputTokens,
        tuple(chosen.stopSequences),
        chosen.candidateCount,
        (chosen.logprobs or 0) if chosen.responseLogprobs else None,
        chosen.presencePenalty,
        chosen.frequencyPenalty,
        schema=_schema(chosen),
        top_k=None if chosen.topK is None else int(chosen.topK),
    )
    if sampling.schema and asked.tools:
        raise Refused(400, "generationConfig.responseMimeType: an answer in JSON calls no tools. Leave one out.",
                      param="generationConfig.responseMimeType")  # fmt: skip
    messages = checked_messages(messages_of(asked.contents, asked.systemInstruction), "contents")
    return ChatRequest(name, alpha, named, messages, (), tools_of(asked) or None, sampling, stream, usage=True)


def _schema(chosen: Settings) -> str | None:
    """The JSON schema that answers have to follow, as text."""
    given = chosen.responseJsonSchema or (
        _json_schema(chosen.responseSchema, closed=True) if chosen.responseSchema else None
    )
    if chosen.responseMimeType == "application/json":
        return json.dumps(given or {"type": "object"})
    if given:
        raise Refused(400, "generationConfig: a schema needs responseMimeType application/json.",
                      param="generationConfig.responseMimeType")  # fmt: skip
    return None


def messages_of(contents: Sequence[Content], instruction: Instruction | None = None) -> list[dict[str, Any]]:
    """A conversation in OpenAI's form. Raises Refused that names the content which cannot be said there."""
    system = [{"role": "system", "content": _text(instruction.parts)}] if instruction else []
    return [*system, *_messages(contents)]


def tools_of(asked: Conversation) -> list[dict[str, Any]]:
    return [_tool(function) for tool in asked.tools for function in tool.functionDeclarations]


def _text(parts: Iterable[Part]) -> str:
    return "".join(part.text or "" for part in parts)


def _messages(contents: Sequence[Content]) -> list[dict[str, Any]]:
    """Contents as messages. Calls have ids there, by which what they returned is found: here it is their order."""
    messages: list[dict[str, Any]] = []
    waiting: dict[str, deque[str]] = defaultdict(deque)  # by name the ids of calls that nothing has returned from yet
    for number, content in enumerate(contents):
        where = f"contents.{number}.parts"
        for returned in (part.functionResponse for part in content.parts if part.functionResponse):
            if not waiting[returned.name]:
                raise Refused(400, f"{where}: {returned.name:.100} returns what nobody called.", param=where)
            said = json.dumps(returned.response, ensure_ascii=False)
            messages.append({"role": "tool", "tool_call_id": waiting[returned.name].popleft(), "content": said})
        calls = [part.functionCall for part in content.parts if part.functionCall]
        if calls and content.role != "model":
            raise Refused(400, f'{where}: a functionCall is made by the role "model" alone.', param=where)
        if calls:
            ids = [call.id or f"call_{number}_{i}" for i, call in enumerate(calls)]
            for call, id in zip(calls, ids, strict=True):
                waiting[call.name].append(id)
            messages.append(_calling(_text(content.parts), calls, ids))
        elif any(part.text is not None for part in content.parts):
            role = "assistant" if content.role == "model" else "user"
            messages.append({"role": role, "content": _text(content.parts)})
    return messages


def _calling(text: str, calls: Sequence[Call], ids: Sequence[str]) -> dict[str, Any]:
    made = [
        {"id": name, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.args)}}
        for name, call in zip(ids, calls, strict=True)
    ]
    return {"role": "assistant", "content": text or None, "tool_calls": made}


def _tool(function: Function) -> dict[str, Any]:
    schema = function.parametersJsonSchema or _json_schema(function.parameters or {"type": "OBJECT", "properties": {}})
    told = {"name": function.name, "description": function.description or "", "parameters": schema}
    return {"type": "function", "function": told}


def _json_schema(given: Any, closed: bool = False) -> Any:
    """A schema in Google's words (OpenAPI 3.0: types in capitals, `nullable`) in those of JSON schema.

    Args:
        closed: whether objects have no properties but those that are named, as in Google's answers.
    """
    if isinstance(given, list):
        return [_json_schema(one, closed) for one in given]
    if not isinstance(given, dict):
        return given
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key == "properties" and isinstance(value, dict):  # which may be called as any of these keys
            found[key] = {name: _json_schema(one, closed) for name, one in value.items()}
            found |= {"additionalProperties": False} if closed else {}
        elif key in ("items", "anyOf"):
            found[key] = _json_schema(value, closed)
        elif key not in ("nullable", "propertyOrdering"):
            found[key] = value
    if isinstance(kind := found.get("type"), str):
        found["type"] = [kind.lower(), "null"] if given.get("nullable") is True else kind.lower()
    return found


# Answers


def answer(reply: Reply, answers: Sequence[Answer], usage: Usage, logprobs: bool = False) -> dict[str, Any]:
    candidates = [
        _candidate(i, one.text, one.finish, one.tool_calls, one.tokens if logprobs else ())
        for i, one in enumerate(answers)
    ]
    return {**_head(reply), "candidates": candidates, "usageMetadata": _usage(usage)}


def piece(reply: Reply, said: Piece, logprobs: bool = False) -> dict[str, Any]:
    """What a stream says next."""
    tokens = said.tokens if logprobs else ()
    calls = said.tool_calls if isinstance(said, Said) else ()
    return {**_head(reply), "candidates": [_candidate(said.index, said.text, said.finish, calls, tokens)]}


def count(tokens: int) -> dict[str, Any]:
    return {"totalTokens": tokens}


def end(reply: Reply, usage: Usage) -> dict[str, Any]:
    """The counts, which come last."""
    return {**_head(reply), "usageMetadata": _usage(usage)}


def _head(reply: Reply) -> dict[str, Any]:
    return {"modelVersion": reply.model, "responseId": reply.id}


def _candidate(
    index: int, text: str, finish: str | None, calls: Sequence[ToolCall], tokens: Sequence[Token]
) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": text}] if text or not calls else []
    parts += [{"functionCall": {"id": c.id, "name": c.name, "args": json.loads(c.arguments or "{}")}} for c in calls]
    told: dict[str, Any] = {"index": index, "content": {"role": "model", "parts": parts}}
    if finish:
        told["finishReason"] = FINISHED[finish]
    if tokens:
        told["avgLogprobs"] = sum(finite(token.logprob) for token in tokens) / len(tokens)
        told["logprobsResult"] = _logprobs(tokens)
    return told


def _logprobs(tokens: Sequence[Token]) -> Mapping[str, Any]:
    chosen = [{"token": token.text, "logProbability": finite(token.logprob)} for token in tokens]
    top = [
        {"candidates": [{"token": top.text, "logProbability": finite(top.logprob)} for top in token.top]}
        for token in tokens
    ]
    return {"chosenCandidates": chosen, "topCandidates": top}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "promptTokenCount": usage.prompt_tokens,
        "candidatesTokenCount": usage.completion_tokens,
        "totalTokenCount": usage.prompt_tokens + usage.completion_tokens,
    }

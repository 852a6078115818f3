"""Google's rows of files that are trained on, as Vertex AI documents them, in OpenAI's form, which all else reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from tunewright.service.errors import Refused
from tunewright.service.wire.body import parsed
from tunewright.service.wire.google_chat import Content, Conversation, Fields, messages_of, tools_of

MARK = b'"contents"'
"""Without it, a line holds no row of Google's."""


class Completion(Fields):
    score: Annotated[float, Field(allow_inf_nan=False)]
    completion: Content


class Comparison(Conversation):
    """Of two completions the one of the higher score is preferred: Google's are 1 and 0."""

    completions: list[Completion] = Field(min_length=2, max_length=2)


def is_google(row: Mapping[str, Any]) -> bool:
    """Whether a row is in Google's form, and no column that happens to be called so."""
    contents = row.get("contents")
    return isinstance(contents, list) and not any(isinstance(one, dict) and "content" in one for one in contents)


def translated(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in OpenAI's form. Raises Refused that names the field which cannot be said there."""
    return _comparison(row) if "completions" in row else _conversation(row)


def _conversation(row: Mapping[str, Any]) -> dict[str, Any]:
    asked = parsed(Conversation, row)
    made = _made(asked)
    if asked.contents[-1].role != "model":
        raise _refused(f"contents.{len(asked.contents) - 1}", "nobody answers it: add a content of the model behind it")
    for number, content in enumerate(asked.contents):
        _check_answer(content, f"contents.{number}")
    return made


def _comparison(row: Mapping[str, Any]) -> dict[str, Any]:
    asked = parsed(Comparison, row)
    if asked.contents[-1].role == "model":
        raise _refused(f"contents.{len(asked.contents) - 1}", "the model's answers belong in completions")
    answers = [_answer(one.completion, f"completions.{i}.completion") for i, one in enumerate(asked.completions)]
    better = max(asked.completions, key=lambda one: one.score)
    worse = min(asked.completions, key=lambda one: one.score)
    if better.score == worse.score:
        raise _refused("completions", "the scores are equal: give the better one 1 and the other 0")
    if _bare(answers[0]) == _bare(answers[1]):
        raise _refused("completions", "they are equal: neither is better")
    preferred, other = answers if better is asked.completions[0] else answers[::-1]
    return {"input": _made(asked), "preferred_output": [preferred], "non_preferred_output": [other]}


def _made(asked: Conversation) -> dict[str, Any]:
    tools = tools_of(asked)
    return {"messages": messages_of(asked.contents, asked.systemInstruction), **({"tools": tools} if tools else {})}


def _answer(content: Content, where: str) -> dict[str, Any]:
    if content.role != "model" or any(part.functionResponse for part in content.parts):
        raise _refused(where, 'a completion is an answer of the role "model": text, or calls of functions')
    _check_answer(content, where)
    return messages_of([content])[0]


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    """Without the white space round its text."""
    return {**message, "content": (message["content"] or "").strip()}


def _check_answer(content: Content, where: str) -> None:
    said: Sequence[Any] = [part for part in content.parts if part.functionCall or (part.text or "").strip()]
    if content.role == "model" and not said:
        raise _refused(f"{where}.parts", "the answer is empty: write it, or leave the row out")


def _refused(where: str, fault: str) -> Refused:
    return Refused(400, f"{where}: {fault}.", param=where)

"""The formats of a row: the columns that tell them apart, and how each becomes a record.

A new format is one entry in `FORMATS`: its name in the recipe, the columns it needs and may have, and the function that
builds the record. The function raises DataError with the reason; the caller adds the row's source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tunewright.data.functions import tools_of
from tunewright.data.kinds import CaptionedImage, Completion, Conversation, Document, Labelled, LabelledImage, Record
from tunewright.data.labels import check_label
from tunewright.data.messages import check_messages, check_weight, untrained
from tunewright.data.pictures import COLUMNS, Picture
from tunewright.errors import DataError

Values = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How rows of one format look, and the record that a row becomes."""

    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    build: Callable[[Values, str], Record]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needs + self.may_have


def detect(columns: Iterable[str]) -> str | None:
    """The first format of `FORMATS` whose needed columns are all there."""
    present = set(columns)
    return next((name for name, format in FORMATS.items() if present.issuperset(format.needs)), None)


def _chat(values: Values, source: str) -> Conversation:
    return Conversation(check_messages(values["messages"]), _tools(values), source)


def _tools(values: Values) -> list[dict[str, Any]] | None:
    """Tools as a list of JSON schemas."""
    tools, functions = _schemas(values, "tools"), _schemas(values, "functions")
    if tools and functions:
        raise DataError("has tools and functions: keep one of them")
    return tools or tools_of(functions) or None


def _schemas(values: Values, column: str) -> list[dict[str, Any]]:
    """A list of JSON schemas; data sets often hold that list as JSON text."""
    schemas = values.get(column)
    schemas = _from_json(schemas, column) if isinstance(schemas, str) and schemas else schemas
    if not schemas:
        return []
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        raise DataError(f"{column} must be a list of JSON schemas")
    return schemas


def _from_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{column} is not valid JSON: {error}") from error


SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def _sharegpt(values: Values, source: str) -> Conversation:
    turns = values["conversations"]
    if not isinstance(turns, list):
        raise DataError("conversations must be a list of turns")
    messages = [_sharegpt_message(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    return Conversation(check_messages(_system(values) + messages), _tools(values), source)


def _sharegpt_message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise DataError(f"{where} must be an object with from and value")
    message = {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "weight": turn.get("weight")}
    if turn["from"] == "function_call":
        calls = _from_json(_text(turn, "value"), f"{where}.value")
        calls = calls if isinstance(calls, list) else [calls]
        return message | {"tool_calls": [{"type": "function", "function": call} for call in calls]}
    return message | {"content": turn["value"]}


def _alpaca(values: Values, source: str) -> Conversation:
    question = _text(values, "instruction")
    if values.get("input"):
        question += "\n\n" + _text(values, "input")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": _text(values, "output")}]
    return Conversation(check_messages(_system(values) + messages), None, source)


def _system(values: Values) -> list[dict[str, Any]]:
    return [{"role": "system", "content": _text(values, "system")}] if values.get("system") else []


def _prompt_completion(values: Values, source: str) -> Completion | Conversation:
    if isinstance(values["prompt"], list):
        return _prompt_completion_chat(values, source)
    if not _text(values, "completion"):
        raise DataError("completion is empty: there is nothing to learn")
    if idle := [name for name in ("tools", "functions") if values.get(name)]:
        raise DataError(f"{idle[0]} are for conversations: give prompt and completion as lists of messages")
    return Completion(_text(values, "prompt"), values["completion"], source)


def _prompt_completion_chat(values: Values, source: str) -> Conversation:
    """Messages on both sides: only those of the completion are trained."""
    if not isinstance(values["completion"], list):
        raise DataError("prompt is a list of messages, so completion must be one, too")
    context = [untrained(message) for message in values["prompt"]]
    return Conversation(check_messages(context + values["completion"]), _tools(values), source)


def _classification(values: Values, source: str) -> Labelled:
    pair = None if values.get("text_pair") is None else _text(values, "text_pair")
    return Labelled(_text(values, "text"), _label(values), source, pair, _weight(values))


def _image(values: Values, source: str) -> LabelledImage:
    return LabelledImage(_picture(values), _label(values), source, _weight(values))


def _captioned(values: Values, source: str) -> CaptionedImage:
    if not _text(values, "text").strip():
        raise DataError("text is empty: write what the image shows, or remove the row")
    return CaptionedImage(_picture(values), values["text"], source, _weight(values))


def _picture(values: Values) -> Picture:
    column = next(name for name in COLUMNS if name in values)
    if not isinstance(values[column], Picture):
        raise DataError(f"{column} must be a path, or the bytes of an image, not {type(values[column]).__name__}")
    return values[column]


def _label(values: Values) -> Any:
    label = values.get("label")
    return None if label in (None, "") else check_label(label)


def _weight(values: Values) -> float:
    weight = values.get("weight")
    return 1.0 if weight is None else check_weight(_number(weight), "weight")


def _number(value: Any) -> Any:
    """A CSV file holds numbers as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _document(values: Values, source: str) -> Document:
    text = _text(values, "text")
    if not text.strip():
        raise DataError("text is empty: there is nothing to learn")
    return Document(text, source)


def _text(values: Values, column: str) -> str:
    if not isinstance(values.get(column), str):
        raise DataError(f"{column} must be a string, not {type(values.get(column)).__name__}")
    return values[column]


FORMATS: dict[str, Format] = {
    "chat": Format(("messages",), ("tools", "functions"), _chat),
    "sharegpt": Format(("conversations",), ("system", "tools", "functions"), _sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": Format(("prompt", "completion"), ("tools", "functions"), _prompt_completion),
    "classification": Format(("text", "label"), ("text_pair", "weight"), _classification),
    "captioned_image": Format(("image", "text"), ("weight",), _captioned),
    "captioned_file": Format(("file_name", "text"), ("weight",), _captioned),
    "text": Format(("text",), (), _document),
    "image": Format(("image", "label"), ("weight",), _image),
    "image_file": Format(("file_name", "label"), ("weight",), _image),
}

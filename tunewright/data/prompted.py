"""Columns that several formats share: a prompt with its answer, the tools of a conversation, plain texts."""

from __future__ import annotations

import json
from typing import Any

from tunewright.data.functions import tools_of
from tunewright.data.kinds import Completion, Conversation
from tunewright.data.messages import check_messages, untrained
from tunewright.errors import DataError

Values = dict[str, Any]


def prompted(values: Values, source: str) -> Completion | Conversation:
    """A prompt with its answer: two texts, or messages on both sides."""
    if isinstance(values["prompt"], list):
        return _in_messages(values, source)
    if not text_of_row(values, "completion"):
        raise DataError("completion is empty: there is nothing to learn")
    if idle := [name for name in ("tools", "functions") if values.get(name)]:
        raise DataError(f"{idle[0]} are for conversations: give prompt and completion as lists of messages")
    return Completion(text_of_row(values, "prompt"), values["completion"], source)


def _in_messages(values: Values, source: str) -> Conversation:
    """Messages on both sides: only those of the completion are trained."""
    if not isinstance(values["completion"], list):
        raise DataError("prompt is a list of messages, so completion must be one, too")
    context = [untrained(message) for message in values["prompt"]]
    return Conversation(check_messages(context + values["completion"]), tools_of_row(values), source)


def tools_of_row(values: Values) -> list[dict[str, Any]] | None:
    """Tools as a list of JSON schemas."""
    tools, functions = _schemas(values, "tools"), _schemas(values, "functions")
    if tools and functions:
        raise DataError("has tools and functions: keep one of them")
    return tools or tools_of(functions) or None


def _schemas(values: Values, column: str) -> list[dict[str, Any]]:
    """A list of JSON schemas; data sets often hold that list as JSON text."""
    schemas = values.get(column)
    schemas = from_json(schemas, column) if isinstance(schemas, str) and schemas else schemas
    if not schemas:
        return []
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        raise DataError(f"{column} must be a list of JSON schemas")
    return schemas


def from_json(text: str, column: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{column} is not valid JSON: {error}") from error


def text_of_row(values: Values, column: str) -> str:
    if not isinstance(values.get(column), str):
        raise DataError(f"{column} must be a string, not {type(values.get(column)).__name__}")
    return values[column]

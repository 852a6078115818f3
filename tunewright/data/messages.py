"""Chat messages: what a file may hold, and the one form in which templates see them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from tunewright.data.functions import with_tool_calls
from tunewright.data.texts import HALF, is_whole
from tunewright.errors import DataError

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_messages(messages: Any) -> list[Message]:
    """The messages as they are, less keys that are null, and with functions as tools (see `functions.py`).

    Raises:
        DataError: something that no chat template could present, or no assistant message to learn from.
    """
    checked = _check_all(messages)
    if not any(weight_of(message) for message in checked):
        raise DataError("no assistant message with a weight above 0: there is nothing to learn")
    if checked[-1]["role"] != "assistant":
        raise DataError(f"ends with a {checked[-1]['role']} message that nobody answers: remove it, or add the answer")
    return checked


def check_prompt(messages: Any) -> list[Message]:
    """Messages that are to be answered, as in `check_messages`; earlier answers among them may be empty.

    Raises:
        DataError: something that no chat template could present, or half a character.
    """
    checked = _check_all([untrained(message) for message in messages] if isinstance(messages, list) else messages)
    if faults := [f"messages[{index}] {HALF}" for index, message in enumerate(checked) if not is_whole(message)]:
        raise DataError(f"{len(faults)} of {len(checked)} messages cannot be read: mend them.", faults)
    return checked


def untrained(message: Any) -> Any:
    """A message as context alone: an answer that is not learned."""
    is_answer = isinstance(message, dict) and message.get("role") == "assistant"
    return {**message, "weight": 0} if is_answer else message


def weight_of(message: Message) -> float:
    """How much a message counts in the loss: the weight that the file gives, 1 for an answer without, else 0."""
    return float(message.get("weight", 1)) if message["role"] == "assistant" else 0.0


def for_template(messages: list[Message], knows_developer: bool = False) -> list[Message]:
    """Messages as chat templates expect them, in training and in serving alike.

    Text parts become one string, tool arguments objects instead of JSON text, and a developer message a system message
    unless the template knows that role: many templates drop a role that they do not know without a word.
    """
    return [_for_template(message, knows_developer) for message in messages]


def _for_template(message: Message, knows_developer: bool) -> Message:
    seen = {key: value for key, value in message.items() if key != "weight"}
    if seen["role"] == "developer" and not knows_developer:
        seen["role"] = "system"
    if isinstance(seen.get("content"), list):
        seen["content"] = text_of(message)
    if seen.get("tool_calls"):
        seen["tool_calls"] = [_with_argument_object(call) for call in seen["tool_calls"]]
    return seen


def text_of(message: Message) -> str:
    """The content as one string."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def dialogue(messages: Iterable[Message]) -> str:
    """Messages in plain words, a line each: who says what."""
    return "\n".join(f"{message['role']}: {text_of(message)}" for message in messages)


def _with_argument_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if isinstance(function.get("arguments"), str):
        function = {**function, "arguments": json.loads(function["arguments"] or "{}")}
    return {**call, "function": function}


def _check_all(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError("messages must be a list that is not empty")
    today = with_tool_calls(messages)
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(today)]


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError(f"{where} must be an object with role and content")
    message = {key: value for key, value in message.items() if value is not None}  # Parquet fills keys with null
    if message.get("role") not in ROLES:
        raise DataError(f"{where}.role is {message.get('role')!r}: give one of {', '.join(ROLES)}")
    _check_tool_calls(message, where)
    _check_content(message, where)
    _check_weight(message, where)
    return message


def _check_content(message: Message, where: str) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if isinstance(content, list):
        _check_parts(content, where)
    elif not isinstance(content, str):
        raise DataError(f"{where}.content must be a string, or a list of text parts")
    if weight_of(message) and not message.get("tool_calls") and not text_of(message).strip():
        raise DataError(f"{where} is an empty answer: write it, remove it, or give it weight 0")


def _check_parts(parts: list[Any], where: str) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f'{where}.content[{index}] must be {{"type": "text", "text": …}}: only text is read')


def _check_tool_calls(message: Message, where: str) -> None:
    calls = message.get("tool_calls", [])
    if calls and message["role"] != "assistant":
        raise DataError(f"{where} has tool_calls, which only an assistant message can make")
    if not isinstance(calls, list):
        raise DataError(f"{where}.tool_calls must be a list")
    for index, call in enumerate(calls):
        _check_call(call, f"{where}.tool_calls[{index}]")


def _check_call(call: Any, where: str) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f'{where} must be {{"type": "function", "function": {{"name": …, "arguments": …}}}}')
    if isinstance(arguments := function.get("arguments"), str) and arguments:
        try:
            json.loads(arguments)
        except ValueError as error:
            raise DataError(f"{where}.function.arguments is not valid JSON: {error}") from error


def _check_weight(message: Message, where: str) -> None:
    if "weight" not in message:
        return
    if message["role"] != "assistant":
        raise DataError(f"{where} has a weight, but only assistant messages are trained: remove it")
    check_weight(message["weight"], f"{where}.weight")


def check_weight(weight: Any, where: str) -> float:
    """A finite number that is not negative, as a float."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DataError(f"{where} is {weight!r}: give 0, 1, or another number that is not negative")
    return float(weight)

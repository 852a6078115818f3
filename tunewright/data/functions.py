"""OpenAI's older form of tool calls, with one function a message, in the form of today.

    functions: [F]                                           tools: [{"type": "function", "function": F}]
    {"role": "assistant", "function_call": C}                "tool_calls": [{"type": "function", "function": C}]
    {"role": "function", "name": …, "content": …}            "role": "tool", and the rest as it is

Calls had no ids, so none are made up: an answer belongs to the call in the message before it, or is a fault.
"""

from __future__ import annotations

from typing import Any

from tunewright.errors import DataError


def tools_of(functions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Functions as tools. Raises DataError where one has no name."""
    if not all(isinstance(function.get("name"), str) for function in functions):
        raise DataError("functions must be a list of objects with a name, a description and parameters")
    return [_as_tool(function) for function in functions]


def with_tool_calls(messages: list[Any]) -> list[Any]:
    """Messages in the form of today; those that are in it stay as they are.

    Raises:
        DataError: a call without a name, beside `tool_calls`, or an answer that does not follow its call.
    """
    calls = [_called(message) for message in messages]
    before = [None, *calls[:-1]]
    return [_message(message, before[index], f"messages[{index}]") for index, message in enumerate(messages)]


def _called(message: Any) -> Any:
    """The name of the function that a message calls."""
    call = message.get("function_call") if isinstance(message, dict) else None
    return call.get("name") if isinstance(call, dict) else None


def _message(message: Any, called_before: str | None, where: str) -> Any:
    if not isinstance(message, dict):
        return message
    if message.get("role") == "function":
        if called_before is None or message.get("name") != called_before:
            raise DataError(f"{where} answers a function that the message before it does not call: add the call")
        return {**message, "role": "tool"}
    if message.get("function_call") is not None:
        return _with_tool_call(message, where)
    return message


def _with_tool_call(message: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(_called(message), str):
        raise DataError(f'{where}.function_call must be {{"name": …, "arguments": …}}')
    if message.get("tool_calls"):
        raise DataError(f"{where} has function_call and tool_calls: keep one of them")
    rest = {key: value for key, value in message.items() if key != "function_call"}
    return {**rest, "tool_calls": [_as_tool(message["function_call"])]}


def _as_tool(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}

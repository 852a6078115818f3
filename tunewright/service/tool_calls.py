"""Calls of tools in what a model says: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Hermes, Qwen and most
chat templates write them. A model that calls in another form is heard as saying so in its text.
"""

from __future__ import annotations

import json
import re

from tunewright.service.ids import random_text
from tunewright.service.wire.chat import ToolCall

OPEN = "<tool_call>"
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def taken_out(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """(the text without its calls, the calls). What is no whole call stays in the text."""
    calls: list[ToolCall] = []

    def take(found: re.Match[str]) -> str:
        call = _read(found[1])
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    rest = CALL.sub(take, text)
    return (rest.strip() if calls else text), tuple(calls)


def may_call(text: str) -> bool:
    """Whether a text that goes on holds a call, or ends in what may become the beginning of one."""
    end = text.rstrip()
    if len(end) < len(text) or OPEN in text:  # white space goes with a call that follows it
        return True
    return any(end.endswith(OPEN[:length]) for length in range(1, len(OPEN)))


def _read(text: str) -> ToolCall | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str) or not found["name"]:
        return None
    arguments = found.get("arguments", {})
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(f"call_{random_text()}", found["name"], told)

"""Bodies of requests: read as they come, never beyond what is allowed."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.service.errors import Refused
from tunewright.service.settings import Limits

SILENCE = 60.0
"""Seconds for which the rest of a body is waited for while nothing comes."""
DEEPEST = 100
"""Levels of objects and lists in one another."""


class TooLarge(Refused):
    """The body of a request."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"The request is larger than the {limit:,} bytes that it may have here.", "too_large")


class BodyLimit:
    """Refuses bodies that are larger than their route allows, before and while they are read, and those that stop."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, read, whole = self._limit(scope["path"]), 0, False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        scope.setdefault("state", {})["too_large"] = declared.isdigit() and int(declared) > limit and limit

        async def counted() -> Message:
            nonlocal read, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                raise Refused(408, f"Nothing of the body came for {SILENCE:g} s.", "timeout") from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > limit:
                raise TooLarge(limit)
            return message

        await self.app(scope, counted, send)

    def _limit(self, path: str) -> int:
        form = 1 << 16  # what stands around the file
        if path.endswith("/files"):
            return self.limits.file_bytes + form
        return self.limits.part_bytes + form if path.endswith("/parts") else self.limits.body_bytes


def refuse_too_large(request: Request) -> None:
    if limit := request.state.too_large:
        raise TooLarge(limit)


async def _json(request: Request) -> Any:
    refuse_too_large(request)
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_once)
        _refuse_depth(body)
        return body
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}", "invalid_json") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.40} is larger than any number here")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Which of two equal keys counts is not the same everywhere, so that what a proxy let through would not
    be what is done here."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!a:.40} stands twice in an object")
        found[name] = value
    return found


def _refuse_depth(value: Any) -> None:
    layer = [value]
    for _ in range(DEEPEST):
        layer = [
            inner
            for one in layer
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
        if not layer:
            return
    raise ValueError(f"it has more than {DEEPEST} levels")


JsonBody: Any = Depends(_json)
"""The JSON in the body of a request; {} where there is none, as openai's client sends with `cancel`."""

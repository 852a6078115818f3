"""Bodies of requests: read as they come, never beyond what is allowed."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.service.errors import Refused
from tunewright.service.json_body import read_json
from tunewright.service.settings import Limits

SILENCE = 60.0
"""Seconds for which the rest of a body is waited for while nothing comes."""
LEAST_RATE = 4096
"""Bytes a second that a body must come with, beyond SILENCE: who sends a byte now and then holds nothing for long."""
FORM = 1 << 16
"""Bytes of a form around the file that is in it."""
LARGE = 1 << 18
"""Bytes of JSON from which on others are served while it is read."""

OPENAI = "/(?:v1|openai/v1|openai)"
FILE = re.compile(f"{OPENAI}/files")
PART = re.compile(f"{OPENAI}/uploads/[^/]+/parts")
IMAGES = re.compile(
    f"{OPENAI}/(?:predictions|chat/completions)|/openai/deployments/.+/chat/completions"
    "|/v1beta1/.+:(?:generateContent|streamGenerateContent|countTokens)"
)


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
        limit, read, waited, whole = limit_of(scope["path"], self.limits), 0, 0.0, False
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        scope.setdefault("state", {})["too_large"] = declared.isdigit() and int(declared) > limit and limit

        async def counted() -> Message:
            nonlocal read, waited, whole
            if whole:  # what comes now is that the client has gone
                return await receive()
            began = time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                raise Refused(408, f"Nothing of the body came for {SILENCE:g} s.", "timeout") from None
            waited += time.monotonic() - began
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > limit:
                raise TooLarge(limit)
            if not whole and waited > SILENCE + read / LEAST_RATE:
                raise Refused(408, f"Of the body came {read:,} bytes in {waited:.0f} s: too slow.", "timeout")
            return message

        await self.app(scope, counted, send)


def limit_of(path: str, limits: Limits) -> int:
    """How many bytes a request to this path may have. What only looks like an upload's path has no upload's limit."""
    if FILE.fullmatch(path):
        return limits.file_bytes + FORM
    if PART.fullmatch(path):
        return limits.part_bytes + FORM
    return limits.image_body_bytes if IMAGES.fullmatch(path) else limits.body_bytes


def refuse_too_large(request: Request) -> None:
    if limit := request.state.too_large:
        raise TooLarge(limit)


async def _json(request: Request) -> Any:
    refuse_too_large(request)
    raw = await request.body()
    return await run_in_threadpool(read_json, raw) if len(raw) > LARGE else read_json(raw)


JsonBody: Any = Depends(_json)
"""The JSON in the body of a request; {} where there is none, as openai's client sends with `cancel`."""

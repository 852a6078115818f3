"""Work for a client that ends when it goes away: nobody would hear what it gives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")

SECONDS_BETWEEN_LOOKS = 1.0


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """What the work gives; it is cancelled when the client goes away. Raises ClientDisconnect."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=SECONDS_BETWEEN_LOOKS))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()

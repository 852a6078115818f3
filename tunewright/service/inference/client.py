"""The process that answers, as those who ask it see it: HTTP over a Unix socket, or over loopback with a token."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Embedded,
    Generate,
    Loaded,
    Piece,
    Usage,
    as_error,
    read_line,
    write,
)

CONNECT = 5.0
"""Seconds to reach the process; an answer may take as long as it takes."""
STARTING = 60.0
"""Seconds for which a process that is being started is waited for."""


class Client:
    """An `Engine` that is another process: see `python -m tunewright.service.inference`.

    Args:
        socket: the path of its Unix socket.
        url: or where it listens, `http://127.0.0.1:PORT`, with the `token` it was started with.
    """

    def __init__(self, socket: str | None = None, url: str | None = None, token: str | None = None) -> None:
        assert (socket is None) != (url is None), "a socket or a url"
        self._socket = socket
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket, limits=httpx.Limits(max_connections=None)),
            base_url=url or "http://inference",
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(None, connect=CONNECT),
        )

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        ended = False
        await self._there()
        async with _reaching(), self._http.stream("POST", "/generate", content=write(asked)) as response:
            if response.is_error:
                await response.aread()
                raise _error(response)
            async for each in lines_of(response):
                said = read_line(each)
                ended = isinstance(said, Usage)
                yield said
        if not ended:
            raise Refused(503, "The process that answers has ended in the middle of an answer. Ask again.")

    async def count(self, asked: Generate) -> int:
        return int(await self._post("/count", write(asked)))

    async def embed(self, asked: Embed) -> Embedded:
        found = await self._post("/embed", write(asked))
        return Embedded(tuple(map(tuple, found["vectors"])), found["tokens"])

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._post("/classify", write(asked))
        return found

    async def images(self, asked: Draw) -> list[bytes]:
        return [base64.b64decode(one) for one in await self._post("/images", write(asked))]

    async def loaded(self) -> list[Loaded]:
        async with _reaching():
            response = await self._http.get("/loaded")
        if response.is_error:
            raise _error(response)
        return [Loaded(**one) for one in response.json()]

    async def healthy(self) -> bool:
        try:
            return (await self._http.get("/healthz", timeout=CONNECT)).is_success
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def _there(self) -> None:
        """Until the process is there, which is started again where it has ended; at most so long."""
        end = time.monotonic() + STARTING
        while self._socket and time.monotonic() < end:
            try:
                _, writer = await asyncio.open_unix_connection(self._socket)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.2)
            else:
                writer.close()
                return

    async def _post(self, path: str, body: bytes) -> Any:
        await self._there()
        async with _reaching():
            response = await self._http.post(path, content=body)
        if response.is_error:
            raise _error(response)
        return response.json()


async def lines_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of an answer as it comes. They end at a line feed alone: httpx also ends them at U+2028."""
    rest = b""
    async for part in response.aiter_bytes():
        *whole, rest = (rest + part).split(b"\n")
        for one in whole:
            yield one
    if rest:
        yield rest


@asynccontextmanager
async def _reaching() -> AsyncIterator[None]:
    """Inside, a process that goes away is a 503, after which clients ask again."""
    try:
        yield
    except httpx.HTTPError as error:
        raise Refused(
            503, "The process that answers cannot be reached. Ask again in a moment.", headers={"Retry-After": "10"}
        ) from error


def _error(response: httpx.Response) -> Refused:
    try:
        return as_error(response.json()["error"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return Refused(500, f"The process that answers has failed: {response.text[:200]}")

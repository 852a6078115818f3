"""A process that answers for models, over HTTP on a Unix socket, or on loopback with a token.

python -m tunewright.service.inference --socket PATH --memory 4e9 --device auto
TUNEWRIGHT_INFERENCE_TOKEN=… python -m tunewright.service.inference --port 8001
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hmac
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tunewright.service.children import when_told_to_leave
from tunewright.service.connected import while_connected
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Engine,
    Generate,
    Piece,
    Usage,
    as_refused,
    error_body,
    line,
    read,
)

log = logging.getLogger(__name__)

TOKEN = "TUNEWRIGHT_INFERENCE_TOKEN"
LARGEST = 64 * 2**20
"""Bytes of a request; images come in it."""
GRACE = 10
"""Seconds that answers have to end in when the process is told to end."""

LINES = "application/x-ndjson"
KEPT = 60
"""Seconds for which an idle connection stays: longer than the client keeps it, which would else use a closed one."""


def app_of(make: Callable[[], Engine], token: str | None = None) -> Starlette:
    """The application. `make` is called where its event loop runs."""
    engines: list[Engine] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        engines.append(make())
        yield
        await engines.pop().close()

    async def generate(request: Request) -> Response:
        asked = read(Generate, await _body(request))
        pieces = engines[0].generate(asked)
        if not asked.stream:
            return Response(await while_connected(request, _whole(pieces)), media_type=LINES)
        first = await while_connected(request, anext(pieces))  # till it is known whether there is any, nothing is said
        return StreamingResponse(_lines(first, pieces), media_type=LINES)

    async def count(request: Request) -> Response:
        asked = read(Generate, await _body(request))
        return JSONResponse(await while_connected(request, engines[0].count(asked)))

    async def embed(request: Request) -> Response:
        asked = read(Embed, await _body(request))
        return JSONResponse(asdict(await while_connected(request, engines[0].embed(asked))))

    async def classify(request: Request) -> Response:
        asked = read(Classify, await _body(request))
        return JSONResponse(await while_connected(request, engines[0].classify(asked)))

    async def images(request: Request) -> Response:
        asked = read(Draw, await _body(request))
        drawn = await while_connected(request, engines[0].images(asked))
        return JSONResponse([base64.b64encode(one).decode() for one in drawn])

    async def loaded(_: Request) -> Response:
        return JSONResponse([asdict(one) for one in await engines[0].loaded()])

    async def healthz(_: Request) -> Response:
        well = await engines[0].healthy()
        return JSONResponse({"ok": well}, 200 if well else 503)

    asked = {"/generate": generate, "/count": count, "/embed": embed, "/classify": classify, "/images": images}
    routes = [Route(path, _answered(do, token), methods=["POST"]) for path, do in asked.items()]
    routes += [Route(path, _answered(do, token)) for path, do in {"/loaded": loaded, "/healthz": healthz}.items()]
    return Starlette(routes=routes, lifespan=lifespan)


def _answered(
    do: Callable[[Request], Awaitable[Response]], token: str | None
) -> Callable[[Request], Awaitable[Response]]:
    """With the token asked for, and errors as the client reads them."""

    async def answer(request: Request) -> Response:
        try:
            given = request.headers.get("authorization", "")
            if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                raise Refused(401, "The token is missing or wrong.")
            return await do(request)
        except ClientDisconnect:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            refused = as_refused(error)
            if refused.status == 500:
                log.exception("%s has failed", request.url.path)
            return JSONResponse({"error": error_body(refused)}, refused.status)

    return answer


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise Refused(413, f"The request is larger than {LARGEST >> 20} MB.")
        parts.append(part)
    return b"".join(parts)


async def _whole(pieces: AsyncIterator[Piece | Usage]) -> bytes:
    return b"".join([line(said) async for said in pieces])


async def _lines(first: Piece | Usage, pieces: AsyncIterator[Piece | Usage]) -> AsyncIterator[bytes]:
    """What is said, and an error that comes in the middle. Closed when the client goes away, and the pieces with it."""
    async with aclosing(pieces):  # type: ignore[type-var]
        try:
            yield line(first)
            async for said in pieces:
                yield line(said)
        except Exception as error:
            log.exception("an answer has broken off")
            yield line(as_refused(error))


def serve(make: Callable[[], Engine], socket: str | None, port: int | None, token: str | None) -> None:
    """Listen until the process is told to end, with a socket also by the end of its input. It is its owner's alone."""
    where: dict[str, Any] = {"uds": socket} if socket else {"host": "127.0.0.1", "port": port}
    config = uvicorn.Config(
        app_of(make, token), log_level="warning", timeout_graceful_shutdown=GRACE, access_log=False,
        timeout_keep_alive=KEPT, **where,
    )  # fmt: skip
    server = _Server(config, socket)
    when_told_to_leave(lambda: setattr(server, "should_exit", True))
    asyncio.run(server.serve())


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, socket: str | None) -> None:
        super().__init__(config)
        self._socket = socket

    async def startup(self, sockets: Any = None) -> None:
        before = os.umask(0o177)
        try:
            await super().startup(sockets)
        finally:
            os.umask(before)
        if self._socket and os.path.exists(self._socket):  # uvicorn opens it to everybody
            os.chmod(self._socket, 0o600)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tunewright.service.inference", description="Answers for models.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", help="the path of a Unix socket to listen on")
    where.add_argument("--port", type=int, help=f"a port on loopback; {TOKEN} is then the token to be given")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes that weights may take (4e9)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--precision", default="auto", help="auto (fp32 on a CPU, bf16 on a GPU), fp32, bf16 or fp16")
    parser.add_argument("--rows", type=int, default=64, help="answers that are drawn at a time (64)")
    parser.add_argument("--tokens", type=int, default=65536, help="positions that they may fill together (65536)")
    options = parser.parse_args(arguments)
    token = os.environ.get(TOKEN)
    if options.port is not None and not token:
        parser.error(f"Others on this machine can reach a port: set {TOKEN}, or use --socket.")

    def make() -> Engine:
        from tunewright.service.inference.lane import Limits
        from tunewright.service.inference.local import LocalEngine
        from tunewright.service.inference.models import Models

        models = Models(int(options.memory), options.device, options.precision)
        return LocalEngine(models, Limits(rows=options.rows, tokens=options.tokens))

    serve(make, options.socket, options.port, token)

"""The application: routes, and what is done for every request: an id, a line in the log, a limit, errors in JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright import __version__
from tunewright.service.auth import Rates, write_down
from tunewright.service.body import BodyLimit
from tunewright.service.bringing import Bringing
from tunewright.service.checking import Checks
from tunewright.service.errors import Refused
from tunewright.service.ids import random_text
from tunewright.service.inference.protocol import Engine
from tunewright.service.metrics import Metrics
from tunewright.service.news import News
from tunewright.service.routes import azure, google, keys, operations, page, reference
from tunewright.service.settings import Settings
from tunewright.service.wire import google as google_wire
from tunewright.service.wire import openai as openai_wire

log = structlog.get_logger()

MOST_REFUSALS = 10_000
"""Refusals of keys that are remembered, so that each stands in the audit log once a minute."""
SECONDS_BETWEEN_SWEEPS = 60.0
USUAL_WAIT, LONGEST_WAIT = 5, 120
"""Seconds of `Retry-After`."""
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

REFUSAL = {"application/json": {"schema": {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}}}}}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What is asked cannot be done, and why.", "content": REFUSAL},
    "503": {"description": "Not just now: ask again.", "content": REFUSAL},
}


def make_app(bringing: Bringing, engine: Engine, settings: Settings) -> FastAPI:
    """The service over a store, a storage and an engine."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        over = threading.Event()
        threading.Thread(target=_sweep, args=(bringing, over), daemon=True).start()
        yield
        over.set()
        await engine.close()

    app = FastAPI(
        title="Tunewright", version=__version__, docs_url=None, redoc_url=None, lifespan=life, responses=ERRORS,
        redirect_slashes=False,  # a redirect would name the host that the client gave
    )  # fmt: skip
    app.state.store, app.state.storage, app.state.bringing = bringing.store, bringing.storage, bringing
    app.state.engine, app.state.settings = engine, settings
    app.state.rates = Rates(settings.limits.requests_per_minute)
    app.state.refusals = News(MOST_REFUSALS)
    app.state.checks = Checks()
    app.state.metrics = Metrics(bringing.store)
    for room in (operations, page, reference, keys):
        app.include_router(room.router)
    azure.include(app)
    app.include_router(google.router)
    for kind in (Refused, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refused)
    app.add_middleware(Accompany, metrics=app.state.metrics)
    app.add_middleware(BodyLimit, limits=settings.limits)
    return app


class Accompany:
    """Gives a request its id, and writes a line about it when its answer begins. No key is ever in the log."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        id, began, begun = f"req_{random_text()}", time.perf_counter(), False
        scope.setdefault("state", {})["id"] = id

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = id
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                self._tell(scope, message["status"], time.perf_counter() - began)
            await send(message)

        with structlog.contextvars.bound_contextvars(request=id):
            try:
                await self.app(scope, receive, sending)
            except ClientDisconnect:
                log.info("client gone", path=scope["path"])
            except Exception as error:
                log.error("unexpected", path=scope["path"], exc_info=error)
                if begun:  # what was sent is not whole: the server closes the connection
                    raise
                await _unexpected(Request(scope))(scope, receive, sending)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.request(scope["method"], route, status, seconds)
        log.info("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))


def _refused(request: Request, error: Exception) -> JSONResponse:
    refused = _as_refused(error)
    write_down(request, refused)
    return _answer(request, refused)


def _unexpected(request: Request) -> JSONResponse:
    return _answer(request, Refused(500, "Something went wrong here. The log says what, under the request's id."))


def _answer(request: Request, refused: Refused) -> JSONResponse:
    wire = google_wire if "/v1beta1/" in request.url.path else openai_wire
    headers = {**refused.headers, **_patience(refused)}
    if 400 <= refused.status < 500 and refused.status not in (408, 409, 429):
        headers["x-should-retry"] = "false"
    return JSONResponse(wire.error(refused), refused.status, headers)


def _patience(refused: Refused) -> dict[str, str]:
    """When to ask again. openai's client waits as long as it is told up to two minutes, and does as it likes above."""
    told = refused.headers.get("Retry-After")
    if told is None and refused.status not in (429, 503):
        return {}
    seconds = int(told) if told and told.isdecimal() else USUAL_WAIT
    return {"Retry-After": str(min(max(1, seconds), LONGEST_WAIT))}


def _as_refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return Refused(400, f"{first['loc'][-1]}: {first['msg']}.", param=str(first["loc"][-1]))
    assert isinstance(error, HTTPException)
    return Refused(error.status_code, str(error.detail), headers=error.headers)


def _sweep(bringing: Bringing, over: threading.Event) -> None:
    """Now and then delete what has expired and the bytes that nobody needs."""
    while not over.wait(SECONDS_BETWEEN_SWEEPS):
        try:
            bringing.store.sweep(bringing.storage)
            bringing.forget_deleted()
        except Exception as error:
            log.warning("sweep failed", error=str(error))

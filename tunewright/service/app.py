"""The application: routes, and what is done for every request: an id, a line in the log, a limit, errors in JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint

from tunewright import __version__
from tunewright.service.auth import Rates
from tunewright.service.body import BodyLimit
from tunewright.service.bringing import Bringing
from tunewright.service.errors import Refused
from tunewright.service.ids import random_text
from tunewright.service.inference.protocol import Engine
from tunewright.service.metrics import Metrics
from tunewright.service.routes import azure, google, keys, operations, page, reference
from tunewright.service.settings import Settings
from tunewright.service.wire import google as google_wire
from tunewright.service.wire import openai as openai_wire

log = structlog.get_logger()

SECONDS_BETWEEN_SWEEPS = 60.0
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
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

    app = FastAPI(title="Tunewright", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.state.store, app.state.storage, app.state.bringing = bringing.store, bringing.storage, bringing
    app.state.engine, app.state.settings = engine, settings
    app.state.rates = Rates(settings.limits.requests_per_minute)
    app.state.metrics = Metrics(bringing.store)
    for room in (operations, page, reference, keys):
        app.include_router(room.router)
    azure.include(app)
    app.include_router(google.router)
    app.add_exception_handler(Exception, _unexpected)
    for kind in (Refused, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refused)
    app.middleware("http")(_accompany)
    app.add_middleware(BodyLimit, limits=settings.limits)
    return app


async def _accompany(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Give a request its id, and write a line about it when its answer begins. No key is ever in the log."""
    request.state.id = f"req_{random_text()}"
    began = time.perf_counter()
    with structlog.contextvars.bound_contextvars(request=request.state.id):
        response = await call_next(request)
        seconds = time.perf_counter() - began
        route = getattr(request.scope.get("route"), "path", "none")
        request.app.state.metrics.request(request.method, route, response.status_code, seconds)
        log.info("request", method=request.method, path=request.url.path, status=response.status_code,
                 seconds=round(seconds, 4))  # fmt: skip
    response.headers["x-request-id"] = request.state.id
    for name, value in SAFE.items():
        response.headers.setdefault(name, value)
    return response


def _refused(request: Request, error: Exception) -> JSONResponse:
    return _answer(request, _as_refused(error))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected", path=request.url.path, exc_info=error)
    return _answer(request, Refused(500, "Something went wrong here. The log says what, under the request's id."))


def _answer(request: Request, refused: Refused) -> JSONResponse:
    wire = google_wire if "/v1beta1/" in request.url.path else openai_wire
    headers = {**refused.headers, "x-request-id": getattr(request.state, "id", "")}
    if 400 <= refused.status < 500 and refused.status not in (408, 409, 429):
        headers["x-should-retry"] = "false"
    return JSONResponse(wire.error(refused), refused.status, headers)


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
        except Exception as error:
            log.warning("sweep failed", error=str(error))

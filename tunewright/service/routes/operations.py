"""For those who run the service: is it alive, can it work, and its numbers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from tunewright.service.errors import Refused
from tunewright.service.routes._documents import answering

router = APIRouter(tags=["Operations"])


@router.get("/healthz")
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request) -> JSONResponse:
    """The database answers, and so does the process that models answer in; otherwise 503."""
    found: dict[str, Any] = {"database": "ok"}
    try:
        await run_in_threadpool(request.app.state.store.ping)
    except Refused as error:
        found["database"] = str(error)
    found["engine"] = "ok" if await request.app.state.engine.healthy() else "does not answer"
    return JSONResponse(found, 200 if set(found.values()) == {"ok"} else 503)


@router.get("/metrics", response_class=Response, responses=answering("text/plain"))
def numbers(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

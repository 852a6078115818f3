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


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def ready(request: Request) -> JSONResponse:
    """The database answers, and so does the process that models answer in; otherwise 503."""
    found: dict[str, Any] = {"database": "ok"}
    try:
        await run_in_threadpool(request.app.state.store.ping)
    except Refused:  # why stands in the log: anybody may ask here
        found["database"] = "does not answer"
    found["engine"] = "ok" if await request.app.state.engine.healthy() else "does not answer"
    if set(found.values()) == {"ok"}:
        return JSONResponse(found)
    return JSONResponse(found, 503, {"Retry-After": "5"})


@router.get("/metrics", response_class=Response, responses=answering("text/plain"))
def numbers(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

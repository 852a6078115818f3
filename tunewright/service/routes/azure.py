"""Addresses: OpenAI's (`/v1/…`), and Azure's, old (`/openai/…?api-version=`, deployments) and new (`/openai/v1/…`)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from tunewright.service.auth import Caller
from tunewright.service.body import JsonBody
from tunewright.service.routes import files, graders, inference, jobs, models
from tunewright.service.routes._state import Parts, State
from tunewright.service.wire import openai_chat

router = APIRouter(prefix="/openai/deployments", tags=["Azure"], include_in_schema=False)


def include(app: FastAPI) -> None:
    """The same routes under each address; a deployment is a model of that name."""
    for prefix, shown in (("/v1", True), ("/openai/v1", False), ("/openai", False)):
        for room in (files, jobs, graders, models, inference):
            app.include_router(room.router, prefix=prefix, include_in_schema=shown)
    app.include_router(router)


@router.post("/{name:path}/chat/completions", response_model=None)
async def chat(
    request: Request, name: str, who: Caller = inference.MAY, body: Any = JsonBody, parts: State = Parts
) -> Response:
    return await inference.answer(request, parts, who, openai_chat.chat(body, name), inference.CHAT)


@router.post("/{name:path}/completions", response_model=None)
async def complete(
    request: Request, name: str, who: Caller = inference.MAY, body: Any = JsonBody, parts: State = Parts
) -> Response:
    return await inference.answer(request, parts, who, openai_chat.completion(body, name), inference.COMPLETION)


@router.post("/{name:path}/embeddings")
async def embed(
    request: Request, name: str, who: Caller = inference.MAY, body: Any = JsonBody, parts: State = Parts
) -> dict[str, Any]:
    return await inference.embed(request, who, {**body, "model": name} if isinstance(body, dict) else body, parts)

"""Graders tried out: what reward would an answer get, and can the grader be used at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from tunewright.service import graders
from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody
from tunewright.service.connected import while_connected
from tunewright.service.inference.protocol import Generate, Piece, Sampling, Usage
from tunewright.service.routes._documents import body_of
from tunewright.service.routes._state import Parts, State

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["Graders"])

MAY = caller("jobs")


@router.post("/validate", openapi_extra=body_of(graders.Validate))
def validate(who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """The grader, if a job can use it."""
    return graders.validate_grader(body)


@router.post("/run", openapi_extra=body_of(graders.Run))
async def run(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """The reward of one answer, and what each part of it gave."""

    async def ask(model: str, messages: list[dict[str, Any]], sampling: Mapping[str, Any]) -> tuple[str, int]:
        return await _judged(parts, who, model, messages, sampling)

    return await while_connected(request, graders.run_grader(body, ask))


async def _judged(
    parts: State, who: Caller, name: str, messages: list[dict[str, Any]], sampling: Mapping[str, Any]
) -> tuple[str, int]:
    """What a model answers that judges, and how many tokens that took."""
    model = await run_in_threadpool(parts.model, who, name)
    chosen = Sampling(
        temperature=sampling["temperature"],
        top_p=sampling.get("top_p", 1.0),
        seed=sampling.get("seed"),
        max_tokens=sampling["max_completions_tokens"],
    )
    text, tokens = "", 0
    async for one in parts.engine.generate(Generate(model, messages, sampling=chosen, tenant=who.tenant)):
        if isinstance(one, Piece):
            text += one.text
        elif isinstance(one, Usage):
            tokens = one.prompt_tokens + one.completion_tokens
    return text, tokens

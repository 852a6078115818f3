"""Graders tried out: what reward would an answer get, and can the grader be used at all."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody
from tunewright.service.routes._documents import body_of
from tunewright.service.routes._state import Parts, State
from tunewright.service.validation import run_grader, validate_grader
from tunewright.service.wire.body import Body, parsed

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["Graders"])

MAY = caller("jobs")


class Validate(Body):
    grader: dict[str, Any]


class Run(Validate):
    """POST /fine_tuning/alpha/graders/run. `item` is the row, `model_sample` the answer."""

    model_sample: str
    item: dict[str, Any] = Field({})
    reference_answer: Any = None


@router.post("/validate", openapi_extra=body_of(Validate))
def validate(body: Any = JsonBody, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """The grader, if a job can use it."""
    return {"grader": validate_grader(parsed(Validate, body).grader)}


@router.post("/run", openapi_extra=body_of(Run))
def run(body: Any = JsonBody, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """The reward of one answer, and what each part of it gave."""
    asked = parsed(Run, body)
    return run_grader(asked.grader, asked.model_sample, asked.item)

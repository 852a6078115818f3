"""Google's addresses, as `google-genai` has them with `vertexai=True` and a base URL of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from tunewright.service.auth import Caller
from tunewright.service.body import JsonBody
from tunewright.service.entities import Job
from tunewright.service.errors import Refused, missing
from tunewright.service.inference.protocol import Piece
from tunewright.service.routes import inference, jobs, models
from tunewright.service.routes._documents import STREAMED, body_of
from tunewright.service.routes._state import Parts, State, actor
from tunewright.service.wire import google, google_chat
from tunewright.service.wire.body import split_alpha
from tunewright.service.wire.chat import Reply

router = APIRouter(prefix="/v1beta1", tags=["Google"])


def _piece(reply: Reply, piece: Piece, logprobs: bool, begun: int) -> dict[str, Any]:
    return google_chat.piece(reply, piece, logprobs)


Query = list[tuple[str, str]]


def _paged(request: Request, pageSize: int = 20, pageToken: str | None = None) -> Query:
    """The query of a list, of which the document names what makes pages."""
    return request.query_params.multi_items()


Paged: Any = Depends(_paged)
CONTENT = inference.Form("", google_chat.answer, _piece, None, google_chat.end)


@router.post("/tuningJobs", openapi_extra=body_of(google.CreateTuning))
def create(who: Caller = jobs.MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    return google.tuning_job(jobs.make_job(parts, who, google.create_tuning(body), body))


@router.get("/tuningJobs")
def list_jobs(query: Query = Paged, who: Caller = jobs.MAY, parts: State = Parts) -> dict[str, Any]:
    asked = google.list_query(query)
    found, more = parts.store.jobs.page(who.tenant, asked.after, asked.limit)
    return google.tuning_page([google.tuning_job(one) for one in found], found[-1].id if more else None)


@router.get("/tuningJobs/{id}")
def get_job(id: str, who: Caller = jobs.MAY, parts: State = Parts) -> dict[str, Any]:
    return _shown(parts, parts.store.jobs.get(who.tenant, id))


@router.post("/tuningJobs/{id}:cancel")
def cancel(id: str, who: Caller = jobs.MAY, parts: State = Parts) -> dict[str, Any]:
    parts.store.jobs.cancel(who.tenant, id, actor(who))
    return {}


@router.get("/publishers/google/models")
def list_bases(query: Query = Paged, who: Caller = models.MAY, parts: State = Parts) -> dict[str, Any]:
    """`models.list`: what can be tuned."""
    asked, names = google.model_query(query), list(models.bases_there(parts))
    if asked.after and asked.after not in names:
        raise Refused(400, f"pageToken: there is no {asked.after:.100} in this list.", param="pageToken")
    rest = names[names.index(asked.after) + 1 :] if asked.after else names
    return google.model_page([google.base_model(one) for one in rest[: asked.limit]], len(rest) > asked.limit)


@router.get("/models")
def list_tuned(query: Query = Paged, who: Caller = models.MAY, parts: State = Parts) -> dict[str, Any]:
    """`models.list` with `query_base` false: what the key's tenant has tuned."""
    asked = google.model_query(query)
    found, more = parts.store.models.page(who.tenant, asked.after, asked.limit)
    return google.model_page([google.tuned_model(one, one.id) for one in found], more)


@router.get("/{model:path}")
def get_model(model: str, who: Caller = models.MAY, parts: State = Parts) -> dict[str, Any]:
    """A base, or a tuned model, also at a point between."""
    name = google.model_of(model)
    if name in models.bases_there(parts):
        return google.base_model(name)
    return google.tuned_model(parts.store.models.get(who.tenant, split_alpha(name)[0]), name)


@router.post("/{model:path}", openapi_extra=body_of(google_chat.Generate), response_model=None, responses=STREAMED)
async def generate(
    request: Request, model: str, who: Caller = inference.MAY, body: Any = JsonBody, parts: State = Parts
) -> Response:
    """`{model}:generateContent`, `{model}:streamGenerateContent` and `{model}:countTokens`."""
    name, _, method = model.rpartition(":")
    if method not in ("generateContent", "streamGenerateContent", "countTokens"):
        raise missing("method", method or model)
    asked = google_chat.generate(name, body, method == "streamGenerateContent")
    if method == "countTokens":
        return JSONResponse(google_chat.count(await inference.count(request, parts, who, asked)))
    return await inference.answer(request, parts, who, asked, CONTENT)


def _shown(parts: State, job: Job) -> dict[str, Any]:
    checkpoints, _ = parts.store.jobs.checkpoints(job.tenant, job.id, limit=100)
    return google.tuning_job(job, checkpoints)

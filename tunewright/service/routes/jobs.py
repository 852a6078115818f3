"""Fine-tuning jobs, their events and checkpoints."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody
from tunewright.service.checking import LARGEST, check_apart
from tunewright.service.connected import while_connected
from tunewright.service.entities import File, Job, JobSpec
from tunewright.service.errors import Refused
from tunewright.service.recipes import check
from tunewright.service.routes._documents import STREAMED, answering, body_of, listing
from tunewright.service.routes._state import Parts, State, actor
from tunewright.service.storage import pieces
from tunewright.service.store.pins import refuse_other_purpose
from tunewright.service.unpacking import Role
from tunewright.service.wire import openai
from tunewright.service.wire.openai import ListQuery

router = APIRouter(prefix="/fine_tuning", tags=["Fine-tuning"])

MAY = caller("jobs")
TWENTY, EVENTS, TEN = listing(20, 100), listing(20, 1000), listing(10, 100)
SECONDS_BETWEEN_LOOKS = 0.5


def make_job(parts: State, who: Caller, spec: JobSpec, body: Any) -> Job:
    """A new job, or the one that the same request made a moment ago, where the client says that it sends it again."""
    parts.bringing.base_of(who.tenant, spec.model)
    check(spec)
    if parts.store.jobs.open(who.tenant) >= parts.limits.open_jobs:
        raise Refused(
            429, f"{parts.limits.open_jobs} jobs have not ended yet. Wait for some, or cancel them.",
            "too_many_jobs", headers={"Retry-After": "60"},
        )  # fmt: skip
    digest = hashlib.sha256(f"{who.key.id}\n{json.dumps(body, sort_keys=True)}".encode()).hexdigest()
    return parts.store.jobs.create(who.tenant, spec, digest, parts.is_retry, actor(who))


@router.post("/jobs", openapi_extra=body_of(openai.CreateJob))
def create_job(who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """Start a job. Its files are looked at when it runs: what is wrong with them fails the job, with the reason."""
    return openai.job(make_job(parts, who, openai.create_job(body), body))


@router.post("/alpha/check", openapi_extra=body_of(openai.CreateJob))
async def check_job(request: Request, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """What would fail such a job; nothing is started. `read` is false where its files are too large to be read while
    the client waits. One check of a tenant goes on at a time: others wait for their turn, or are told to (429)."""
    spec, files = await run_in_threadpool(_checkable, parts, who, body)
    small = sum(file.bytes for file in files.values()) <= LARGEST
    found = await while_connected(request, _check(parts, who, spec, files)) if small else None
    return {"object": "fine_tuning.check", "read": found is not None, "faults": found or []}


def _checkable(parts: State, who: Caller, body: Any) -> tuple[JobSpec, dict[Role, File]]:
    """A job as it is asked for, and its files. Raises Refused where it would be refused."""
    spec = openai.create_job(body)
    parts.bringing.base_of(who.tenant, spec.model)
    check(spec)
    named: dict[Role, str | None] = {"training": spec.training_file, "validation": spec.validation_file}
    files = {role: parts.store.files.get(who.tenant, id) for role, id in named.items() if id}
    for role, file in files.items():
        refuse_other_purpose(file.id, file.purpose, f"{role}_file")
    return spec, files


async def _check(parts: State, who: Caller, spec: JobSpec, files: dict[Role, File]) -> list[dict[str, Any]] | None:
    async with parts.checks.turn(who.tenant):
        with tempfile.TemporaryDirectory(prefix="tunewright-check-", ignore_cleanup_errors=True) as folder:
            paths = {role: Path(folder) / role for role in files}
            for role, file in files.items():
                await run_in_threadpool(_fetch, parts, file, paths[role])
            return await check_apart(spec, paths)


def _fetch(parts: State, file: File, path: Path) -> None:
    with parts.wanted(f"bytes of the file {file.id}: upload it again"), parts.storage.open(file.place) as source:
        path.write_bytes(source.read())


@router.get("/jobs")
def list_jobs(who: Caller = MAY, parts: State = Parts, asked: ListQuery = TWENTY) -> dict[str, Any]:
    """Newest first, unless `order=asc`. `after`, `limit` (20), and `metadata[key]=value`, or `metadata=null` for those
    without any."""
    found, more = parts.store.jobs.page(who.tenant, asked.after, asked.limit, asked.metadata, asked.order)
    return openai.page([openai.job(one) for one in found], more)


@router.get("/jobs/{id}")
def get_job(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    return openai.job(parts.store.jobs.get(who.tenant, id))


@router.post("/jobs/{id}/cancel")
def cancel_job(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """At once; a run that is under way stops within a step."""
    return openai.job(parts.store.jobs.cancel(who.tenant, id, actor(who)))


@router.post("/jobs/{id}/pause")
def pause_job(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """A run that is under way stops within a step, with its state kept; what has not begun is paused at once."""
    return openai.job(parts.store.jobs.pause(who.tenant, id, actor(who)))


@router.post("/jobs/{id}/resume")
def resume_job(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """Queue a paused job: it goes on where it stopped, be that at the validation of its files."""
    return openai.job(parts.store.jobs.resume(who.tenant, id, actor(who)))


@router.get("/jobs/{id}/events", response_model=None, responses=STREAMED)
def list_events(
    id: str, who: Caller = MAY, parts: State = Parts, asked: ListQuery = EVENTS, stream: bool = False
) -> Response:
    """Newest first, unless `order=asc`; with `stream=true` all of them, the oldest first, as server-sent events until
    the job has ended."""
    if stream:
        parts.store.jobs.get(who.tenant, id)
        return StreamingResponse(_follow(parts, who.tenant, id), media_type="text/event-stream")
    found, more = parts.store.jobs.events(who.tenant, id, asked.after, asked.limit, asked.order)
    return JSONResponse(openai.page([openai.event(one) for one in found], more))


async def _follow(parts: State, tenant: str, id: str) -> AsyncIterator[bytes]:
    last = 0
    while True:
        job = await run_in_threadpool(parts.store.jobs.get, tenant, id)
        news = await run_in_threadpool(parts.store.jobs.news, tenant, id, last)
        for event in news:
            yield b"data: " + json.dumps(openai.event(event)).encode() + b"\n\n"
        last = news[-1].n if news else last
        if job.status.ended and not news:
            yield b"data: [DONE]\n\n"
            return
        if not news:
            yield b": still here\n\n"
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


@router.get("/jobs/{id}/checkpoints")
def list_checkpoints(id: str, who: Caller = MAY, parts: State = Parts, asked: ListQuery = TEN) -> dict[str, Any]:
    """Newest first, unless `order=asc`. Each answers as a model, by its name."""
    found, more = parts.store.jobs.checkpoints(who.tenant, id, asked.after, asked.limit, asked.order)
    return openai.page([openai.checkpoint(one) for one in found], more)


@router.get("/jobs/{id}/report", response_class=Response, responses=answering("text/html"))
def get_report(id: str, who: Caller = MAY, parts: State = Parts) -> StreamingResponse:
    """What the run says of itself: curves, and the tuned model beside the base."""
    job = parts.store.jobs.get(who.tenant, id)
    if not job.run:
        raise Refused(404, f"The job {id} is {job.status}: its report is there when it has succeeded.", "no_report")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    headers = {"Content-Security-Policy": policy}
    with parts.wanted(f"report of the job {id}"):
        file = parts.storage.open(f"{job.run}/report.html")
    return StreamingResponse(pieces(file), media_type="text/html", headers=headers)


# Who else may use a checkpoint


@router.post("/checkpoints/{name:path}/permissions", openapi_extra=body_of(openai.Projects))
def permit(name: str, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """Let other tenants (`project_ids`) use a checkpoint."""
    made = parts.store.models.permit(who.tenant, name, openai.project_ids(body), actor(who))
    return openai.page([openai.permission(one) for one in made], False)


@router.get("/checkpoints/{name:path}/permissions")
def list_permissions(
    name: str,
    who: Caller = MAY,
    parts: State = Parts,
    asked: ListQuery = TEN,
    project_id: str | None = None,
) -> dict[str, Any]:
    found, more = parts.store.models.permissions(who.tenant, name, asked.after, asked.limit, project_id, asked.order)
    return openai.page([openai.permission(one) for one in found], more)


@router.delete("/checkpoints/{name:path}/permissions/{id}")
def forbid(name: str, id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    parts.store.models.forbid(who.tenant, name, id, actor(who))
    return openai.deleted("checkpoint.permission", id)

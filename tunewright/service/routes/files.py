"""Files and uploads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.datastructures import UploadFile

from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody, TooLarge, refuse_too_large
from tunewright.service.entities import File, Part
from tunewright.service.errors import Refused
from tunewright.service.routes._documents import answering, body_of, listing
from tunewright.service.routes._state import Parts, State, actor
from tunewright.service.storage import CHUNK, pieces
from tunewright.service.wire import openai, openai_files
from tunewright.service.wire.openai import ListQuery

router = APIRouter(tags=["Files"])

MAY = caller("files")
ALL = listing(10_000, 10_000)
FORM = {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file", "purpose"],
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
}}}  # fmt: skip
DATA = {"multipart/form-data": {"schema": {
    "type": "object", "required": ["data"], "properties": {"data": {"type": "string", "format": "binary"}},
}}}  # fmt: skip


@router.post("/files", openapi_extra={"requestBody": {"content": FORM, "required": True}})
async def create_file(request: Request, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """Upload a file. It is streamed to the storage; its contents are looked at when a job uses it."""
    async with _form(request) as form:
        purpose, expires_after = openai_files.file_form(form)
        kept = await run_in_threadpool(_keep_file, parts, who, _sent(form, "file"), purpose, expires_after)
    return openai_files.file(kept)


def _keep_file(parts: State, who: Caller, sent: UploadFile, purpose: str, expires_after: int | None) -> File:
    place = parts.store.places.reserve("files")
    try:
        with parts.wanted("file"):
            size, sha256 = parts.storage.put(place, _at_most(_chunks(sent.file), parts.limits.file_bytes))
        if not size:
            raise Refused(400, "The file is empty.", "empty_file", "file")
        kept = parts.store.files.add(
            who.tenant, openai_files.plain_name(sent.filename), purpose, size, sha256, place,
            expires_after=expires_after, quota=parts.limits.stored_bytes, actor=actor(who),
        )  # fmt: skip
    except BaseException:
        parts.store.places.discard(place)
        raise
    return kept


@router.get("/files")
def list_files(
    who: Caller = MAY, parts: State = Parts, asked: ListQuery = ALL, purpose: str | None = None
) -> dict[str, Any]:
    """The files of the key's tenant, newest first."""
    found, more = parts.store.files.page(who.tenant, asked.after, asked.limit, purpose, asked.order)
    return openai.page([openai_files.file(one) for one in found], more)


@router.get("/files/{id}")
def get_file(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    return openai_files.file(parts.store.files.get(who.tenant, id))


@router.delete("/files/{id}")
def delete_file(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """It is gone at once. A job that uses it keeps its bytes until it has ended."""
    parts.store.files.delete(who.tenant, id, actor(who))
    return openai.deleted("file", id)


@router.get("/files/{id}/content", response_class=Response, responses=answering("application/octet-stream"))
def get_content(id: str, who: Caller = MAY, parts: State = Parts) -> StreamingResponse:
    kept = parts.store.files.get(who.tenant, id)
    with parts.wanted(f"bytes of the file {id}: upload it again"):  # before anything is answered
        file = parts.storage.open(kept.place)
    headers = {"Content-Length": str(kept.bytes), "Content-Disposition": "attachment"}
    return StreamingResponse(pieces(file), media_type="application/octet-stream", headers=headers)


# Uploads: files that come in parts


@router.post("/uploads", openapi_extra=body_of(openai_files.CreateUpload))
def create_upload(who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    asked = openai_files.create_upload(body)
    if asked.bytes > parts.limits.upload_bytes:
        raise TooLarge(parts.limits.upload_bytes)
    expires_after = asked.expires_after.seconds if asked.expires_after else None
    made = parts.store.uploads.create(
        who.tenant, asked.filename, asked.purpose, asked.bytes, asked.mime_type,
        expires_after=expires_after, quota=parts.limits.stored_bytes, actor=actor(who),
    )  # fmt: skip
    return openai_files.upload(made)


@router.post("/uploads/{id}/parts", openapi_extra={"requestBody": {"content": DATA, "required": True}})
async def add_part(id: str, request: Request, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    async with _form(request) as form:
        return openai_files.part(await run_in_threadpool(_keep_part, parts, who, id, _sent(form, "data")))


def _keep_part(parts: State, who: Caller, id: str, sent: UploadFile) -> Part:
    parts.store.uploads.get(who.tenant, id)
    place = parts.store.places.reserve("parts")
    try:
        with parts.wanted("part"):
            size, sha256 = parts.storage.put(place, _at_most(_chunks(sent.file), parts.limits.part_bytes))
        kept = parts.store.uploads.add_part(who.tenant, id, size, place, sha256, parts.is_retry)
    except BaseException:
        parts.store.places.discard(place)
        raise
    if kept.place != place:  # it was sent before, and the answer was lost
        parts.store.places.discard(place)
    return kept


@router.post("/uploads/{id}/complete", openapi_extra=body_of(openai_files.CompleteUpload))
def complete_upload(id: str, who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    asked = openai_files.complete_upload(body)
    with parts.wanted("bytes of a part: begin the upload again"):
        made = parts.store.uploads.complete(who.tenant, id, asked.part_ids, parts.storage, asked.md5, actor(who))
    return openai_files.upload(made)


@router.post("/uploads/{id}/cancel")
def cancel_upload(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    return openai_files.upload(parts.store.uploads.cancel(who.tenant, id, actor(who)))


def _form(request: Request) -> Any:
    """The form of a request, whose files lie on disk as they come. Raises Refused where it is none."""
    refuse_too_large(request)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(400, "Send a form: multipart/form-data with the file in it.", "invalid_form")
    return request.form(max_files=1, max_fields=10)


def _sent(form: Any, name: str) -> UploadFile:
    sent = form.get(name)
    if not isinstance(sent, UploadFile):
        raise Refused(400, f"The form has no file called {name}.", "missing_required_parameter", name)
    return sent


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _at_most(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(limit)
        yield chunk

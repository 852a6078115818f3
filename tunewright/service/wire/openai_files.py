"""OpenAI's files and uploads in parts: requests → what the service keeps, and that → JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tunewright.service.entities import File, Part, Upload
from tunewright.service.errors import Refused
from tunewright.service.wire.body import Body, parsed

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
"""What a client may say that a file is for."""
LONGEST_NAME = 255
LARGEST_UPLOAD = 8 * 2**30
SHORTEST, LONGEST = 3600, 2592000
"""Seconds after which a file may be asked to expire."""

Purpose = Literal["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]


class Expiry(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST, le=LONGEST)


class CreateUpload(Body):
    """POST /uploads."""

    filename: str = Field(min_length=1)
    purpose: Purpose
    bytes: int = Field(ge=1, le=LARGEST_UPLOAD)
    mime_type: str = Field("application/octet-stream", max_length=LONGEST_NAME)
    expires_after: Expiry | None = None


class CompleteUpload(Body):
    """POST /uploads/{id}/complete: the order of the parts is that of their ids here."""

    part_ids: list[str] = Field(min_length=1)
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None


def create_upload(body: Any) -> CreateUpload:
    found = parsed(CreateUpload, body)
    return found.model_copy(update={"filename": plain_name(found.filename)})


def complete_upload(body: Any) -> CompleteUpload:
    found = parsed(CompleteUpload, body)
    if len(set(found.part_ids)) < len(found.part_ids):
        raise Refused(400, "part_ids: a part is named twice.", param="part_ids")
    return found


def file_form(form: Mapping[str, Any]) -> tuple[str, int | None]:
    """(purpose, seconds after which it expires) of the fields that come with a file. Raises Refused."""
    fields = {name: value for name, value in form.items() if name != "file"}
    if unknown := [name for name in fields if name not in ("purpose", *EXPIRY)]:
        raise Refused(400, f"Unknown field {unknown[0]:.200}.", param=unknown[0][:200])
    if fields.get("purpose") not in PURPOSES:
        raise Refused(400, f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    given = {name: fields[key] for key, name in EXPIRY.items() if key in fields}
    if not given:
        return fields["purpose"], None
    if re.fullmatch("[0-9]{1,9}", str(given.get("seconds", ""))):
        given["seconds"] = int(given["seconds"])
    return fields["purpose"], parsed(Expiry, given, "expires_after").seconds


EXPIRY = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}


def plain_name(name: str | None) -> str:
    """The name of a file without folders and control characters. It is shown, and never used as a path."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in last if character.isprintable()).strip()
    return shown[-LONGEST_NAME:] if shown not in ("", ".", "..") else "upload"


def file(kept: File) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "file",
        "bytes": kept.bytes,
        "created_at": kept.created_at,
        "expires_at": kept.expires_at,
        "filename": kept.filename,
        "purpose": kept.purpose,
        "status": kept.status,
        "status_details": kept.status_details,
    }


def upload(kept: Upload) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "upload",
        "bytes": kept.bytes,
        "created_at": kept.created_at,
        "expires_at": kept.expires_at,
        "filename": kept.filename,
        "purpose": kept.purpose,
        "status": kept.status,
        "file": file(kept.file) if kept.file else None,
    }


def part(kept: Part) -> dict[str, Any]:
    return {"id": kept.id, "object": "upload.part", "created_at": kept.created_at, "upload_id": kept.upload}

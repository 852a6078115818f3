"""API keys of the key's own tenant, for those that may manage them, and what was done with them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from tunewright.service.auth import Caller, caller
from tunewright.service.body import JsonBody
from tunewright.service.entities import SCOPES, Key
from tunewright.service.errors import Refused
from tunewright.service.routes._documents import body_of
from tunewright.service.routes._state import Parts, State, actor
from tunewright.service.store.keys import LONGEST_NAME
from tunewright.service.wire import openai
from tunewright.service.wire.body import Body, parsed

router = APIRouter(prefix="/v1", tags=["Keys"])

MAY = caller("keys")


class CreateKey(Body):
    """POST /keys."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    scopes: list[str] = Field(list(SCOPES), min_length=1)


@router.get("/keys")
def list_keys(who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    return openai.page([_shown(one) for one in parts.store.keys.list(who.tenant)], False)


@router.post("/keys", openapi_extra=body_of(CreateKey))
def create_key(who: Caller = MAY, body: Any = JsonBody, parts: State = Parts) -> dict[str, Any]:
    """A new key. Its secret is in this answer, and cannot be had again. It may do no more than the key that made it."""
    asked = parsed(CreateKey, body)
    if beyond := sorted(set(asked.scopes) - who.key.scopes):
        raise Refused(403, f"scopes: this key itself lacks {', '.join(beyond)}.", "insufficient_scope", "scopes")
    made, secret = parts.store.keys.create(who.tenant, asked.name, asked.scopes, actor(who))
    return {**_shown(made), "secret": secret}


@router.delete("/keys/{id}")
def revoke_key(id: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    return _shown(parts.store.keys.revoke(who.tenant, id, actor(who)))


@router.get("/audit")
def list_audit(
    who: Caller = MAY, parts: State = Parts, before: Annotated[int, Field(ge=1, lt=2**63)] | None = None
) -> dict[str, Any]:
    """Who did what, newest first: a hundred lines, those before number `before`."""
    found = parts.store.audit.entries(who.tenant, before, 101)
    return {"object": "list", "data": [vars(one) for one in found[:100]], "has_more": len(found) > 100}


def _shown(key: Key) -> dict[str, Any]:
    return {**vars(key), "object": "key", "scopes": sorted(key.scopes)}

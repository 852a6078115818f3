"""Models: the bases, and what the key's tenant has tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter

from tunewright.service.auth import Caller, caller
from tunewright.service.bases import task_of
from tunewright.service.errors import Refused
from tunewright.service.routes._state import Parts, State, actor
from tunewright.service.wire import openai
from tunewright.service.wire.body import split_alpha

router = APIRouter(tags=["Models"])

MAY = caller("models")


@router.get("/models")
def list_models(who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    bases = [_base(name, path) for name, path in bases_there(parts).items()]
    found, more = parts.store.models.page(who.tenant)
    return openai.page([*bases, *(openai.model(one) for one in found)], more)


@router.get("/models/{name:path}")
def get_model(name: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """A base, or a tuned model; also at a point between, which chat takes: `ft:…@0.5`."""
    if path := bases_there(parts).get(name):
        return _base(name, path)
    return {**openai.model(parts.store.models.get(who.tenant, split_alpha(name)[0])), "id": name}


@router.delete("/models/{name:path}")
def delete_model(name: str, who: Caller = MAY, parts: State = Parts) -> dict[str, Any]:
    """A tuned model answers no more. Its files stay while a model that was tuned from it needs them."""
    if name in parts.bringing.bases:
        raise Refused(403, f"{name} is a base of this service, and no model of yours.", "not_yours")
    for gone in parts.store.models.delete(who.tenant, name, actor(who)):
        parts.bringing.forget(gone)
    return openai.deleted("model", name)


def bases_there(parts: State) -> dict[str, Path]:
    """By their names the folders of the bases, but for those that have gone."""
    return {name: path for name, path in parts.bringing.bases.items() if path.is_dir()}


def _base(name: str, path: Path) -> dict[str, Any]:
    return openai.base_model(name, int(path.stat().st_mtime), task_of(path))

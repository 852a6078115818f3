"""What the OpenAPI document says of bodies and queries, which routes read by the wire formats."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request
from pydantic import BaseModel

from tunewright.service.wire.openai import ListQuery, list_query


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The schema of a JSON body."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    return {
        "requestBody": {"content": {"application/json": {"schema": _inlined(schema, definitions)}}, "required": True}
    }


def answering(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """What a route answers with, where that is not JSON, or not always: `responses` of the route."""
    return {200: {"content": {kind: {"schema": {}} for kind in kinds}}}


STREAMED = answering("application/json", "text/event-stream")


def _inlined(value: Any, definitions: dict[str, Any]) -> Any:
    """A schema with what it refers to in its place: no schema here refers to itself."""
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(inner, definitions) for key, inner in value.items()}


def listing(usual: int, most: int) -> Any:
    """The query of a list, as a dependency of a route."""

    def read(request: Request, after: str | None = None, limit: int = usual, order: str = "desc") -> ListQuery:
        return list_query(request.query_params.multi_items(), usual, most)

    return Depends(read)

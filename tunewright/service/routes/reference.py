"""`/docs`: what can be asked, from the OpenAPI document. A page without scripts, since none may come from afar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment

from tunewright.service.routes.page import POLICY

router = APIRouter(include_in_schema=False)

TEMPLATE = Path(__file__).with_name("reference.html.jinja")


@router.get("/docs")
def reference(request: Request) -> HTMLResponse:
    """The page, made anew from the document."""
    document = request.app.openapi()
    groups: dict[str, list[dict[str, Any]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_described(method, path, operation))
    page = _template().render(title=document["info"]["title"], version=document["info"]["version"], groups=groups)
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


@cache
def _template() -> Any:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )


def _described(method: str, path: str, operation: Mapping[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {})
    kind: str = next(iter(body), "")
    return {
        "method": method.upper(),
        "path": path,
        "says": operation.get("description", operation.get("summary", "")),
        "query": [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"],
        "kind": kind,
        "fields": list(_fields(body[kind].get("schema", {}) if kind else {})),
    }


def _fields(schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        default = json.dumps(field["default"]) if field.get("default") not in (None, {}, []) else ""
        yield {"name": name, "type": _type(field), "required": name in required, "default": default}


def _type(field: Mapping[str, Any]) -> str:
    if "const" in field or "enum" in field:
        return " | ".join(json.dumps(one) for one in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        kinds = dict.fromkeys(_type(one) for one in field["anyOf"])
        return " | ".join(kind for kind in kinds if kind != "null")
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("format") or field.get("type", "any"))

"""What there is to choose from: tasks, methods, objectives and rewards with their options, read off the code itself."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunewright.grading import GRADERS
from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES
from tunewright.tasks import MODULES, task_class

if TYPE_CHECKING:
    from pydantic import BaseModel


def catalogue() -> dict[str, dict[str, Any]]:
    """All tasks {"what", "rows"}, methods, objectives and rewards {"what", "options"}, by their names in a recipe."""
    tasks = {name: task_class(name) for name in MODULES}
    return {
        "tasks": {name: {"what": summary(each), "rows": list(each.data_kinds)} for name, each in tasks.items()},
        "methods": {name: _described(each) for name, each in METHODS.items()},
        "objectives": {name: _described(each) for name, each in OBJECTIVES.items()},
        "rewards": {name: _described(each) for name, each in GRADERS.items()},
    }


def _described(each: type[BaseModel]) -> dict[str, Any]:
    return {"what": summary(each), "options": options(each)}


def summary(each: type[Any]) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(each) or "").split("\n\n")[0].split())


def options(model: type[BaseModel]) -> list[dict[str, str]]:
    """The fields of a configuration but its type, in words."""
    described = model.model_json_schema()
    required = described.get("required", [])
    return [
        {
            "name": name,
            "type": type_of(field),
            "default": "(required)" if name in required else written(field.get("default")),
            "what": field.get("description", ""),
        }
        for name, field in described["properties"].items()
        if name != "type"
    ]


def type_of(field: Mapping[str, Any]) -> str:
    """A JSON schema as a user would say it: `int`, `zero | pissa`, `text | list of text`."""
    if "discriminator" in field:
        return " | ".join(field["discriminator"]["mapping"])
    if "anyOf" in field:
        return " | ".join(type_of(each) for each in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        inner = field.get("items") or field.get("prefixItems", [{}])[0]
        return f"list of {type_of(inner)}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {type_of(inner)}" if isinstance(inner, dict) else "mapping"
    return {"integer": "int", "number": "float", "string": "text", "boolean": "bool"}.get(
        field.get("type", ""), field.get("type", "any")
    )


def written(value: Any) -> str:
    """A default as it is written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

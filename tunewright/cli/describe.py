"""What there is to choose from: `tasks`, `methods`, `objectives`, `schema`. All of it is read off the code itself."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, show, table

if TYPE_CHECKING:
    from pydantic import BaseModel

Document = dict[str, Any]


@app.command()
def tasks(as_json: AsJson = False) -> Document:
    """List the tasks: what a model can be tuned for."""
    from tunewright.tasks import MODULES, task_class

    classes = {name: task_class(name) for name in MODULES}
    found = {name: {"what": summary(each), "rows": list(each.data_kinds)} for name, each in classes.items()}
    if not as_json:
        rows = [(name, summary(each), ", ".join(each.data_kinds)) for name, each in classes.items()]
        out().print(table(("Task", "What it is", "Rows"), rows))
    return {"tasks": found}


@app.command()
def methods(as_json: AsJson = False) -> Document:
    """List the methods (which parameters train) with their options."""
    from tunewright.methods import METHODS

    return _listed("methods", "method", METHODS, as_json)


@app.command()
def objectives(as_json: AsJson = False) -> Document:
    """List the objectives (what the loss says) with their options."""
    from tunewright.objectives import OBJECTIVES

    return _listed("objectives", "objective", OBJECTIVES, as_json)


@app.command()
def schema(as_json: AsJson = False) -> Document:
    """Print the recipe's JSON schema, for editors and other programs."""
    from tunewright.recipe import Recipe

    found = Recipe.model_json_schema()
    if not as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return found


def _listed(title: str, key: str, classes: Mapping[str, type[BaseModel]], as_json: bool) -> Document:
    found = {name: {"what": summary(each), "options": options(each)} for name, each in classes.items()}
    if not as_json:
        for name, each in found.items():
            _show_options(f"{key}: {name}", each)
    return {title: found}


def _show_options(title: str, described: Document) -> None:
    show(title, style="bold")
    out().print(described["what"])
    rows = [(o["name"], o["type"], o["default"], o["what"]) for o in described["options"]]
    if rows:
        out().print(table(("Option", "Type", "Default", "What it does"), rows))
    show()


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
    if "anyOf" in field:
        return " | ".join(type_of(each) for each in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        return f"list of {type_of(field['items'])}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {type_of(inner)}" if isinstance(inner, dict) else "mapping"
    return {"integer": "int", "number": "float", "string": "text", "boolean": "bool"}.get(
        field.get("type", ""), field.get("type", "any")
    )


def written(value: Any) -> str:
    """A default as it is written in a recipe."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

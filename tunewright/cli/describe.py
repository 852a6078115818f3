"""What there is to choose from: `tasks`, `methods`, `objectives`, `rewards`, `schema`; read off the code itself."""

from __future__ import annotations

import json
from typing import Any

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, show, table

Document = dict[str, Any]


@app.command()
def tasks(as_json: AsJson = False) -> Document:
    """List the tasks: what a model can be tuned for."""
    from tunewright.choices import catalogue

    found = catalogue()["tasks"]
    if not as_json:
        rows = [(name, each["what"], ", ".join(each["rows"])) for name, each in found.items()]
        out().print(table(("Task", "What it is", "Rows"), rows))
    return {"tasks": found}


@app.command()
def methods(as_json: AsJson = False) -> Document:
    """List the methods (which parameters train) with their options."""
    return _listed("methods", as_json)


@app.command()
def objectives(as_json: AsJson = False) -> Document:
    """List the objectives (what the loss says) with their options."""
    return _listed("objectives", as_json)


@app.command()
def rewards(as_json: AsJson = False) -> Document:
    """List the rewards (what scores the answers of objective rl) with their options."""
    return _listed("rewards", as_json)


@app.command()
def schema(as_json: AsJson = False) -> Document:
    """Print the recipe's JSON schema, for editors and other programs."""
    from tunewright.recipe import Recipe

    found = Recipe.model_json_schema()
    if not as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    return found


def _listed(kind: str, as_json: bool) -> Document:
    from tunewright.choices import catalogue

    found = catalogue()[kind]
    if not as_json:
        for name, each in found.items():
            _show_options(f"{kind.removesuffix('s')}: {name}", each)
    return {kind: found}


def _show_options(title: str, described: Document) -> None:
    show(title, style="bold")
    out().print(described["what"])
    rows = [(o["name"], o["type"], o["default"], o["what"]) for o in described["options"]]
    if rows:
        out().print(table(("Option", "Type", "Default", "What it does"), rows))
    show()

"""`tasks`, `methods`, `objectives`, `schema`: read off the code, so they must name all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

import tunewright as tw
from tests.cli.conftest import Invoke
from tunewright.choices import type_of
from tunewright.grading import GRADERS
from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES
from tunewright.tasks import MODULES


def test_tasks(invoke: Invoke) -> None:
    listed = invoke("tasks").stdout
    document = json.loads(invoke("tasks", "--json").stdout)
    assert set(document["tasks"]) == set(MODULES) and all(name in listed for name in MODULES)
    assert document["tasks"]["text-classification"]["rows"] == ["classification", "preference"]


@pytest.mark.parametrize(
    ("command", "classes"), [("methods", METHODS), ("objectives", OBJECTIVES), ("rewards", GRADERS)]
)
def test_options_are_the_fields(invoke: Invoke, command: str, classes: dict[str, Any]) -> None:
    listed = invoke(command).stdout
    document = json.loads(invoke(command, "--json").stdout)[command]
    for name, each in classes.items():
        described = {option["name"]: option for option in document[name]["options"]}
        assert set(described) == set(each.model_fields) - {"type"}
        assert document[name]["what"] and all(option["what"] for option in described.values())
        assert f": {name}\n" in listed
    assert all(len(line) <= 80 for line in listed.splitlines())


def test_python_has_the_same_in_one_call(invoke: Invoke) -> None:
    found = tw.catalogue()
    for kind in ("tasks", "methods", "objectives", "rewards"):
        assert json.loads(invoke(kind, "--json").stdout) == {kind: found[kind]}


def test_an_option_says_its_type_and_default(invoke: Invoke) -> None:
    options = json.loads(invoke("methods", "--json").stdout)["methods"]
    rank = next(option for option in options["lora"]["options"] if option["name"] == "rank")
    assert rank == {"name": "rank", "type": "int", "default": "16", "what": "Rank of the update."}
    assert options["peft"]["options"][0]["default"] == "(required)"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"type": "integer"}, "int"),
        ({"enum": ["zero", "pissa"], "type": "string"}, "zero | pissa"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "text | list of text"),
        ({"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]}, "float | auto | null"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "mapping to float"),
        ({"type": "object", "additionalProperties": True}, "mapping"),
        ({"type": "array", "items": {"discriminator": {"mapping": {"a": "#", "b": "#"}}}}, "list of a | b"),
    ],
)
def test_types_in_words(field: dict[str, object], words: str) -> None:
    assert type_of(field) == words


def test_schema_is_the_recipes(invoke: Invoke) -> None:
    plain = json.loads(invoke("schema").stdout)
    assert plain == json.loads(invoke("schema", "--json").stdout)
    told = {"base", "weights", "module", "task", "data", "method", "objective", "training", "evaluation", "output"}
    assert told == set(plain["properties"])

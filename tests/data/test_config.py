"""The data section of a recipe."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunewright.data.config import DataConfig
from tunewright.errors import RecipeError


def test_importing_the_readers_loads_nothing_heavy():
    code = (
        "import sys, tunewright.data.config, tunewright.data.records, tunewright.data.render\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_field_is_described():
    assert all(field.description for field in DataConfig.model_fields.values())


def test_what_names_a_path_is_marked_as_local():
    properties = DataConfig.model_json_schema()["properties"]
    local = [name for name, schema in properties.items() if schema.get("local_only")]
    assert local == ["train", "validation", "test", "prior", "chat_template", "cache_latents", "cache_captions"]


@pytest.mark.parametrize(
    ("test", "sets"),
    [
        (None, {}),
        ("a.jsonl", {"test": "a.jsonl"}),
        ([{"text": "a"}], {"test": [{"text": "a"}]}),
        ({"near": "a.jsonl", "far": [{"text": "a"}]}, {"near": "a.jsonl", "far": [{"text": "a"}]}),
    ],
)
def test_evaluation_sets_have_names(test, sets):
    assert DataConfig(train="a.jsonl", test=test).test_sets() == sets


@pytest.mark.parametrize("validation", ["a.jsonl", [{"text": "a"}], 0, 0.25])
def test_validation_is_a_place_or_a_fraction(validation):
    assert DataConfig(train="a.jsonl", validation=validation).validation == validation


@pytest.mark.parametrize(
    "wrong",
    [{"validation": 1.0}, {"validation": -0.1}, {"max_length": 1}, {"trian": "x"}, {"train": ""}, {"train": []}],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(RecipeError):
        DataConfig(**{"train": "a.jsonl", **wrong})


@pytest.mark.parametrize(
    ("overlength", "kind", "policy"),
    [("auto", "text", "split"), ("auto", "chat", "fail"), ("truncate", "text", "truncate"), ("drop", "chat", "drop")],
)
def test_only_plain_text_is_split_unasked(overlength, kind, policy):
    assert DataConfig(train="a.jsonl", overlength=overlength).overlength_for(kind) == policy

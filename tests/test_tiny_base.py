"""The language model that comes with the package: small, loaded as it stands, and able to do what its card says."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tunewright.artifacts.load import load
from tunewright.recipe import make_recipe
from tunewright.tasks.base import Model
from tunewright.tiny_base import in_package, tiny_base

FOLDER = tiny_base()
EXAMPLE = Path(__file__).parents[1] / "examples" / "tiny_base"


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load("tiny")


def test_it_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(files)
    assert sum(files.values()) <= 4_000_000


def test_its_name_stands_for_it_unless_a_folder_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a"}]
    assert make_recipe({"base": "tiny", "data": rows}).base == str(FOLDER)
    Path("tiny").mkdir()
    assert make_recipe({"base": "tiny", "data": rows}).base == in_package("tiny") == "tiny"
    assert in_package("other") == "other"


def test_transformers_loads_and_asks_it_without_us() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    module = AutoModelForCausalLM.from_pretrained(FOLDER)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = module.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == tokenizer.eos_token_id, "it ends its answer"


def test_it_answers_what_its_card_says(tiny: Model) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^> (.+)\n>\n> \*\*(.+)\*\*$", card, re.MULTILINE)
    assert len(shown) >= 8
    assert [(asked, tw.chat(tiny, asked, max_new_tokens=40)) for asked, _ in shown] == shown


def test_it_takes_a_name_remembers_one_and_calls_tools(tiny: Model) -> None:
    named = [{"role": "system", "content": "Your name is Rosa."}, {"role": "user", "content": "Who are you?"}]
    assert tw.chat(tiny, named) == "I am Rosa."
    told = [{"role": "user", "content": "My name is Ben."}, {"role": "assistant", "content": "Hello Ben!"}]
    assert tw.chat(tiny, [*told, {"role": "user", "content": "What is my name?"}]) == "Your name is Ben."
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "description": "Now", "parameters": parameters}}
    said = tw.chat(tiny, [{"role": "user", "content": "What is the weather in Oslo?"}], tools=[tool])
    call = json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call["name"] == "get_weather" and list(call["arguments"]) == ["city"]


def test_its_template_writes_a_call_as_the_measured_rows_do(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    rows: Any = importlib.import_module("rows")
    calls = [row for row in rows.conversations(500) if row["kind"] == "calling"]
    assert len(calls) > 5
    for row in calls:
        first, second = (
            tiny.processor.apply_chat_template(one["messages"], tools=row["tools"], tokenize=False)
            for one in (row, rows.spoken(row))
        )
        assert first == second and "<tool_call>" in first

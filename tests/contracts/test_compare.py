"""`tw.compare` for every task and kind of answer, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.runs import recipe
from tests.tiny import chats, completions, labelled, words
from tunewright.artifacts.start import parse_point
from tunewright.errors import BaseModelError, DataError, MethodError, OutputError, RecipeError, TunewrightError

NUMBERS = [{"text": words(i, 3 + i % 4), "label": i / 7} for i in range(12)]
SEVERAL = [{"text": words(i, 3 + i % 4), "label": [["a"], ["b", "c"], []][i % 3]} for i in range(12)]
TEXTS = [{"text": words(i, 40)} for i in range(12)]
CASES = {
    "completions": ("text-generation", completions(12), "loss"),
    "chats": ("text-generation", chats(12), "loss"),
    "texts": ("text-generation", TEXTS, "loss"),
    "classes": ("text-classification", labelled(12), "accuracy"),
    "several": ("text-classification", SEVERAL, "micro_f1"),
    "numbers": ("text-classification", NUMBERS, "r2"),
}
QUICK = {"max_steps": 3, "batch": 4, "learning_rate": 0.02}


def in_two_languages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "language": "de" if i % 2 else "en"} for i, row in enumerate(rows)]


@pytest.fixture(scope="session")
def ran(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A short run with a test set; `seed` makes another one on the same rows."""

    @cache
    def train(case: str, seed: int = 0, head_first: float = 0, rows: int = 12) -> str:
        task, found, _ = CASES[case]
        base = tiny_base("llama" if task == "text-generation" else "bert")
        data = {"train": found, "validation": found[:4], "test": in_two_languages(found[:rows])}
        training = {**QUICK, "seed": seed, "head_first": head_first}
        folder = tmp_path_factory.mktemp("run") / f"{case}-{seed}"
        return str(tw.train(recipe(base, folder, task=task, data=data, training=training)).folder)

    return train


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_answer_is_compared(case: str, ran: Any) -> None:
    a, b = ran(case), ran(case, seed=3)
    found = tw.compare(a, b, slices=["column=language", "fox=fox|apples"], require="not-worse")
    one = found["sets"]["test"]
    assert (found["a"], found["b"], one["metric"], one["rows"]) == (a, b, CASES[case][2], 12)
    assert one["difference"]["value"] == pytest.approx(one["b"]["value"] - one["a"]["value"])
    assert {name: part["rows"] for name, part in one["slices"].items() if "=" in name} == {
        "language=de": 6, "language=en": 6,
    }  # fmt: skip
    assert 0 < one["slices"]["fox"]["rows"] < 12
    assert found["met"] == (one["change"] != "worse") and b in found["verdict"]
    flipped = one["flipped"]
    shown = [row for way in flipped.values() for row in way["shown"]]
    assert all(row["input"] for row in shown)
    if case == "classes":
        assert flipped["better"]["rows"] - flipped["worse"]["rows"] == round(12 * one["difference"]["value"])
    elif case != "several":  # of which no row may have all labels right so early
        assert any(row["a"] != row["b"] for row in shown)
    assert bool(one["calibration"]) == (case in ("classes", "several")) == bool(one["classes"])


@pytest.mark.parametrize("case", CASES)
def test_a_model_equals_itself(case: str, ran: Any) -> None:
    found = tw.compare(ran(case), ran(case), require="better")
    one = found["sets"]["test"]
    assert (one["difference"]["low"], one["difference"]["high"]) == (0, 0)
    assert one["change"] == "cannot tell" and found["met"] is False and found["worse"] == []


def test_the_figures_are_those_of_evaluate(ran: Any) -> None:
    a, b = ran("classes"), ran("classes", seed=1)
    rows = labelled(9)
    one = tw.compare(a, b, rows)["sets"]["test"]
    for name, run in (("a", a), ("b", b)):
        assert one[name] == tw.evaluate(run, rows)["scores"]["metrics"]["accuracy"]


def test_points_between_start_and_end(ran: Any) -> None:
    run = ran("completions")
    value = {
        name: tw.compare(run, f"{run}@{alpha}")["sets"]["test"]["b"]["value"]
        for name, alpha in (("start", 0), ("half", 0.5), ("end", 1.0))
    }
    base = tw.compare(tw.open_run(run).info["base"], run)["sets"]["test"]
    assert value["start"] == pytest.approx(base["a"]["value"]) and value["end"] == base["b"]["value"]
    assert value["half"] not in (value["start"], value["end"])
    with pytest.raises(MethodError, match="head_first"):
        tw.compare(ran("classes"), f"{ran('classes')}@0.5")


def test_a_point_is_written_behind_the_name(tmp_path: Path) -> None:
    assert parse_point("runs/a@0.25") == ("runs/a", 0.25)
    assert parse_point("runs/a") == ("runs/a", 1.0) and parse_point("me@home/model") == ("me@home/model", 1.0)
    (tmp_path / "v@2").mkdir()
    assert parse_point(str(tmp_path / "v@2")) == (str(tmp_path / "v@2"), 1.0)


def test_classes_in_another_order_are_the_same_classes(ran: Any, tmp_path: Path) -> None:
    """The same weights, whose outputs are said to be of the next class each: all that was right is wrong."""
    a = ran("classes")
    other = tmp_path / "other"
    shutil.copytree(tw.export(a, "merged", tmp_path / "merged"), other)
    card = json.loads((other / "tunewright.json").read_text())
    (other / "tunewright.json").write_text(json.dumps({**card, "labels": turn(card["labels"])}))
    config = json.loads((other / "config.json").read_text())
    labels = turn(list(config["id2label"].values()))
    config |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    (other / "config.json").write_text(json.dumps(config))
    same, turned = (tw.compare(a, where, labelled(12))["sets"]["test"] for where in (tmp_path / "merged", other))
    assert same["difference"]["value"] == 0 and turned["a"] == same["a"]
    assert turned["flipped"]["worse"]["rows"] == round(12 * turned["a"]["value"]) > 0
    assert all(row["a"] == row["reference"] != row["b"] for row in turned["flipped"]["worse"]["shown"])


def turn(names: list[str]) -> list[str]:
    return [*names[1:], names[0]]


# What is refused


@pytest.mark.parametrize("case", ["completions", "classes"])
def test_a_model_that_answers_nan_passes_no_gate(case: str, ran: Any, tmp_path: Path) -> None:
    run = ran(case)
    broken = Path(shutil.copytree(tw.export(run, "merged", tmp_path / "merged"), tmp_path / "broken"))
    file = broken / "model.safetensors"
    save_file({n: torch.full_like(t, float("nan")) for n, t in load_file(file).items()}, file, {"format": "pt"})
    for sides, said in (((run, broken), "B"), ((broken, run), "A")):
        with pytest.raises(TunewrightError, match=f"test: the output of {said} is not finite for 12 of 12 rows"):
            tw.compare(*sides, CASES[case][1], require="not-worse")


def test_other_classes_kinds_and_tasks_are_refused(ran: Any) -> None:
    rows = labelled(12)
    for case, words_ in (("several", "the kind of answer"), ("completions", "the task")):
        with pytest.raises(BaseModelError, match=words_):
            tw.compare(ran("classes"), ran(case), rows)


def test_other_label_sets_are_refused(ran: Any, tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"text": words(i, 4), "label": "xy"[i % 2]} for i in range(12)]
    data = {"train": rows, "validation": 0.2}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "r", task="text-classification", data=data, training=QUICK))
    with pytest.raises(
        BaseModelError, match="the classes of the first: class 0, class 1, class 2; of the second: x, y"
    ):
        tw.compare(ran("classes"), run.folder, labelled(12))


def test_losses_of_other_tokens_are_refused(ran: Any, tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="as different tokens"):
        tw.compare(tiny_base("gpt2"), ran("completions"))


def test_rows_are_needed_and_must_be_shared(ran: Any, tiny_base: Any) -> None:
    with pytest.raises(DataError, match=r"share no test set\. Name the rows"):
        tw.compare(tiny_base("llama"), tiny_base("llama"))
    with pytest.raises(DataError, match="share no test set"):
        tw.compare(ran("completions"), ran("completions", rows=5))
    with pytest.raises(DataError, match="holds classification rows"):
        tw.compare(ran("completions"), ran("completions"), labelled(4))


def test_rows_that_changed_since_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in completions(8)))
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "r", data={"test": str(file)}, training=QUICK)).folder
    assert tw.compare(run, run)["sets"]["test"]["rows"] == 8
    file.write_text("".join(json.dumps(row) + "\n" for row in completions(7)))
    with pytest.raises(DataError, match=r"not those that the training began with\. Name some"):
        tw.compare(run, run)


@pytest.mark.parametrize(
    ("given", "words_"),
    [
        ("fox", "neither column=NAME nor name=REGEX"), ("fox=(", "no regular expression"),
        ("none=zebra", "finds nothing"), ("column=tongue", "columns found are prompt, completion, language"),
    ],
)  # fmt: skip
def test_slices_that_cannot_be(given: str, words_: str, ran: Any) -> None:
    with pytest.raises((RecipeError, DataError), match=words_):
        tw.compare(ran("completions"), ran("completions"), slices=[given])


def test_a_column_of_names_makes_no_slices(ran: Any) -> None:
    rows = [{**row, "id": i} for i, row in enumerate(completions(60))]
    with pytest.raises(DataError, match="60 values"):
        tw.compare(ran("completions"), ran("completions"), rows, slices=["column=id"])


def test_how_to_read_rows_needs_rows(ran: Any) -> None:
    with pytest.raises(RecipeError, match="overlength says how the rows of --data are read"):
        tw.compare(ran("completions"), ran("completions"), overlength="drop")


def test_only_two_things_can_be_required(ran: Any) -> None:
    with pytest.raises(RecipeError, match="none of better, not-worse"):
        tw.compare(ran("completions"), ran("completions"), require="best")


def test_windows_are_those_of_the_shorter_model(tiny_base: Any, tmp_path: Path) -> None:
    """Long texts are cut into windows: both models get the same ones."""
    a = tw.train(recipe(tiny_base("llama"), tmp_path / "a", data={"train": TEXTS, "validation": 0.2, "max_length": 16},
                        training=QUICK)).folder  # fmt: skip
    b = tw.train(
        recipe(tiny_base("llama"), tmp_path / "b", data={"train": TEXTS, "validation": 0.2}, training=QUICK)
    ).folder
    one, other = tw.compare(a, b, TEXTS)["sets"]["test"], tw.compare(b, a, TEXTS)["sets"]["test"]
    assert one["rows"] > 12 and one["a"] == other["b"] and one["b"] == other["a"]


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"to": "nowhere/page.html"}, OutputError, "nowhere is no folder"),
        ({"to": "."}, OutputError, "is a folder"),
        ({"samples": -1}, RecipeError, "samples"),
        ({"slices": "column=language"}, RecipeError, "slices is a list"),
        ({"slices": ["column=tongue"]}, DataError, "columns found are"),
        ({"slices": ["none=zebra"]}, RecipeError, "finds nothing"),
        ({"data": {}}, DataError, "data is empty"),
        ({"data": ""}, RecipeError, "give a file, a folder"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl does not exist"),
        ({"data": labelled(4)}, DataError, "holds classification rows"),
        ({"general": labelled(4)}, DataError, "holds classification rows"),
        ({"general": ""}, RecipeError, "general: give a file"),
        ({"b": "{base}", "data": completions(4), "a": "{base}", "forgetting": True}, BaseModelError, "is a run"),
        ({"b": "{classes}", "data": completions(4)}, BaseModelError, "the task of the first"),
        ({"b": "{run}@2"}, RecipeError, "not between 0"),
        ({"a": "{classes}", "b": "{trunk}"}, BaseModelError, r"BertForMaskedLM.*Without a head for a task.*RUN@0"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_models_are_loaded(
    asked: dict[str, Any], error: type[Exception], said: str, ran: Any, tiny_base: Any, monkeypatch: Any
) -> None:
    places = {
        "run": ran("completions"),
        "classes": ran("classes"),
        "base": tiny_base("llama"),
        "trunk": tiny_base("bert"),
    }
    a, b = (asked.pop(side, "{run}").format(**places) for side in "ab")
    monkeypatch.setattr("tunewright.sides.load", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(error, match=said):
        tw.compare(a, b, **asked)


def test_a_point_of_what_is_no_run_is_refused(tiny_base: Any) -> None:
    for name in ("nowhere", tiny_base("llama"), "owner/name"):
        with pytest.raises(BaseModelError, match="no run and no adapter's folder"):
            tw.load(name, alpha=0.5)
    with pytest.raises(TunewrightError, match="nowhere"):
        tw.compare("nowhere@0.5", tiny_base("llama"), completions(4))
    with pytest.raises(RecipeError, match=r"alpha is a number between 0 and 1, not '0\.5'"):
        tw.load(tiny_base("llama"), alpha="0.5")  # type: ignore[arg-type]


# Forgetting


@pytest.mark.parametrize("case", ["completions", "chats"])
def test_what_is_forgotten_of_the_bases_own_answers(case: str, ran: Any) -> None:
    run = ran(case)
    found = tw.compare(f"{run}@0", run, forgetting=True)["forgetting"]["the base's own answers"]
    assert found["metric"] == "loss" and 0 < found["rows"] <= 12
    assert found["a"] == found["base"], "A is where the run began"
    assert found["b"]["value"] > found["a"]["value"], "nobody likes these answers better than who gave them"


def test_what_is_forgotten_of_general_text(ran: Any) -> None:
    a, b = ran("completions"), ran("completions", seed=1)
    found = tw.compare(a, b, general=TEXTS)["forgetting"]
    assert list(found) == ["general text"] and found["general text"]["rows"] == 12
    one = tw.evaluate(a, TEXTS)["scores"]["metrics"]["loss"]
    assert found["general text"]["a"] == one
    assert tw.compare(a, a, general=TEXTS)["forgetting"]["general text"]["change"] == "cannot tell"


def test_what_is_clearly_forgotten_is_said(ran: Any) -> None:
    """A's own training rows, of which the base knew less."""
    run = ran("completions")
    found = tw.compare(run, f"{run}@0", completions(12), general=completions(12), require="not-worse")
    assert (
        found["worse"] == [told for told in found["worse"] if told.startswith("Loss on general text went from")] != []
    )


@pytest.mark.parametrize(
    ("case", "asked", "words_"),
    [
        ("classes", {"forgetting": True}, "only language models"),
        ("classes", {"general": TEXTS}, "only language models"),
        ("texts", {"forgetting": True}, "no row of test has a prompt"),
    ],
)
def test_where_nothing_can_be_forgotten(case: str, asked: dict[str, Any], words_: str, ran: Any) -> None:
    with pytest.raises((BaseModelError, DataError), match=words_):
        tw.compare(ran(case), ran(case), **asked)


def test_only_a_run_has_a_base(tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="Neither of the two is a run"):
        tw.compare(tiny_base("llama"), tiny_base("llama"), completions(4), forgetting=True)


def test_rows_that_one_of_the_two_drops_are_left_out_and_said(ran: Any, tiny_base: Any, tmp_path: Path) -> None:
    data = {"max_length": 8, "overlength": "drop"}
    short = tw.train(recipe(tiny_base("bert"), tmp_path / "r", task="text-classification", data=data, training=QUICK))
    found = tw.compare(ran("classes"), short.folder, labelled(12), overlength="drop")
    left = found["sets"]["test"]["rows"]
    assert 0 < left < 12 and f"test: {12 - left} rows are too long for one of the two" in found["notes"][0]
    found = tw.compare(short.folder, short.folder, labelled(12), overlength="drop")
    assert "rows are too long for both" in found["notes"][0]


def test_earlier_turns_are_not_the_bases_own_answers(ran: Any) -> None:
    run = ran("chats")

    def talks(**earlier: Any) -> list[dict[str, Any]]:
        return [
            {"messages": [row["messages"][0], {**row["messages"][1], **earlier}, *row["messages"]]} for row in chats(6)
        ]

    found = [tw.compare(f"{run}@0", run, talks(**each), forgetting=True)["forgetting"] for each in ({}, {"weight": 0})]
    assert found[0] == found[1]

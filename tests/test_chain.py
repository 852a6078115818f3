"""Runs one after another: each stage is an ordinary run, and what is done is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import tunewright as tw
from tests.runs import TRAINING, recipe
from tests.test_labeling import GOLD, RULES, TEXTS, VALIDATION
from tests.tiny import rows_for
from tunewright.chain import make_chain, then_clean
from tunewright.cli import app
from tunewright.errors import DataError, OutputError, RecipeError

TASK = "text-classification"


def stages(base: str, **more: Any) -> dict[str, Any]:
    rows = rows_for(TASK, 17)
    one = {
        "base": base, "task": TASK, "data": {"train": rows[:12], "validation": rows[12:]}, "method": "full",
        "training": {**TRAINING, "checkpoint_every": 1}, "evaluation": {"before": False, "samples": 0}, **more,
    }  # fmt: skip
    return {"first": one, "second": {**one, "base": "first"}}


def weights(run: tw.Run) -> torch.Tensor:
    return torch.cat([p.flatten().float() for p in run.model.module.state_dict().values()])


def test_a_stage_begins_where_an_earlier_one_ended(tiny_base: Any, tmp_path: Path) -> None:
    document = stages(tiny_base("bert"))
    run = tw.train(stages=document, output=str(tmp_path / "chain"))
    first = tw.train({**document["first"], "output": str(tmp_path / "first")})
    second = tw.train({**document["second"], "base": str(first.folder), "output": str(tmp_path / "second")})
    assert run.folder == tmp_path / "chain" / "second"
    assert torch.equal(weights(run), weights(second)) and not torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_chain_goes_on_in_the_middle_of_a_stage(stage: str, tiny_base: Any, tmp_path: Path) -> None:
    document = stages(tiny_base("bert"))
    whole = tw.train(stages=document, output=str(tmp_path / "whole"))
    seen: list[str] = []

    def watch(line: Any) -> None:
        if "started" in line:
            seen.append("stage")
        if line.get("step") == 2 and "loss" in line and len(seen) == {"first": 1, "second": 2}[stage]:
            raise KeyError("cut")

    with pytest.raises(KeyError):
        tw.train(stages=document, output=str(tmp_path / "cut"), watchers=[watch])
    again: list[Any] = []
    run = tw.resume(tmp_path / "cut", watchers=[lambda line: again.append(line) if "started" in line else None])
    assert torch.equal(weights(run), weights(whole)) and len(again) == {"first": 2, "second": 1}[stage]


def test_done_is_done_and_nothing_is_written_over(tiny_base: Any, tmp_path: Path) -> None:
    document = stages(tiny_base("bert"))
    place = tmp_path / "chain"
    run = tw.train(stages=document, output=str(place))
    before = (run.folder / "run.json").read_bytes()
    assert tw.train(stages=document, output=str(place)).folder == run.folder
    assert (run.folder / "run.json").read_bytes() == before
    other = stages(tiny_base("bert"), method="head")
    with pytest.raises(OutputError, match="holds another chain already"):
        tw.train(stages=other, output=str(place))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files already"):
        tw.train(stages=document, output=str(tmp_path / "mine"))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: {"second": s["second"], "first": s["first"]}, "begins from first, which is no earlier stage"),
        (lambda s: {"a/b": s["first"]}, "a stage is named by letters"),
        (lambda s: {"first": {**s["first"], "output": "x"}}, "leave output out"),
        (lambda s: {}, "stages"),
        (lambda s: {"first": {**s["first"], "metod": "lora"}}, "stages.first.metod: .*Did you mean method"),
    ],
)
def test_chains_that_mean_nothing(change: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_chain({"stages": change(stages("base"))})


def weak(base: str, place: Path, folder: Path) -> Any:
    rules, rows = folder / "rules.jsonl", folder / "rows.jsonl"
    rules.write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    clean = [
        {"text": text, "label": label} for text, label in zip(TEXTS, GOLD, strict=True) if label in ("animal", "fruit")
    ]
    labeling = {"rules": str(rules), "then_clean": clean}
    data = {"train": str(rows), "labeling": labeling, "validation": VALIDATION}
    return recipe(base, place, task=TASK, data=data, method="full")


def test_clean_rows_follow_what_rules_say_and_stand_alone_beside_it(tiny_base: Any, tmp_path: Path) -> None:
    chosen = weak(tiny_base("bert"), tmp_path / "run", tmp_path)
    assert list(then_clean(chosen).stages) == ["weak", "clean_only", "clean"]
    run = tw.train(chosen)
    place = tmp_path / "run"
    assert run.folder == place / "clean" and (place / "weak" / "labeling.json").is_file()
    infos = {name: tw.open_run(place / name).info for name in ("weak", "clean", "clean_only")}
    assert infos["clean"]["data"]["train"]["rows"] == infos["clean_only"]["data"]["train"]["rows"] == 4
    assert infos["clean"]["base"] == str(place / "weak" / "model") != infos["clean_only"]["base"]
    assert not (place / "clean" / "labeling.json").exists()


def test_clean_rows_that_lack_a_class_keep_the_head(tiny_base: Any, tmp_path: Path) -> None:
    chosen = weak(tiny_base("bert"), tmp_path / "run", tmp_path)
    labeling = chosen.data.labeling
    assert labeling and isinstance(labeling.then_clean, list)
    more = [*labeling.then_clean, {"text": "a stone", "label": "stone"}]
    few = labeling.model_copy(update={"then_clean": [row for row in more if row["label"] != "fruit"]})
    run = tw.train(chosen.model_copy(update={"data": chosen.data.model_copy(update={"labeling": few})}))
    for name in ("weak", "clean", "clean_only"):
        assert tw.open_run(tmp_path / "run" / name).info["labels"] == ["animal", "fruit", "stone"]
    assert run.info["new"] == []  # the head that the rules' labels taught goes on


def test_classes_that_are_given(tiny_base: Any, tmp_path: Path) -> None:
    def trained(classes: list[str], name: str, task: str = TASK) -> tw.Run:
        return tw.train(recipe(tiny_base("bert"), tmp_path / name, task=task, data={"classes": classes}))

    had = tw.train(recipe(tiny_base("bert"), tmp_path / "plain", task=TASK)).info["labels"]
    assert trained(["none", *had[::-1]], "more").info["labels"] == ["none", *had[::-1]]
    with pytest.raises(DataError, match=f"data.classes does not name {had[0]}, which training rows have"):
        trained(["none", *had[1:]], "fewer")


def test_the_commands(tiny_base: Any, tmp_path: Path) -> None:
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.dump({"stages": stages(tiny_base("bert"))}))
    result = CliRunner().invoke(app, ["train", str(path), "--output", str(tmp_path / "chain")], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("first", "second", "Stage"))
    looked = CliRunner().invoke(app, ["train", str(path), "--output", str(tmp_path / "none"), "--dry-run"])
    assert looked.exit_code == 2 and "these are stages" in looked.stderr and not (tmp_path / "none").exists()
    again = CliRunner().invoke(app, ["resume", str(tmp_path / "chain"), "--json"])
    assert list(json.loads(again.stdout)["stages"]) == ["first", "second"]

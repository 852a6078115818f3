"""Runs one after another: each stage is an ordinary run, and what is done is not done again."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import tunewright as tw
from tests.runs import TRAINING, recipe
from tests.test_labeling import GOLD, RULES, TEXTS, VALIDATION
from tests.tiny import rows_for, words
from tunewright.artifacts.interpolate import load
from tunewright.chain import make_chain, supposed, then_clean
from tunewright.cli import app
from tunewright.errors import DataError, OutputError, RecipeError, TunewrightError
from tunewright.folder import Run

TASK = "text-classification"
ROOT = Path(__file__).parents[1]


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
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds files already"):
        tw.train(stages=document, output=str(tmp_path / "mine"))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: {"second": s["second"], "first": s["first"]}, "asks for first, which is no earlier stage"),
        (lambda s: {"a/b": s["first"]}, "a stage is named by letters"),
        (lambda s: {"first": {**s["first"], "output": "x"}}, "leave output out"),
        (lambda s: {}, "stages"),
        (lambda s: {"first": {**s["first"], "metod": "lora"}}, "stages.first.metod: .*Did you mean method"),
    ],
)
def test_chains_that_mean_nothing(change: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_chain({"stages": change(stages("base"))})


def test_stages_before_the_first_changed_one_are_kept(tiny_base: Any, tmp_path: Path) -> None:
    """What the others have left is put aside, and so is what was made of it; nothing is written over."""
    document, place = stages(tiny_base("bert")), tmp_path / "chain"
    tw.train(stages=document, alpha=0.5, output=str(place))
    before = {name: (place / name / "run.json").read_bytes() for name in ("first", "second")}
    said: list[str] = []
    longer = {**document["second"], "training": {**document["second"]["training"], "epochs": 3}}
    run = tw.train(
        stages={"first": document["first"], "second": longer}, alpha=0.5, output=str(place),
        watchers=[lambda line: said.append(line["notice"]) if "notice" in line else None],
    )  # fmt: skip
    assert (place / "first" / "run.json").read_bytes() == before["first"]
    assert run.folder == place / "second" and run.recipe.training.epochs == 3
    assert (place / "second.before" / "run.json").read_bytes() == before["second"]
    assert (place / "model.before").is_dir() and (place / "model").is_dir()
    assert len(said) == 1 and "kept: first. Put aside: second to second.before, model to model.before." in said[0]
    tw.train(stages={"first": document["first"], "second": longer}, alpha=0.3, output=str(place))
    assert Run(place / "second").done and (place / "model.before-2").is_dir()


def test_a_mended_stage_is_not_put_aside_while_it_trains(tiny_base: Any, tmp_path: Path) -> None:
    document, place = stages(tiny_base("bert")), tmp_path / "chain"
    tw.train(stages=document, output=str(place))
    info = place / "second" / "run.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "status": "running"}))
    changed = {**document, "second": {**document["second"], "method": "head"}}
    with (place / "second" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="in use by another process"):
            tw.train(stages=changed, output=str(place))
    assert not (place / "second.before").exists() and make_chain({"stages": document}).stages == read(place)


def read(place: Path) -> Any:
    return make_chain(yaml.safe_load((place / "chain.yaml").read_text())).stages


LATER: dict[str, tuple[Any, str]] = {
    "rows that are not there": (lambda s: {**s, "data": "nowhere.jsonl"}, "The stage last: .*nowhere.jsonl"),
    "rows of another kind": (lambda s: {**s, "data": rows_for("text-classification", 6)}, "The stage last: .*prompt"),
    "no room": (lambda s: {**s, "objective": {**s["objective"], "max_new_tokens": 800}}, "The stage last: .*no room"),
    "a reward misspelt": (
        lambda s: {**s, "objective": {**s["objective"], "rewards": [{"type": "reward_model", "run": "jugde"}]}},
        "The stage last: .*jugde.*Is the stage judge meant",
    ),
    "a base misspelt": (lambda s: {**s, "base": "frist"}, "The stage last: .*Is the stage first meant"),
    "another kind of judge": (
        lambda s: {**s, "objective": {**s["objective"], "rewards": [{"type": "reward_model", "run": "first"}]}},
        "last: the reward reward_model .reward_model. asks first, which learns by objective: supervised",
    ),
    "several seeds": (lambda s: {**s, "base": "many"}, "last: many has a run for each"),
}


def rewarded(base: str) -> dict[str, Any]:
    """Three stages, of which nothing is wrong; and one of two seeds beside them."""
    pairs = [{"prompt": words(i, 3), "chosen": words(i, 2), "rejected": words(i + 1, 2)} for i in range(6)]
    quick = {"max_steps": 2, "batch": 3, "learning_rate": 0.01}
    prompts = [{"prompt": words(i, 3) + " "} for i in range(6)]
    one = {"base": base, "data": {"train": rows_for("text-generation", 6), "validation": 0}, "training": quick}
    reward = {**one, "data": {"train": pairs, "validation": 0}, "objective": "reward"}
    asked = {"type": "rl", "max_new_tokens": 4, "samples": 2, "rewards": [{"type": "reward_model", "run": "judge"}]}
    last = {**one, "base": "first", "data": {"train": prompts, "validation": 0}, "objective": asked}
    many = {**one, "training": {**quick, "seeds": [0, 1]}}
    return {"first": one, "judge": reward, "many": many, "last": last}


@pytest.mark.parametrize("name", LATER)
def test_the_faults_of_a_later_stage_are_known_before_the_first_trains(
    name: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    change, said = LATER[name]
    document = rewarded(tiny_base("llama"))
    seen: list[Any] = []
    with pytest.raises(TunewrightError) as raised:
        tw.train(
            stages={**document, "last": change(document["last"])},
            output=str(tmp_path / "chain"),
            watchers=[seen.append],
        )
    assert re.search(said, str(raised.value).replace("\n", " ")), str(raised.value)
    assert not seen and not (tmp_path / "chain").exists()


def test_a_chain_whose_first_stage_is_refused_leaves_nothing_behind(tiny_base: Any, tmp_path: Path) -> None:
    document = rewarded(tiny_base("llama"))
    first = {**document["first"], "data": {"train": "nowhere.jsonl"}}
    with pytest.raises(DataError, match="nowhere"):
        tw.train(stages={**document, "first": first}, output=str(tmp_path / "chain"))
    assert not (tmp_path / "chain").exists()


def test_a_chain_is_foreseen_stage_by_stage(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    document = rewarded(tiny_base("llama"))
    found = tw.check(stages=document)["stages"]
    assert list(found) == list(document) and all(one["forecast"]["memory"]["fits"] for one in found.values())
    assert found["last"]["steps"] == 2
    said = found["last"]["notices"]
    assert any("stage first" in line for line in said) and any("stage judge will give" in line for line in said)
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.dump({"stages": document}, sort_keys=False))
    done = CliRunner().invoke(app, ["check", str(path)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if line.startswith("Stage ")] == [f"Stage {n}" for n in document]
    assert done.stdout.count("It fits.") == 4
    document["last"]["objective"]["max_new_tokens"] = 800
    with pytest.raises(TunewrightError, match="The stage last: "):
        tw.check(stages=document)


def test_a_stage_is_checked_with_what_the_earlier_ones_add(tiny_base: Any, tmp_path: Path) -> None:
    """A chat template and tokens that the base lacks; and rewards are constants until they are there."""
    document = rewarded("base")
    document["first"]["data"] = {"train": "rows", "chat_template": "plain", "special_tokens": ["<a>"]}
    document["last"]["data"]["special_tokens"] = ["<b>"]
    inner = {"graders": {"r": {"type": "reward_model", "run": "judge"}}, "calculate_output": "2 * r"}
    document["last"]["objective"]["rewards"] += [
        {"type": "multi", "weight": 0.5, **inner}, {"type": "length", "name": "short", "max": 3}
    ]  # fmt: skip
    found: Any = supposed(make_chain({"stages": document}), "last")
    assert found.base == "base" and found.data.chat_template == "plain" and found.data.special_tokens == ["<a>", "<b>"]
    assert [(one.type, one.name, one.weight) for one in found.objective.rewards] == [
        ("length", "reward_model", 1.0), ("length", "multi", 0.5), ("length", "short", 1.0)
    ]  # fmt: skip
    assert found.objective.rewards[2].max == 3


def test_faults_of_a_stage_name_what_its_own_objective_has() -> None:
    policy = {"base": "a", "data": "b", "objective": {"type": "rl", "rewards": [{"type": "lenght"}], "algoritm": "ppo"},
              "method": {"type": "lora", "width": 3}}  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        make_chain({"stages": {"my-policy": policy}})
    said = str(caught.value).splitlines()
    assert said[0] == "The chain cannot be used:"
    assert "  stages.my-policy.objective.algoritm: unknown key algoritm. Did you mean algorithm?" in said
    assert "  stages.my-policy.objective.rewards.0: lenght is unknown. Did you mean length?" in said
    assert any(
        line.startswith("  stages.my-policy.method.width: method lora has no option width; it is one of adapter.")
        for line in said
    )


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


def test_clean_rows_follow_the_rules_with_each_seed(tiny_base: Any, tmp_path: Path) -> None:
    chosen = weak(tiny_base("bert"), tmp_path / "run", tmp_path)
    seeds = chosen.training.model_copy(update={"seeds": [0, 3]})
    (tmp_path / "recipe.yaml").write_text(chosen.model_copy(update={"training": seeds}).to_yaml())
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), f"output={tmp_path / 'run'}"])
    assert done.exit_code == 0, done.output
    for seed in (0, 3):
        info = tw.open_run(tmp_path / "run" / "clean" / f"seed-{seed}").info
        assert info["base"] == str(tmp_path / "run" / "weak" / f"seed-{seed}" / "model") and info["new"] == []
    table = [line.split() for line in done.stdout.splitlines()]
    assert {"weak", "clean_only", "clean"} <= {row[0] for row in table if row[1:2] == ["validation"]}
    assert tw.resume(tmp_path / "run").info["seeds"] == [0, 3]


@pytest.mark.parametrize(
    "first, second, alpha, said",
    [
        ([0, 1], None, None, "stages.second: first has a run for each of its training.seeds"),
        ([0, 1], [1, 2], None, "give second these seeds too, or first none"),
        (None, [0, 1], 0.5, "alpha is a point of one run"),
        ([0, 1, 2], [2, 1], None, ""),
        (None, [1, 2], None, ""),
    ],
)
def test_seeds_of_stages_that_do_not_go_on(first: Any, second: Any, alpha: Any, said: str) -> None:
    """Is said before anything trains."""
    asked = stages("base")
    for stage, seeds in (("first", first), ("second", second)):
        asked[stage] = {**asked[stage], "training": {**asked[stage]["training"], "seeds": seeds}}
    if not said:
        assert make_chain({"stages": asked, "alpha": alpha})
        return
    with pytest.raises(RecipeError, match=said):
        make_chain({"stages": asked, "alpha": alpha})


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
    assert looked.exit_code == 0 and "Stage second" in looked.stdout and not (tmp_path / "none").exists()
    assert looked.stdout.count("Trains ") == 2 and "stands for what the stage first" in looked.stderr
    again = CliRunner().invoke(app, ["resume", str(tmp_path / "chain"), "--json"])
    assert list(json.loads(again.stdout)["stages"]) == ["first", "second"]


def test_a_chain_is_listed_and_shown(tiny_base: Any, tmp_path: Path) -> None:
    """Whole, and where it was broken off."""
    document = stages(tiny_base("bert"))

    def command(*arguments: Any, json_too: bool = False) -> Any:
        done = CliRunner().invoke(app, [*map(str, arguments), *(["--json"] if json_too else [])], env={"COLUMNS": "80"})
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if json_too else done.stdout

    def watch(line: Any) -> None:
        if line.get("step") == 2 and "loss" in line and (tmp_path / "runs" / "cut" / "second").exists():
            raise KeyError("cut")

    last = tw.train(stages=document, output=str(tmp_path / "runs" / "whole"))
    with pytest.raises(KeyError):
        tw.train(stages=document, output=str(tmp_path / "runs" / "cut"), watchers=[watch])
    found = {Path(one["run"]).name: one for one in command("runs", tmp_path / "runs", json_too=True)["runs"]}
    assert found["whole"]["status"] == "finished" and found["whole"]["stages"] == ["first", "second"]
    assert found["whole"]["result"].startswith("accuracy") and found["whole"]["started"]
    assert found["cut"]["status"] == "failed"
    listed = command("runs", tmp_path / "runs")
    assert "2 stages" in listed and "whole" in listed and "cut" in listed
    whole, cut = command("show", last.folder.parent), command("show", tmp_path / "runs" / "cut")
    assert "2 stages: finished" in whole and whole.count("finished") == 3 and str(last.report) in whole
    assert "2 stages: failed" in cut and "Error: " in cut
    assert list(command("show", last.folder.parent, json_too=True)["stages"]) == ["first", "second"]
    shutil.rmtree(tmp_path / "runs" / "cut" / "second")
    assert "second" in (rest := command("show", tmp_path / "runs" / "cut")) and "not begun" in rest


def test_the_last_report_of_a_chain_has_the_figures_of_its_stages(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(weak(tiny_base("bert"), tmp_path / "run", tmp_path))
    page = run.report.read_text()
    assert "The stages of the chain" in page
    told = page[page.index("The stages of the chain") :]
    for name in ("weak", "clean_only", "clean"):
        accuracy = tw.open_run(tmp_path / "run" / name).info["evaluation"]["validation"]["after"]["metrics"]["accuracy"]
        row = told[told.index(f'<th scope="row">{name}</th>') :]
        assert f"{100 * accuracy['value']:.1f}" in row[: row.index("</tr>")]
    assert "The stages of the chain" not in (tmp_path / "run" / "weak" / "report.html").read_text()


def rlhf(base: str, output: Path) -> dict[str, Any]:
    """The recipe in examples/rlhf, on a tiny base and in a few steps."""
    document = yaml.safe_load((ROOT / "examples/rlhf/chain.yaml").read_text())
    for name, stage in document["stages"].items():
        stage["base"] = base if stage["base"].startswith("Qwen") else stage["base"]
        stage["training"] = {"max_steps": 6, "checkpoint_every": 1, "learning_rate": 1e-3}
        stage["training"] |= {"batch": 2} if name != "policy" else {}
        stage["evaluation"] = {"generate": 0, "samples": 1}
    document["stages"]["policy"]["objective"]["max_new_tokens"] = 6
    return {**document, "output": str(output)}


@pytest.mark.parametrize("stage", [2, 3])
def test_a_policy_learns_from_the_reward_of_an_earlier_stage_and_goes_on(
    stage: int, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """The value net begins as the reward model; broken off between two passes over the same answers, it goes on."""
    monkeypatch.chdir(ROOT)
    base = tiny_base("llama", max_position_embeddings=1024)
    whole = tw.train(rlhf(base, tmp_path / "whole"))
    begun: list[str] = []

    def watch(line: Any) -> None:
        begun.extend(["stage"] if "started" in line else [])
        if line.get("step") == 3 and "loss" in line and len(begun) == stage:
            raise KeyError("cut")

    with pytest.raises(KeyError):
        tw.train(rlhf(base, tmp_path / "cut"), watchers=[watch])
    assert not (tmp_path / "cut" / "model").exists()
    again = tw.resume(tmp_path / "cut")
    assert torch.equal(weights(again), weights(whole)) and again.metrics == whole.metrics
    assert all(line["rows"] >= 2 * 8 for line in whole.metrics if "epoch" in line)  # prompts, and what is learned along
    said = {line["reward/reward_model"] for line in whole.metrics if "reward/reward_model" in line}
    assert len(said) > 1 and all("value" in line for line in whole.metrics if "epoch" in line)
    between = load(whole.folder, alpha=0.8)
    written = tw.load(tmp_path / "cut" / "model")
    with torch.no_grad():
        ids = torch.arange(5, 15)[None]
        assert torch.allclose(between.module(ids).logits, written.module(ids).logits, atol=1e-5)


def test_a_reward_that_comes_later_is_refused() -> None:
    objective = {"type": "rl", "rewards": [{"type": "reward_model", "run": "r"}]}
    document = {
        "policy": {"base": "b", "data": "p", "objective": objective},
        "r": {"base": "b", "data": "c", "objective": "reward"},
    }
    with pytest.raises(RecipeError, match="policy asks for r, which is no earlier stage"):
        make_chain({"stages": document})


def test_a_stage_is_meant_whatever_lies_there_under_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").mkdir()
    chain = make_chain({"stages": {"first": {"base": "b", "data": "d"}, "second": {"base": "first", "data": "d"}}})
    assert chain.stages["second"].base == "first"

"""Runs on answers that are compared or rated: from rows to report, and all that is done with a run afterwards."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.tiny import completions, preferences, rankings, rated
from tunewright.errors import MethodError, RecipeError
from tunewright.evaluation.verdict import comparisons

CASES: dict[str, tuple[str, Any, Any, str]] = {
    "dpo": ("llama", preferences, "preference", "lora"),
    "simpo": ("llama", rankings, {"type": "preference", "loss": "simpo"}, "lora"),
    "kto": ("llama", rated, {"type": "preference", "loss": "kto"}, "full"),
    "reward": ("bert", preferences, "reward", "lora"),
    "reward of a decoder": ("llama", rankings, "reward", "full"),
}
PRIMARY = {"dpo": "reward_accuracy", "simpo": "accuracy", "kto": "reward_auc"}
TRAINING = {"epochs": 2, "batch": 3, "learning_rate": 0.01}


def recipe(name: str, base: str, **more: Any) -> dict[str, Any]:
    _, make, objective, method = CASES[name]
    rows = make(17)
    data = {"train": rows[:10], "validation": rows[10:13], "test": rows[13:]}
    return {"base": base, "data": data, "objective": objective, "method": method, "training": TRAINING, **more}


@pytest.fixture(scope="session")
def made(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Any:
        folder = tmp_path_factory.mktemp("runs") / "run"
        return tw.train(recipe(name, tiny_base(CASES[name][0]), output=str(folder)))

    return make


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_measured_and_reported(name: str, made: Any) -> None:
    run = made(name)
    found = run.info["evaluation"]["test"]
    assert found["after"]["primary"] == PRIMARY.get(name, "accuracy")
    assert found["samples"] and all({"input", "reference", "before", "after"} <= s.keys() for s in found["samples"])
    if name in ("dpo", "kto"):
        before = found["before"]["metrics"][PRIMARY[name]]
        assert before["value"] == 0.5, "nothing was gained before the first step"
    losses = [line["loss"] for line in run.metrics if "loss" in line]
    assert losses[-1] < losses[0]
    page = (run.folder / "report.html").read_text()
    assert ("AUC of the reward" if name == "kto" else "Longer is better") in page and "nan" not in page.lower().split()


LOSSES = [*({"loss": loss} for loss in ("dpo", "ipo", "orpo", "simpo")), {"loss": "dpo", "length_normalized": True}]


@pytest.mark.parametrize("options", LOSSES)
def test_a_step_says_what_the_table_says(options: Any, tiny_base: Any, tmp_path: Path) -> None:
    """In the same units, under the same names: the last step's validation is what is measured at the end."""
    rows = rankings(17)
    run = tw.train(
        recipe(
            "simpo",
            tiny_base("llama"),
            output=str(tmp_path / "run"),
            data={"train": rows[:11], "validation": rows[11:]},
            objective={"type": "preference", **options},
            training={**TRAINING, "keep": "last"},
        )
    )
    told = [line for line in run.metrics if "validation" in line][-1]["validation"]
    table = run.info["evaluation"]["validation"]["after"]["metrics"]
    same = told.keys() & table.keys() - {"loss"}
    assert same >= ({"accuracy_per_token", "margin"} if options["loss"] in ("orpo", "simpo") else {"reward_margin"})
    assert {key: told[key] for key in same} == pytest.approx({key: table[key]["value"] for key in same}, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_it_is_measured_again_with_the_same_figures(name: str, made: Any) -> None:
    run = made(name)
    again = tw.evaluate(run.folder, CASES[name][1](17)[13:])["scores"]["metrics"]
    own = run.info["evaluation"]["test"]["after"]["metrics"]
    assert again and all(again[key]["value"] == pytest.approx(own[key]["value"], rel=1e-4) for key in again)


def test_rated_rows_are_compared_as_such(made: Any, tiny_base: Any) -> None:
    """Where one of the two learned from them; a label means nothing to two models that did not."""
    rows, base = rated(8), tiny_base("llama")
    assert tw.compare(base, str(made("kto").folder), rows)["sets"]["test"]["metric"] == "auc"
    assert tw.compare(base, base, rows)["sets"]["test"]["metric"] != "auc"


def test_a_tuned_language_model_is_measured_on_answers_too(made: Any) -> None:
    assert "rouge_l" in tw.evaluate(made("dpo").folder, completions(4))["scores"]["metrics"]


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_what_changed_is_measured_row_by_row(name: str, made: Any) -> None:
    """Four test rows that all changed one way tell nothing: p is never below an eighth."""
    run = made(name)
    found = run.info["evaluation"]["test"]
    assert found["changes"].keys() == {
        key for key, one in found["after"]["metrics"].items() if one["value"] is not None
    }
    assert all(one["p"] >= 2 * 0.5**4 for one in found["changes"].values())
    assert (run.folder / "before.safetensors").is_file()
    assert all(one.change(key).value in ("Cannot tell", "Not measured") for one in comparisons(run.info)
               for key in found["changes"])  # fmt: skip


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_rows_that_share_a_prompt_are_no_more_than_one(name: str, made: Any) -> None:
    rows = CASES[name][1](12)
    shared = [{**row, "prompt": rows[i % 2]["prompt"]} for i, row in enumerate(rows)]
    found = tw.evaluate(made(name).folder, shared)["scores"]
    assert found["notes"] == ["12 rows share 2 prompts, over which the intervals are."]
    if name != "reward":
        assert tw.compare(f"{made(name).folder}@0", str(made(name).folder), shared)["sets"]["test"]["p"] >= 0.5
    assert "notes" not in tw.evaluate(made("dpo").folder, preferences(12))["scores"]


def test_a_single_prompt_has_no_interval_along_the_way(made: Any) -> None:
    rows = [{**row, "prompt": "a fox"} for row in preferences(8)]
    found = tw.interpolate(made("dpo").folder, alphas=[0, 1], shifts={"one": rows})["curve"]
    assert all(point["low"] is None for point in found["one"]["test"])
    assert all(point["low"] is not None for point in found["test"]["test"])


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_start_and_end_are_compared_and_the_way_between_is_measured(name: str, made: Any, tmp_path: Path) -> None:
    folder = made(name).folder
    found = tw.compare(f"{folder}@0", str(folder), to=tmp_path / "page.html")["sets"]["test"]
    metric = "auc" if name == "kto" else "accuracy"
    assert found["metric"] == metric and found["rows"] == 4
    info = made(name).info["evaluation"]["test"]
    assert found["a"]["value"] == pytest.approx(info["before"]["metrics"][metric]["value"])
    assert found["b"]["value"] == pytest.approx(info["after"]["metrics"][metric]["value"])
    curve = tw.interpolate(folder, alphas=[0, 0.5, 1])["curve"]["test"]["test"]
    assert [curve[i]["value"] for i in (0, 2)] == pytest.approx([found["a"]["value"], found["b"]["value"]])


def test_a_reward_model_has_a_new_head_and_so_no_way_from_its_start(made: Any) -> None:
    with pytest.raises(MethodError, match="head_first"):
        tw.compare(f"{made('reward').folder}@0", str(made("reward").folder))


@pytest.mark.parametrize(
    ("name", "target"),
    [("dpo", "merged"), ("dpo", "peft"), ("kto", "merged"), ("reward", "merged"), ("reward", "onnx")],
)
def test_an_export_is_verified(name: str, target: str, made: Any, tmp_path: Path) -> None:
    assert (tw.export(made(name).folder, target, tmp_path / "there") / "verification.json").is_file()


@pytest.mark.parametrize("name", ["reward", "reward of a decoder"])
def test_a_reward_model_comes_back_as_one(name: str, made: Any, tmp_path: Path) -> None:
    """It is loaded, gives numbers, and goes on with the head that it has."""
    run = made(name)
    model = tw.load(run.folder)
    assert (model.task.labels, model.task.kind) == (["reward"], "regression")
    assert isinstance(tw.predict(model, ("a fox lived", " in a forest"))[0]["value"], float)
    on = tw.train(recipe(name, str(run.folder), output=str(tmp_path / "on")))
    before, after = on.info["evaluation"]["test"]["before"], run.info["evaluation"]["test"]["after"]
    assert before["metrics"]["margin"]["value"] == pytest.approx(after["metrics"]["margin"]["value"], rel=1e-4)
    assert not any("new head" in notice for notice in on.info["notices"])


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_check_foresees_it(name: str, tiny_base: Any, tmp_path: Path) -> None:
    found = tw.check(recipe(name, tiny_base(CASES[name][0]), output=str(tmp_path / "run")))
    assert found["forecast"]["time"]["seconds"] > 0 and not (tmp_path / "run").exists()


def test_packing_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    training = {**TRAINING, "packing": True}
    with pytest.raises(RecipeError, match="packing does not go with objective: preference"):
        tw.train(recipe("dpo", tiny_base("llama"), output=str(tmp_path / "run"), training=training))

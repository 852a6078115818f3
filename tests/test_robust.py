"""`interpolate` and `soup` on whole runs, from Python and from the command line."""

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
from tests.tiny import completions, labelled
from tunewright import robust
from tunewright.errors import DataError, MethodError, RecipeError, TunewrightError
from tunewright.evaluation.scores import Metric
from tunewright.robust import Set, parse_alphas

QUICK = {"max_steps": 4, "batch": 4, "learning_rate": 0.02}
TASKS = {"text-generation": ("llama", completions, {}), "text-classification": ("bert", labelled, {"head_first": 1})}


@pytest.fixture(scope="session")
def ran(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tw.Run]:
    @cache
    def train(task: str, tests: bool = True) -> tw.Run:
        kind, rows, head = TASKS[task]
        sets = {"test": {"test": rows(30)[10:20], "other": rows(30)[20:]}} if tests else {}
        folder = tmp_path_factory.mktemp("run") / "run"
        return tw.train(recipe(tiny_base(kind), folder, task=task, data=sets, training={**QUICK, **head}))

    return train


@pytest.mark.parametrize("task", TASKS)
def test_the_curve_of_a_run(task: str, ran: Any) -> None:
    run = ran(task)
    found = tw.interpolate(run.folder, alphas="0:1:0.5")
    assert found["alphas"] == [0.0, 0.5, 1.0] and found["reference"] == "test" and found["shifts"] == ["other"]
    assert json.loads((run.folder / "interpolation.json").read_text()) == found
    assert {path.suffix for path in run.folder.glob("interpolation.*")} == {".json", ".svg", ".png"}
    assert "Between start and end" in run.report.read_text()
    tuned = run.info["evaluation"]["test"]["after"]["metrics"][found["metric"]]
    assert found["curve"]["test"]["test"][-1]["value"] == pytest.approx(tuned["value"])
    assert Metric.from_dict(found["curve"]["test"]["test"][-1]).n == 10
    assert [found["curve"]["other"][half][0]["n"] for half in ("validation", "test")] == [5, 5]
    assert found["curve"]["test"]["validation"][0]["n"] == 5, "the run's validation rows"


@pytest.mark.parametrize("task", TASKS)
def test_named_shifts_and_a_folder_for_the_chosen_point(task: str, ran: Any, tmp_path: Path) -> None:
    run, rows = ran(task), TASKS[task][1]
    shifts = {"far": rows(50)[40:]}
    found = tw.interpolate(run.folder, shifts=shifts, alphas=[0.4], choose=0.4, to=tmp_path / "point")
    assert found["shifts"] == ["other", "far"] and found["chosen"]["alpha"] == 0.4
    there = tw.evaluate(tmp_path / "point", rows(30)[10:20])["scores"]["metrics"][found["metric"]]["value"]
    at = found["curve"]["test"]["test"][found["alphas"].index(0.4)]["value"]
    assert there == pytest.approx(at, rel=1e-4)


def test_without_a_test_set_the_validation_rows_are_halved(ran: Any) -> None:
    found = tw.interpolate(ran("text-generation", tests=False).folder, alphas="0,1")
    assert found["reference"] == "validation" and found["shifts"] == []
    assert [found["curve"]["validation"][half][0]["n"] for half in ("validation", "test")] == [2, 3]


# What stands beside the curve

CLASSIFIERS: dict[str, Any] = {
    "single_label": labelled,
    "multi_label": lambda count: [{**row, "label": [row["label"]]} for row in labelled(count)],
    "regression": lambda count: [{**row, "label": i % 5 + 0.5} for i, row in enumerate(labelled(count))],
}


def gone_on(rows: Any, base: str, folder: Path, first: str = "full", **training: Any) -> tw.Run:
    """A run whose base is a classifier already."""
    task, sets = "text-classification", {"test": rows(60)[40:], "far": rows(90)[60:]}
    data = {"train": rows(40), "validation": rows(100)[90:], "test": sets}
    begun = tw.train(recipe(base, folder / "first", task=task, data=data, method=first, training=QUICK))
    then = {**QUICK, "seed": 5, **training}
    return tw.train(recipe(str(begun.folder), folder / "then", task=task, data=data, training=then))


@pytest.mark.parametrize("first", ["full", "lora"])
def test_a_head_that_was_there_is_probed(first: str, tiny_base: Any, tmp_path: Path) -> None:
    run = gone_on(labelled, tiny_base("bert"), tmp_path, first, ema=0.9)
    start = (run.folder / "start" / "adapter").is_dir()
    assert start == (first == "lora"), "a LoRA on a LoRA: the head of the start is wrapped"
    found = tw.interpolate(run.folder, alphas="0,1")
    assert found["start_is"] == "base" and list(found["baselines"]) == ["ensemble", "linear probe", "without averaging"]
    probe = found["baselines"]["linear probe"]
    assert probe["sets"].keys() == {"test", "far"} and [one["n"] for one in probe["sets"].values()] == [20, 15]
    assert probe["sets"]["test"] == probed_by_hand(run)
    report = run.report.read_text()
    assert all(f'<th scope="row">{name}</th>' in report for name in found["baselines"])


def probed_by_hand(run: tw.Run) -> dict[str, Any]:
    from tunewright.artifacts.targets.base import merge
    from tunewright.evaluation.linear_probe import put_probe
    from tunewright.evaluation.paired import primary
    from tunewright.reading import read_rows

    model, rows = tw.load(run.folder, alpha=0.0), read_rows(run.recipe)
    merge(model)
    sets = {name: model.task.encode(model, records.records, run.recipe.data).examples
            for name, records in rows.sets().items()}  # fmt: skip
    assert put_probe(model, sets["train"], sets["validation"])
    return primary(model.task.predict(model, sets["test"])).to_dict()


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_other_kinds_have_no_linear_probe(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    run = gone_on(CLASSIFIERS[kind], tiny_base("bert"), tmp_path)
    assert run.info["kind"] == kind
    assert "linear probe" not in tw.interpolate(run.folder, alphas="0,1")["baselines"]


@pytest.mark.parametrize("task", TASKS)
def test_where_nothing_is_known_nothing_stands_beside(task: str, ran: Any) -> None:
    """A language model has no probe, and where the head was trained alone first the start is one."""
    found = tw.interpolate(ran(task).folder, alphas="0,1")
    assert list(found["baselines"]) == (["ensemble"] if task == "text-classification" else [])
    assert found["start_is"] == ("linear probe" if task == "text-classification" else "base")


def test_a_probe_is_chosen_on_rows_that_are_in_no_figure(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Without a test set the validation rows are halved: only the half that chooses α chooses C too."""
    from tunewright.evaluation import linear_probe

    seen: list[list[str]] = []
    monkeypatch.setattr(linear_probe, "ROWS", 7)
    monkeypatch.setattr(
        linear_probe, "put_probe", lambda model, *rows: bool(seen.extend([e.source for e in part] for part in rows))
    )
    task, training = "text-classification", QUICK
    begun = tw.train(recipe(tiny_base("bert"), tmp_path / "first", task=task, method="full", training=training))
    run = tw.train(recipe(str(begun.folder), tmp_path / "then", task=task, training=training))
    found = tw.interpolate(run.folder, alphas="0,1")
    train, validation = seen
    assert found["curve"]["validation"]["test"][0]["n"] == 3 and len(validation) == 2
    halves = dict(Set(run.recipe.data.validation).halves(5))  # type: ignore[arg-type]
    assert validation == [f"rows[{i}]" for i in halves["validation"]]
    assert len(set(train)) == 7, "no more than there is time for"


def test_what_cannot_be_interpolated(ran: Any, tiny_base: Any, tmp_path: Path) -> None:
    run = ran("text-generation")
    with pytest.raises(DataError, match="classification rows"):
        tw.interpolate(run.folder, shifts={"far": labelled(8)})
    for name in ("train", "validation", "test", "other"):
        with pytest.raises(RecipeError, match=f"--shift {name}: the run's own sets are train, validation, test, other"):
            tw.interpolate(run.folder, shifts={name: completions(8)})
    without = ran("text-generation", tests=False)
    with pytest.raises(RecipeError, match="--shift validation: the run's own sets are train, validation"):
        tw.interpolate(without.folder, shifts={"validation": completions(8)})
    random_head = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task="text-classification", training=QUICK))
    with pytest.raises(MethodError, match="head_first"):
        tw.interpolate(random_head.folder)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"choose": "nonsense"}, "choose: nonsense is no rule"),
        ({"choose": 1.5}, "alpha 1.5 is not between 0"),
        ({"alphas": "2"}, "alpha 2.0 is not between 0"),
        ({"to": "full"}, "full is not empty"),
        ({"batch_norm": "drop"}, "batch_norm: drop is neither"),
        ({"shifts": {"far": completions(1)}}, "far has 1 row and needs two"),
        ({"columns": {"prompt": "question"}}, "there are none: leave it out"),
    ],
)
def test_what_can_be_refused_is_refused_before_a_model_is_loaded(
    given: dict[str, Any], words: str, ran: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robust, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(TunewrightError, match=words):
        tw.interpolate(ran("text-generation").folder, **given)


def test_a_number_that_is_chosen_is_one_of_the_points(ran: Any) -> None:
    found = tw.interpolate(ran("text-generation").folder, alphas="0,1", choose="0.35")
    assert found["alphas"] == [0.0, 0.35, 1.0] and found["chosen"] == {"rule": 0.35, "alpha": 0.35}


def test_rows_that_are_dropped_do_not_count(tiny_base: Any, tmp_path: Path) -> None:
    long = {"prompt": "fox " * 200, "completion": "."}
    data = {"max_length": 64, "overlength": "drop"}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "r", data=data, training=QUICK))
    with pytest.raises(DataError, match="far has 1 row and needs two"):
        tw.interpolate(run.folder, shifts={"far": [*completions(1), long]})


def test_rows_that_changed_since_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in completions(8)))
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "r", data={"test": str(file)}, training=QUICK))
    file.write_text("".join(json.dumps(row) + "\n" for row in completions(7)))
    with pytest.raises(
        DataError, match=r"rows of test \(.*\) are not those that the training began with\. Put them back"
    ):
        tw.interpolate(run.folder, alphas="0,1")


def test_shifts_may_name_their_columns_otherwise(ran: Any) -> None:
    run, rows = ran("text-generation"), completions(8)
    other = [{"question": row["prompt"], "answer": row["completion"]} for row in rows]
    columns = {"prompt": "question", "completion": "answer"}
    found, same = (
        tw.interpolate(run.folder, shifts={"far": each}, columns=names, alphas="0,1")
        for each, names in ((other, columns), (rows, None))
    )
    assert found["curve"] == same["curve"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("broken", ["model", "start"])
def test_an_end_that_is_not_finite_is_never_chosen(task: str, broken: str, ran: Any, tmp_path: Path) -> None:
    run = tw.Run(Path(shutil.copytree(ran(task).folder, tmp_path / "copy")))
    file = next((run.folder / broken).glob("*.safetensors"), None)
    if file is None:
        pytest.skip("its start is the base's own")
    save_file({n: torch.full_like(t, float("nan")) for n, t in load_file(file).items()}, file, {"format": "pt"})
    found = tw.interpolate(run.folder, alphas="0,0.5,1")
    whole = 0.0 if broken == "model" else 1.0
    assert found["chosen"]["alpha"] == found["oracle"] == whole and set(found["choices"].values()) == {whole}
    assert [one["value"] is None for one in found["curve"]["test"]["test"]] == [
        broken == "start",
        True,
        broken == "model",
    ]
    assert json.loads((run.folder / "interpolation.json").read_text()) == found
    assert "Between start and end" in run.report.read_text()


def test_what_was_found_before_stays_where_the_picture_cannot_be_drawn(
    ran: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    run = tw.Run(Path(shutil.copytree(ran("text-generation").folder, tmp_path / "copy")))
    tw.interpolate(run.folder, alphas="0,1")
    before = (run.folder / "interpolation.json").read_text()
    monkeypatch.setattr(robust, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tw.interpolate(run.folder, alphas="0,0.5,1")
    assert (run.folder / "interpolation.json").read_text() == before


def test_alphas() -> None:
    assert parse_alphas("0:1:0.1") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_alphas("0.3,0.6") == parse_alphas([0.6, 0.3]) == [0.0, 0.3, 0.6, 1.0]
    for wrong in ("0:1", "a", "0:1:0", "0:2:1", "-0.1,1"):
        with pytest.raises(RecipeError, match="alpha"):
            parse_alphas(wrong)

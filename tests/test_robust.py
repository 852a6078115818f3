"""`interpolate` and `soup` on whole runs, from Python and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.runs import recipe
from tests.tiny import completions, labelled
from tunewright.errors import DataError, MethodError, RecipeError
from tunewright.evaluation.scores import Metric
from tunewright.robust import parse_alphas

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


def test_what_cannot_be_interpolated(ran: Any, tiny_base: Any, tmp_path: Path) -> None:
    run = ran("text-generation")
    with pytest.raises(DataError, match="classification rows"):
        tw.interpolate(run.folder, shifts={"far": labelled(8)})
    with pytest.raises(RecipeError, match="has a set of that name"):
        tw.interpolate(run.folder, shifts={"other": completions(8)})
    random_head = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task="text-classification", training=QUICK))
    with pytest.raises(MethodError, match="head_first"):
        tw.interpolate(random_head.folder)


def test_alphas() -> None:
    assert parse_alphas("0:1:0.1") == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert parse_alphas("0.3,0.6") == parse_alphas([0.6, 0.3]) == [0.0, 0.3, 0.6, 1.0]
    for wrong in ("0:1", "a", "0:1:0", "0:2:1", "-0.1,1"):
        with pytest.raises(RecipeError, match="alpha"):
            parse_alphas(wrong)

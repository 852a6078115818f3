"""`training.seeds`: a folder of whole runs, one report over them, and going on where it was broken off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunewright as tw
from tests.evaluation.test_report import Page
from tests.runs import left_behind, recipe
from tests.runs import stop_at as at_step
from tests.tiny import labelled
from tunewright.errors import BaseModelError, DataError, OutputError, RecipeError
from tunewright.evaluation.report import write_report
from tunewright.evaluation.seeds import over_seeds, spread_of
from tunewright.recipe import make_recipe, read_recipe

QUICK = {"max_steps": 3}


def several(base: str, folder: Path, seeds: tuple[int, ...] = (0, 5), **changes: Any) -> Any:
    training = {**QUICK, "seeds": list(seeds), **changes.pop("training", {})}
    return recipe(base, folder, task="text-classification", training=training, **changes)


@pytest.fixture(scope="module")
def study(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tw.Run:
    """A finished one. Tests must not change it."""
    folder = tmp_path_factory.mktemp("study") / "study"
    return tw.train(several(tiny_base("bert"), folder, evaluation={"before": True}))


def test_each_seed_is_the_run_that_it_would_be_alone(study: tw.Run, tiny_base: Any, tmp_path: Path) -> None:
    alone = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task="text-classification",
                            training={**QUICK, "seed": 5}, evaluation={"before": True}))  # fmt: skip
    assert [run.folder.name for run in study.runs] == ["seed-0", "seed-5"]
    assert left_behind(study.runs[1].folder) == left_behind(alone.folder) != left_behind(study.runs[0].folder)
    assert alone.runs == [] and study.status == "finished"


def test_a_seeds_model_that_is_gone_is_written_again(tiny_base: Any, tmp_path: Path) -> None:
    study = tw.train(several(tiny_base("bert"), tmp_path / "study"))
    before = left_behind(study.runs[1].folder)
    shutil.rmtree(study.runs[1].folder / "model")
    assert left_behind(tw.resume(study.folder).runs[1].folder) == before


def test_the_figures_are_mean_and_standard_deviation(study: tw.Run) -> None:
    one = study.info["over_seeds"]["validation"]
    assert (one["primary"], one["rows"], one["seeds"]) == ("accuracy", 5, [0, 5])
    for when in ("before", "after"):
        values = [run.info["evaluation"]["validation"][when]["metrics"]["loss"]["value"] for run in study.runs]
        spread = one["metrics"]["loss"][when]
        assert spread["values"] == values
        assert (spread["mean"], spread["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_what_is_undefined_or_unfinished_is_left_out() -> None:
    def info(value: float | None, seed: int, status: str = "finished") -> dict[str, Any]:
        metric = {"value": value, "low": value, "high": value, "n": 4}
        after = {"metrics": {"r2": metric}, "primary": "r2", "higher_is_better": True}
        return {"status": status, "recipe": {"training.seed": seed}, "evaluation": {"test": {"after": after}}}

    found = over_seeds([info(0.5, 0), info(None, 1), info(0.7, 2), info(9.0, 3, "running")])["test"]
    spread = found["metrics"]["r2"]["after"]
    assert (found["seeds"], spread["values"], spread["mean"]) == ([0, 1, 2], [0.5, None, 0.7], pytest.approx(0.6))
    assert spread_of("accuracy", {"mean": 0.871, "sd": 0.0123}).replace("\u00a0", " ") == "87.1 % ± 1.2"
    assert spread_of("loss", {"mean": None, "sd": None}) == "–"
    assert spread_of("loss", {"mean": 0.5, "sd": None}) == "0.500"


def test_the_report_is_over_all_seeds(study: tw.Run) -> None:
    page = Page(study.report.read_text(encoding="utf-8"))
    for words in ("2 seeds", "Accuracy on validation:", "over 2 seeds, from", "Seed 5", "±", "seed-0, finished"):
        assert words in page.text, words
    links = {tag["href"] for tag in page.named("a")}
    assert links == {"#main", "seed-0/report.html", "seed-5/report.html"}
    assert all((study.folder / link).is_file() for link in links if link != "#main")
    assert not page.named("script") and len(page.named("table")) == len(page.named("caption"))


# Going on


def stop_in(seed: int, error: BaseException) -> Any:
    """A watcher that raises in the second step of this seed's run."""
    now: list[int] = []

    def fail() -> None:
        raise error

    def watch(line: Mapping[str, Any]) -> None:
        if "started" in line:
            now.append(line["started"]["recipe"]["training.seed"])
        if now[-1] == seed:
            at_step(2, fail)(line)

    return watch


@pytest.mark.parametrize("how", ["again", "resume"])
def test_what_was_broken_off_goes_on(how: str, study: tw.Run, tiny_base: Any, tmp_path: Path) -> None:
    wanted = several(tiny_base("bert"), tmp_path / "study", evaluation={"before": True})
    with pytest.raises(KeyboardInterrupt):
        tw.train(wanted, watchers=[stop_in(5, KeyboardInterrupt())])
    stopped = tw.open_run(tmp_path / "study")
    assert stopped.status == "stopped" and stopped.info["over_seeds"]["validation"]["seeds"] == [0]
    assert "over 1 seed," in Page(stopped.report.read_text(encoding="utf-8")).text
    first = (stopped.folder / "seed-0" / "run.json").stat().st_mtime_ns
    done = tw.train(wanted) if how == "again" else tw.resume(tmp_path / "study")
    assert (done.folder / "seed-0" / "run.json").stat().st_mtime_ns == first, "a finished seed is kept"
    assert done.status == "finished" and done.info["over_seeds"] == study.info["over_seeds"]
    assert left_behind(done.runs[1].folder) == left_behind(study.runs[1].folder)


def test_killed_before_a_seed_began(study: tw.Run, tiny_base: Any, tmp_path: Path) -> None:
    """The folder of the second seed is there, and holds no run yet."""
    wanted = several(tiny_base("bert"), tmp_path / "study", evaluation={"before": True})
    with pytest.raises(KeyboardInterrupt):
        tw.train(wanted, watchers=[stop_in(5, KeyboardInterrupt())])
    folder = tmp_path / "study"
    (folder / "seed-5" / "run.json").unlink()
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "status": "running"}))
    assert tw.open_run(folder).status == "killed"
    assert left_behind(tw.resume(folder).runs[1].folder) == left_behind(study.runs[1].folder)


def test_a_finished_one_is_left_alone(study: tw.Run, tiny_base: Any) -> None:
    before = (study.folder / "run.json").read_bytes()
    assert tw.resume(study.folder).folder == study.folder
    with pytest.raises(OutputError, match="holds a run already"):
        tw.train(several(tiny_base("bert"), study.folder))
    assert (study.folder / "run.json").read_bytes() == before


def test_another_recipe_does_not_go_on(tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tw.train(several(tiny_base("bert"), tmp_path / "s"), watchers=[stop_in(0, KeyboardInterrupt())])
    with pytest.raises(RecipeError, match="began"):
        tw.train(several(tiny_base("bert"), tmp_path / "s", training={"max_steps": 4}))
    with pytest.raises(RecipeError, match=r"training\.seeds"):
        tw.train(several(tiny_base("bert"), tmp_path / "s", (0, 6)))


def test_rows_that_change_from_seed_to_seed_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labelled(12)))

    def change(line: Mapping[str, Any]) -> None:
        if "started" in line:
            file.write_text("".join(json.dumps(row) + "\n" for row in labelled(11)))

    with pytest.raises(DataError, match="changed since the first seed"):
        tw.train(several(tiny_base("bert"), tmp_path / "s", data={"train": str(file)}), watchers=[change])
    assert tw.open_run(tmp_path / "s").status == "failed"


# What is refused


@pytest.mark.parametrize("there", [False, True])
def test_a_refused_recipe_leaves_nothing_behind(there: bool, tiny_base: Any, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    if there:
        folder.mkdir()
    with pytest.raises(RecipeError, match="pattern"):
        tw.train(several(tiny_base("bert"), folder, evaluation={"pattern": "x"}))
    assert [path.name for path in tmp_path.rglob("*")] == (["study"] if there else [])


@pytest.mark.parametrize(
    ("training", "words"),
    [({"seed": 1, "seeds": [1, 2]}, "not both"), ({"seeds": [1, 1]}, "twice"), ({"seeds": [1]}, "at least 2")],
)
def test_seeds_that_cannot_be(training: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        make_recipe({"base": "b", "data": "d", "training": training})


def test_a_recipe_with_seeds_is_read_as_it_is_written(study: tw.Run) -> None:
    again = read_recipe(study.folder / "recipe.yaml")
    assert again.training.seeds == [0, 5] and again.to_yaml() == (study.folder / "recipe.yaml").read_text()
    assert study.runs[1].recipe.training.seed == 5 and study.runs[1].recipe.training.seeds is None


def test_it_is_no_model_by_itself(study: tw.Run) -> None:
    with pytest.raises(BaseModelError, match="a run for each seed"):
        tw.load(study.folder)


def test_a_report_before_the_first_seed_is_done(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "seeds": [0, 1]}))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No seed has been measured yet." in page.text and "seed-1, not begun" in page.text


def test_several_processes(tiny_base: Any, tmp_path: Path) -> None:
    done = tw.train(several(tiny_base("bert"), tmp_path / "study", training={"processes": 2}))
    assert [run.info["machine"]["processes"] for run in done.runs] == [2, 2] and done.status == "finished"

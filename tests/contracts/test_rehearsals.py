"""`dry_run` and `check` × kinds of base × methods: they count what a run trains, or refuse as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.contracts.steps import prepared
from tests.contracts.test_methods import KINDS_OF, PLAIN
from tests.tiny import TWO_TOWERS, completions, labelled, pictures, rows_for
from tunewright.errors import DataError, TunewrightError
from tunewright.methods.base import parameter_count, trained_count

KINDS = {**KINDS_OF, "image-classification": [*KINDS_OF["image-classification"], *(TWO_TOWERS.keys() - {"clip"})]}
PAIRS = [(task, kind) for task, kinds in KINDS.items() for kind in kinds]
QUICK = {"epochs": 1, "batch": 3}


def rows_of(task: str) -> list[dict[str, Any]]:
    """As many classes as a dry run counts."""
    two = {"text-classification": labelled, "image-classification": pictures}
    return two[task](8, classes=2) if task in two else rows_for(task, 6)


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(("task", "kind"), PAIRS)
def test_a_dry_run_counts_as_the_run_does(task: str, kind: str, method: str, tiny_base: Any) -> None:
    """Whether the task is said or inferred."""
    rows = rows_of(task)
    recipe = {"base": tiny_base(kind), "data": rows, "method": PLAIN[method]}
    try:
        ready = prepared(recipe["base"], rows, task=task, method=PLAIN[method])
    except TunewrightError:
        with pytest.raises(TunewrightError):
            tw.dry_run(recipe)
        return
    for known in ({}, {"task": task}):
        found = tw.dry_run({**recipe, **known})
        assert found["task"] == task
        module = ready.model.module
        assert (found["trained"], found["total"]) == (trained_count(module), parameter_count(module))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("task", "kind"), PAIRS)
def test_check_counts_as_the_run_does(task: str, kind: str, method: str, tiny_base: Any, tmp_path: Path) -> None:
    """In bf16, so that all that is computed agrees on a precision."""
    base, rows = tiny_base(kind), rows_of(task)
    training = {**QUICK, "precision": "bf16"}
    found = tw.check(base=base, data=rows, method=PLAIN[method], training=training, output=str(tmp_path / "run"))
    model = prepared(base, rows, task=task, method=PLAIN[method]).model
    assert found["task"] == task and found["forecast"]["time"]["seconds"] > 0
    assert found["parameters"]["trained"] == trained_count(model.module)


@pytest.mark.parametrize("rows", ["images", "rows.jsonl", "rows.csv", "faulty.jsonl", "someone/on-the-hub"])
def test_an_image_base_needs_no_task(rows: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever there is to see of the rows: the base has no classifier's architecture in its configuration."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "1.png")
    (tmp_path / "rows.jsonl").write_text('{"file_name": "images/a/1.png", "label": "a"}\n')
    (tmp_path / "rows.csv").write_text("file_name,label\nimages/a/1.png,a\n")
    (tmp_path / "faulty.jsonl").write_text("{\n")
    found = tw.dry_run({"base": tiny_base("vit"), "data": rows})
    assert found["task"] == "image-classification" and found["total"] > 0
    by = "base" if rows in ("faulty.jsonl", "someone/on-the-hub") else "rows"
    assert f"Task: image-classification, by the {by}." in found["notices"]


@pytest.mark.parametrize("place", ["train", "validation", "test", "prior"])
@pytest.mark.parametrize(
    ("rows", "said"),
    [("x.jsonl", "x.jsonl does not exist"), ("empty.jsonl", "holds no rows"), ("nothing", "holds no file"),
     ("rows.xlsx", "of an unknown kind"), ("images:tset", "tset")],
)  # fmt: skip
def test_a_dry_run_refuses_rows_that_are_not_there(
    rows: str, said: str, place: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "images").mkdir()
    for name in ("empty.jsonl", "rows.xlsx"):
        (tmp_path / name).touch()
    data = {"train": labelled(4), place: {"a": rows} if place == "test" else rows}
    with pytest.raises(DataError, match=said):
        tw.dry_run({"base": tiny_base("bert"), "data": data, "task": "text-classification"})


def test_a_dry_run_says_what_it_does_not_count(tiny_base: Any) -> None:
    """The rows of tokens that are added or were never learned, where they train beside what is counted."""
    recipe = {"base": tiny_base("llama"), "data": completions(4)}
    said = {method: " ".join(tw.dry_run({**recipe, "method": method})["notices"]) for method in ("lora", "full")}
    assert "not counted" in said["lora"] and "not counted" not in said["full"]
    data = {"train": completions(4), "special_tokens": ["<x>"]}
    grown = prepared(tiny_base("llama"), completions(4), data=data).model.module
    assert trained_count(grown) > tw.dry_run({**recipe, "data": data})["trained"]


def test_the_rows_tell_the_task_where_a_base_could_do_several(tiny_base: Any, tmp_path: Path) -> None:
    assert tw.dry_run({"base": tiny_base("llama"), "data": labelled(4)})["task"] == "text-classification"
    assert tw.dry_run({"base": tiny_base("llama"), "data": "owner/name"})["task"] == "text-generation"


def test_a_task_that_a_base_has_no_head_for_is_refused(tiny_base: Any) -> None:
    for task, kind in (("image-classification", "bert"), ("text-classification", "vit"), ("text-generation", "vit")):
        with pytest.raises(TunewrightError, match="transformers has no"):
            tw.dry_run({"base": tiny_base(kind), "task": task, "data": "owner/name"})

"""Rows as Python has them: lists, DataFrames, datasets, generators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tunewright as tw
from tests.tiny import labelled
from tunewright.data.pictures import as_picture
from tunewright.errors import DataError, RecipeError
from tunewright.recipe import make_recipe

TinyBase = Callable[..., str]
SHORT: dict[str, Any] = {"training": {"max_steps": 1, "head_first": 1}, "evaluation": {"before": False}}


def test_a_data_frame_is_its_rows(tiny_base: TinyBase, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(labelled(12))
    data = {"train": frame, "validation": 0, "test": {"other": frame[:4]}}
    run = tw.train(base=tiny_base("bert"), data=data, output=tmp_path / "run", **SHORT)
    assert (run.info["data"]["train"]["rows"], run.info["data"]["other"]["rows"]) == (12, 4)
    assert run.recipe.data.train == labelled(12)
    assert tw.evaluate(run.folder, frame)["rows"] == 12
    with pytest.raises(DataError, match=r"rows\[1\]"):
        tw.train(base=tiny_base("bert"), data=pandas.DataFrame({"text": ["a", None], "label": ["b", "c"]}))


def forms_of(rows: list[dict[str, Any]]) -> dict[str, Callable[[], Any]]:
    """How Python may have rows in hand."""
    from datasets import Dataset, IterableDataset

    return {
        "dataset": lambda: Dataset.from_list(rows),
        "tensors": lambda: Dataset.from_list(rows).with_format("torch"),
        "streamed": lambda: Dataset.from_list(rows).to_iterable_dataset(),
        "generated": lambda: IterableDataset.from_generator(lambda: iter(rows)),
        "tuple": lambda: tuple(rows),
        "generator": lambda: (row for row in rows),
    }


@pytest.mark.parametrize("form", forms_of([]))
def test_rows_may_be_whatever_yields_them(form: str, tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = labelled(12)
    given = forms_of(rows)[form]
    assert make_recipe({"base": "b", "data": given()}).data.train == rows
    assert tw.Data(train="x", test={"a": given()}, validation=given()).test_sets()["a"] == rows
    assert tw.dry_run({"base": tiny_base("bert"), "data": given()})["task"] == "text-classification"


def test_rows_are_taken_in_hand_everywhere(tiny_base: TinyBase, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict

    rows = labelled(12)
    dataset = Dataset.from_list(rows).cast_column("label", ClassLabel(names=sorted({row["label"] for row in rows})))
    sets = DatasetDict(train=dataset, validation=dataset)
    run = tw.train(base=tiny_base("bert"), data=sets, output=tmp_path / "run", method="full", **SHORT).folder
    assert tw.open_run(run).recipe.data.validation == rows
    assert tw.evaluate(run, dataset)["rows"] == 12
    assert list(tw.compare(run, run, DatasetDict(x=dataset))["sets"]) == ["x"]
    assert tw.interpolate(run, shifts={"x": dataset}, alphas="0,1")["shifts"] == ["x"]
    assert tw.export(run, "merged", tmp_path / "out", rows=(row for row in rows)).is_dir()
    rules = tmp_path / "rules.jsonl"
    rules.write_text(json.dumps({"name": "a", "label": rows[0]["label"], "pattern": "."}), encoding="utf-8")
    assert tw.label(rules, dataset)["rows"] == 12


def test_images_of_a_dataset_are_written_down(tmp_path: Path) -> None:
    from datasets import Dataset
    from PIL import Image

    images = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    dataset = Dataset.from_list([{"image": image, "label": str(i)} for i, image in enumerate(images)])
    recipe = make_recipe({"base": "b", "data": dataset})
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    rows = recipe.data.train
    assert [as_picture(row["image"]).pixels() for row in rows] == images  # type: ignore[index]


def test_what_is_no_data_is_named_and_not_printed() -> None:
    for value, said in (
        (np.zeros((300, 4)), r".* rows\[0\] is a ndarray; .* \(given: a ndarray of shape \(300, 4\)\)"),
        (("word " * 99,), r".* rows\[0\] is a str; .* \(given: a tuple\)"),
        (["a b"], r"a row maps columns to values, and rows\[0\] is a str; give a file, .* \(given: \['a b'\]\)"),
        (5, r"give a file, a folder, .* \(given: 5\)"),
        ([], r"give a file, a folder, .* \(given: \[\]\)"),
    ):
        with pytest.raises(RecipeError, match=rf"^[^\n]*\n  data.train: {said}$"):
            tw.train(base="b", data=value)
    with pytest.raises(RecipeError, match=r"^data: give a file"):
        tw.evaluate("run", 5)  # type: ignore[arg-type]

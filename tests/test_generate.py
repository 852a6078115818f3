"""`generate`: images from texts, along the path from a run's start to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tunewright as tw
from tests.runs import recipe
from tunewright.cli import app
from tunewright.errors import BaseModelError, DataError, RecipeError

SHORT: dict[str, Any] = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def base(tiny_base: Any) -> str:
    return str(tiny_base("sdxl"))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tw.train(recipe(base, folder, task="text-to-image", training={"learning_rate": 0.003, "epochs": 1}))
    return folder


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float)


def test_the_picture_moves_from_the_bases_to_the_tuned_ones(base: str, run: Path) -> None:
    found = tw.generate(run, ["a red wall", "a green wall"], alphas=[0, 0.5, 1], **SHORT)
    assert [len(images) for images in found.values()] == [2, 2, 2]
    start, middle, end = (pixels(found[alpha][0]) for alpha in (0, 0.5, 1))
    np.testing.assert_array_equal(start, pixels(tw.generate(base, "a red wall", **SHORT)[1.0][0]))
    np.testing.assert_array_equal(end, pixels(tw.generate(run, "a red wall", **SHORT)[1.0][0]))
    np.testing.assert_array_equal(middle, pixels(tw.generate(f"{run}@0.5", "a red wall", **SHORT)[1.0][0]))
    whole = np.abs(end - start).mean()
    assert np.abs(middle - start).mean() < whole and np.abs(middle - end).mean() < whole


def test_what_is_asked_for_counts(base: str) -> None:
    plain = pixels(tw.generate(base, "a red wall", **SHORT)[1.0][0])
    for changed in ({"seed": 4}, {"steps": 4}, {"guidance": 1.0}, {"negative": "a dog"}):
        assert (pixels(tw.generate(base, "a red wall", **{**SHORT, **changed})[1.0][0]) != plain).any(), changed
    assert tw.generate(base, "a red wall", size=(24, 16), **SHORT)[1.0][0].size == (24, 16)


def test_what_cannot_be_is_said(base: str, run: Path, tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="generate makes images"):
        tw.generate(tiny_base("llama"), "a wall")
    with pytest.raises(BaseModelError, match="is no run"):
        tw.generate(base, "a wall", alphas=[0.5])
    with pytest.raises(RecipeError, match="a point already"):
        tw.generate(f"{run}@0.5", "a wall", alphas=[0.2])
    with pytest.raises(RecipeError, match="name the run"):
        tw.generate(tw.load(base), "a wall", alphas=[0, 1])
    with pytest.raises(RecipeError, match="multiples of 4"):
        tw.generate(base, "a wall", size=(18, 16))
    with pytest.raises(RecipeError, match="steps"):
        tw.generate(base, "a wall", steps=0)
    with pytest.raises(DataError, match="no texts"):
        tw.generate(base, [])


def test_the_command_writes_images_and_a_sheet(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(run), "--prompt", "a red wall", "--alpha", "0", "--alpha", "0.6", "--steps", "2"]
    with pytest.raises(SystemExit) as ended:
        app([*arguments, "--output", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    written = json.loads(capsys.readouterr().out)["images"]
    assert [Path(path).name for path in written] == ["1-alpha-0.png", "1-alpha-0.6.png", "sheet.png"]
    told = json.loads(Image.open(written[1]).text["tunewright"])  # type: ignore[attr-defined]
    assert told["prompt"] == "a red wall" and told["alpha"] == 0.6 and told["seed"] == 0
    with pytest.raises(SystemExit) as ended:
        app([*arguments, "--output", str(tmp_path / "out")])
    assert ended.value.code == 2 and "not empty" in capsys.readouterr().err

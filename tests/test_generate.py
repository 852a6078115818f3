"""`generate`: images from texts, along the path from a run's start to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tunewright as tw
from tests.runs import recipe
from tunewright.cli import app
from tunewright.drawing import points
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
    np.testing.assert_array_equal(middle, pixels(tw.generate(f"{run}@0.5", "a red wall", **SHORT)[0.5][0]))
    np.testing.assert_array_equal(middle, pixels(tw.generate(run, "a red wall", alphas=0.5, **SHORT)[0.5][0]))
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
    for alphas in ([0.2], [1], 1.0):
        with pytest.raises(RecipeError, match=r"run@0\.5 is a point already, α = 0\.5"):
            tw.generate(f"{run}@0.5", "a wall", alphas=alphas)
    with pytest.raises(RecipeError, match=r"alpha 2 is not between 0"):
        tw.generate(run, "a wall", alphas=[0, 2])
    with pytest.raises(RecipeError, match="name the run"):
        tw.generate(tw.load(base), "a wall", alphas=[0, 1])
    with pytest.raises(RecipeError, match="multiples of 4"):
        tw.generate(base, "a wall", size=(18, 16))
    with pytest.raises(RecipeError, match=r"alpha 2.0 is not between 0"):
        points(f"{run}@2", None)
    with pytest.raises(RecipeError, match=r"used:\n  negative has no effect"):
        tw.generate(base, "a wall", guidance=1, negative="a dog")
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


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app(["generate", *map(str, arguments), "--steps", "1"])
    return (int(ended.value.code or 0), *capsys.readouterr())


def test_the_point_that_is_drawn_is_the_one_that_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = command(capsys, f"{run}@0.5", "--prompt", "a wall", "--output", tmp_path / "out")
    assert code == 0 and said == f"Written to {tmp_path / 'out' / '1-alpha-0.5.png'}\n"
    told = json.loads(Image.open(tmp_path / "out" / "1-alpha-0.5.png").text["tunewright"])  # type: ignore[attr-defined]
    assert told["alpha"] == 0.5
    code, _, said = command(capsys, f"{run}@0.5", "--prompt", "a wall", "--alpha", "1", "--output", tmp_path / "no")
    assert code == 2 and "is a point already, α = 0.5. Leave out that, or the other α." in said
    assert not (tmp_path / "no").exists()


def test_one_image_goes_into_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, asked = tmp_path / "wall.png", [run, "--prompt", "a wall", "--output", tmp_path / "wall.png"]
    assert command(capsys, *asked)[0] == 0 and Image.open(file).size == (16, 16)
    code, _, said = command(capsys, *asked)
    assert code == 2 and "wall.png exists already" in said
    code, _, said = command(capsys, *asked, "--prompt", "another")
    assert code == 2 and "is a file for one image, and these are 2" in said


def test_images_that_are_not_finite_are_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline shows NaN as black."""
    import torch

    model = tw.load(base)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.float16)
    with torch.no_grad():
        model.module.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(BaseModelError, match="weights are damaged"):
        tw.generate(model, "a wall", steps=1)
    with pytest.raises(BaseModelError, match=r"fp16 has no numbers above 65,504. Compute in bf16 or fp32"):
        tw.generate(model, "a wall", steps=1, precision="bf16")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_images_are_drawn_in_other_precisions(kind: str, tiny_base: Any) -> None:
    """The VAE decodes in fp32 all the same: in fp16 that of SDXL overflows."""
    plain, rounded = (
        pixels(tw.generate(tiny_base(kind), "a red wall", precision=one, **SHORT)[1.0][0]) for one in ("fp32", "bf16")
    )
    assert 0 < np.abs(plain - rounded).mean() < 8


def test_more_steps_than_the_scheduler_has_timesteps_are_refused_before_anything(base: str, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(base, few)
    file = few / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_train_timesteps": 20, "steps_offset": 1}))
    assert tw.generate(few, "a red wall", steps=19)
    with pytest.raises(RecipeError, match=r"steps: 20 is too many for the base's scheduler, which has 20 timesteps"):
        tw.generate(few, "a red wall", steps=20)
    too_many = recipe(str(few), tmp_path / "run", task="text-to-image", evaluation={"image_steps": 20})
    for begin in (tw.check, tw.train):
        with pytest.raises(RecipeError, match=r"evaluation\.image_steps: 20 is too many .* Give 19 at most"):
            begin(too_many)
    assert not (tmp_path / "run").exists()

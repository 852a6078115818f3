"""Sample pictures: drawn on the way, shown in the report, and without a trace in the weights."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import captioned
from tunewright.errors import Interrupted, RecipeError

PROMPTS = {"prompts": ["a red wall", "a green wall"], "image_steps": 2, "samples": 0}


@pytest.fixture(scope="module")
def base(tiny_base: Any) -> str:
    return str(tiny_base("sdxl"))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return tw.train(recipe(base, folder, task="text-to-image", evaluation=PROMPTS)).folder


def pictures(run: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in sorted(run.glob("samples/*/*.png"))}


def test_pictures_are_drawn_before_during_and_after(run: Path) -> None:
    found = pictures(run)
    assert list(found) == [f"{when}/{i}.png" for when in ("after", "before", "step-4") for i in (1, 2)]
    assert len(set(found.values())) == 6


def test_the_first_are_the_bases_and_the_last_the_models(base: str, run: Path, tmp_path: Path) -> None:
    for where, when in ((base, "before"), (run, "after")):
        (image,) = tw.generate(where, "a red wall", steps=2, seed=0)[1.0]
        image.save(tmp_path / "image.png")
        assert (tmp_path / "image.png").read_bytes() == pictures(run)[f"{when}/1.png"], when


def test_the_report_shows_them(run: Path) -> None:
    page = (run / "report.html").read_text()
    (text,) = re.findall(r'<img class="picture" alt="(.*?)" src="data:image/jpeg;base64,', page)
    assert text == "a red wall; a green wall: each before, step 4, after."
    assert len(page) < 200_000


def test_they_leave_no_trace_in_the_run(base: str, run: Path, tmp_path: Path) -> None:
    plain = tw.train(recipe(base, tmp_path / "plain", task="text-to-image")).folder
    assert left_behind(plain) == left_behind(run)
    assert "Pictures" not in (plain / "report.html").read_text()


def test_without_prompts_a_few_captions_are_drawn_before_and_after(base: str, tmp_path: Path) -> None:
    """Those that are measured on, then those of the training rows; as many as `samples`, at most four."""
    rows = captioned(17)
    data = {"train": rows[:12], "validation": rows[12:14]}
    asked = {"image_steps": 1, "before": True}
    training = {"max_steps": 8}
    found = tw.train(recipe(base, tmp_path / "run", task="text-to-image", data=data, evaluation=asked,
                            training=training)).folder  # fmt: skip
    assert list(pictures(found)) == [f"{when}/{i}.png" for when in ("after", "before") for i in range(1, 5)]
    texts = [row["text"] for row in [*rows[12:14], *rows[:2]]]
    assert json.loads((found / "samples" / "prompts.json").read_text()) == texts
    page = (found / "report.html").read_text()
    assert "pipe.load_lora_weights(" in page and html.escape(texts[0]) in page and "a LoRA of diffusers" in page
    asked |= {"samples": 1, "before": False}
    less = tw.train(recipe(base, tmp_path / "less", task="text-to-image", evaluation=asked, training=training)).folder
    assert list(pictures(less)) == ["after/1.png"]


def test_a_run_that_is_resumed_has_the_same(base: str, run: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted(5)

    stopped = recipe(base, tmp_path / "stopped", task="text-to-image", evaluation=PROMPTS)
    with pytest.raises(Interrupted):
        tw.train(stopped, watchers=[stop_at(5, stop)])
    tw.resume(tmp_path / "stopped")
    assert left_behind(tmp_path / "stopped") == left_behind(run)
    assert pictures(tmp_path / "stopped") == pictures(run)


def test_prompts_are_for_what_makes_images(tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.prompts is for text-to-image"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", evaluation=PROMPTS))
    assert not (tmp_path / "run").exists()


def test_pictures_are_of_the_averaged_weights(base: str, tmp_path: Path) -> None:
    """Those that are saved: a run that ends where another had a picture drawn has the same one at its end."""
    training = {"ema": 0.9, "schedule": "constant", "keep": "last"}
    long, short = (
        recipe(base, tmp_path / f"{steps}", task="text-to-image", evaluation=PROMPTS,
               training={**training, "max_steps": steps})
        for steps in (8, 4)
    )  # fmt: skip
    assert pictures(tw.train(long).folder)["step-4/1.png"] == pictures(tw.train(short).folder)["after/1.png"]

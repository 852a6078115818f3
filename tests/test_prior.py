"""DreamBooth: images of the class are learned beside those of the subject, with a loss of their own."""

from __future__ import annotations

import json
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tunewright as tw
from tests.contracts.steps import prepared
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import captioned, rows_for
from tunewright.cli.train import watched
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.errors import Interrupted, RecipeError
from tunewright.run import make_job

TASK = "text-to-image"


@pytest.fixture(scope="module")
def base(tiny_base: Any) -> str:
    return str(tiny_base("sd1"))


def of_the_class(count: int = 4) -> list[dict[str, Any]]:
    rows = captioned(count)
    images = [Image.open(BytesIO(row["image"])).rotate(90) for row in rows]
    return [{**row, "image": image, "text": "a wall"} for row, image in zip(rows, images, strict=True)]


def ready(base: str, prior_weight: float = 0.5, **training: Any) -> Any:
    objective = {"type": "supervised", "prior_weight": prior_weight}
    training = {"batch": 3, "learning_rate": 0.01, **training}
    return prepared(base, rows_for(TASK), task=TASK, method={"type": "full"}, objective=objective, training=training,
                    data={"prior": of_the_class()})  # fmt: skip


def step_of(found: Any) -> Step:
    job = make_job(found, Path("/nonexistent"), Processes())
    return Step(job, TrainState(found.model, found.recipe.method, job.config, "fp32"))


def test_each_row_brings_one_of_the_class_and_each_kind_has_its_mean(base: str) -> None:
    """loss = Σ own / own rows + prior_weight · Σ class / class rows, by the formula from each row alone."""
    found = ready(base)
    step = step_of(found)
    job, task = step.job, found.model.task
    rows = [job.train[i] for i in job.plan[0][1]]
    chance = np.random.default_rng([job.config.seed, 1])
    rows += [job.prior[i] for i in chance.integers(len(job.prior), size=len(rows))]
    found.model.module.train()
    with torch.no_grad():
        each = [float(task.nll(found.model.module, task.collate([e])).nll_BT) for e in task.vary(rows, chance)]
    line = step.take()
    assert line["loss"] == pytest.approx(np.mean(each[:3]), rel=1e-5)
    assert line["prior_loss"] == pytest.approx(np.mean(each[3:]), rel=1e-5)


def test_the_weight_scales_the_gradient_of_the_class_alone(base: str) -> None:
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        step = step_of(ready(base, weight))
        examples = [*step.job.train[:3], *step.job.prior[:2]]
        step._accumulate(examples, step.job.objective.counts(examples))
        gradients[weight] = torch.cat([p.grad.flatten() for p in step.state.parameters.values() if p.grad is not None])
    none, half, whole = gradients.values()
    torch.testing.assert_close(half, (none + whole) / 2, rtol=1e-4, atol=1e-6)
    assert (whole - none).abs().max() > 1e-3


def drawn(base: str, output: Path, **changes: Any) -> Any:
    data = {"prior_prompt": "a wall", "prior_images": 2}
    return recipe(base, output, task=TASK, data=data, **changes)


def test_images_of_the_class_are_drawn_once_and_kept(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tw.train(drawn(base, tmp_path / "whole"))
    folder = whole.folder / "start" / "prior"
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    (alone,) = tw.generate(base, "a wall", seed=1, steps=30)[1.0]
    assert np.array_equal(np.asarray(Image.open(folder / "0001.png")), np.asarray(alone)), "of the run's seed, plus 1"
    assert sorted(made) == ["0000.png", "0001.png", "metadata.jsonl"] and made["0000.png"] != made["0001.png"]
    assert json.loads((whole.folder / "run.json").read_text())["data"]["prior"]["rows"] == 2
    assert any("prior_loss" in line for line in (whole.folder / "metrics.jsonl").read_text().splitlines())

    def stop() -> None:
        raise Interrupted(3)

    with pytest.raises(Interrupted):
        tw.train(drawn(base, tmp_path / "stopped", training={"checkpoint_every": 2}), watchers=[stop_at(3, stop)])
    from tunewright.tasks.text_to_image import TextToImage

    monkeypatch.setattr(TextToImage, "images", lambda *_, **__: pytest.fail("drawn again"))
    tw.resume(tmp_path / "stopped")
    assert left_behind(tmp_path / "stopped") == left_behind(whole.folder)


def test_what_was_drawn_before_an_interruption_is_kept(base: str, tmp_path: Path) -> None:
    """Each is written when it is done, and the same command goes on; another prompt begins anew."""
    told: list[Any] = []

    def stop(line: Any) -> None:
        told.append(line)
        if line.get("drawn") == 1:
            raise KeyboardInterrupt

    data = {"prior_prompt": "a wall", "prior_images": 3}
    document = recipe(base, tmp_path / "run", task=TASK, data=data)
    with pytest.raises(KeyboardInterrupt):
        tw.train(document, watchers=[stop])
    assert [line for line in told if "drawn" in line] == [{"drawn": 0, "of": 3}, {"drawn": 1, "of": 3}]
    folder = tmp_path / "run" / "start" / "prior"
    first = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert list(first) == ["0000.png"] and [path.name for path in (tmp_path / "run").iterdir()] == ["start"]

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    said = "1 image of the class is kept. To go on, give the same command with output="
    with pytest.raises(KeyboardInterrupt, match=said):
        watched(tmp_path / "run", interrupted)
    told.clear()
    run = tw.train(document, watchers=[told.append])
    assert [line["drawn"] for line in told if "drawn" in line] == [1, 2, 3] and "drawn" in told[0]
    assert (folder / "0000.png").stat().st_mtime_ns == first["0000.png"]
    whole = tw.train(recipe(base, tmp_path / "whole", task=TASK, data=data))
    assert left_behind(run.folder) == left_behind(whole.folder)


def test_images_that_share_a_pass_are_those_drawn_alone(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tw.load(base)
    draw = partial(model.task.images, model, steps=2)
    each = [np.asarray(draw(["a wall"], seed=seed)[0], int) for seed in (3, 4, 5)]
    some = [np.asarray(image, int) for image in draw(["a wall"] * 3, seed=[3, 4, 5], together=2)]
    assert np.abs(np.array(each) - np.array(some)).max() <= 1 < np.abs(each[0] - each[1]).max()


def test_check_foresees_what_is_drawn(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without drawing it all."""
    from tunewright.tasks.text_to_image import TextToImage

    asked: list[int] = []
    real = TextToImage.images
    monkeypatch.setattr(
        TextToImage, "images", lambda *given, steps, **more: (asked.append(steps), real(*given, steps=steps, **more))[1]
    )
    data = {"prior_prompt": "a wall", "prior_images": 200}
    evaluation = {"prompts": ["a", "b"], "image_steps": 50, "samples": 0}
    phases = tw.check(recipe(base, tmp_path / "run", task=TASK, data=data, evaluation=evaluation))["forecast"]["time"][
        "phases"
    ]
    assert sum(asked) < 10
    times = 2 * 3  # before, after the first of two epochs, and after
    assert phases["images of the class"] / phases["sample pictures"] == pytest.approx(200 * 30 / (times * 50), rel=0.5)


def test_what_has_no_effect_is_refused(base: str, tmp_path: Path, tiny_base: Any) -> None:
    with pytest.raises(RecipeError, match="prior_weight is for"):
        tw.train(recipe(base, tmp_path / "a", task=TASK, objective={"type": "supervised", "prior_weight": 0.5}))
    with pytest.raises(RecipeError, match="choose one"):
        recipe(base, tmp_path / "b", task=TASK, data={"prior": of_the_class(), "prior_prompt": "a wall"})
    with pytest.raises(RecipeError, match="give that too"):
        recipe(base, tmp_path / "c", task=TASK, data={"prior_images": 3})
    with pytest.raises(RecipeError, match="is for text-to-image"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "d", data={"prior_prompt": "a wall"}))
    assert not list(tmp_path.iterdir())
